"imagen-nb upscale --out NEW/x.png, or a name without a suffix: made or refused before minutes of drawing, not after."

import contextlib
import io

from small import *

from imagen_nb.cli import main
from imagen_nb.plots import save_picture

here, drawn = folder(), []
save_picture(torch.zeros(3, 40, 40), here / "a.png")
real = Imagen.sample
Imagen.sample = lambda self, *a, **k: (drawn.append(1), torch.zeros(1, 3, 512, 512))[1]
wrong = []
for out in ("new/x.png", "noending"):
    drawn.clear()
    with (
        contextlib.redirect_stderr(io.StringIO()) as err,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = main(["upscale", str(here / "a.png"), "x", "--out", str(here / out)])
    if code and drawn:
        wrong.append(f"--out {out}: drawn, then {err.getvalue().strip().splitlines()[-1][:70]}")
end(not wrong, "; ".join(wrong) or "made, or refused first")
