"Two captions whose first 60 letters agree, one seed: two files (imagen-nb sample, runs.draw_captions)."

from small import *

from imagen_nb.runs.results import draw_captions

m, out = model(), folder()
m.encoder = Reader().__getitem__
start = "a small red circle to the left of a big blue square and above a green"
paths = draw_captions(m, [f"{start} ring", f"{start} star"], [0, 0], out, out / "grid.png")
files = [p for p in out.iterdir() if p.name != "grid.png"]
end(len(files) == 2, f"2 captions, {len(files)} file(s): {files[0].name}")
