"""The end of a run: pictures, scores, an overview, and where everything lies."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.evaluation import chance, report, score_pictures, tally
from imagen_nb.plots import add_picture, show_stages
from imagen_nb.recipes import Recipe
from imagen_nb.runs.setup import already_told, open_data
from imagen_nb.store.checkpoint import load_meta
from imagen_nb.store.files import picture_file, writable_folder

__all__ = [
    "HELD_OUT",
    "EXAMPLES",
    "finish",
    "score_run",
    "draw_captions",
    "count_trained",
    "read_pictures",
]

HELD_OUT = 200  # test captions drawn and scored at the end of a run on ShapesWorld
EXAMPLES = 8  # captions drawn at the end of a run on the user's pictures


def finish(
    recipe: Recipe,  # of the run
    out: Path,  # its directory, with `model`
    held_out: int,  # test captions that were drawn
    seconds: float,  # that the run took
    device: torch.device | str = "cpu",  # where to draw
):
    "Draw or score, write the overview, say where everything is."
    trained = load_meta(out / "model")["trained"]
    untrained = [str(k) for k, is_trained in enumerate(trained) if not is_trained]
    if untrained:
        print(
            f"\nModel: {out / 'model'}; stages never trained: {', '.join(untrained)}"
            f" (--stage {untrained[0]} is next)."
        )
        return
    if recipe.data is None:
        caption = score_run(recipe, out, held_out, seconds)
    else:
        with already_told():
            captions = examples(open_data(recipe))
        imagen = Imagen.from_pretrained(out / "model")
        imagen.to(device)
        caption, seeds = captions[0], list(range(len(captions)))
        draw_captions(imagen, captions, seeds, out / "samples", out / "samples.png")
    draw = shlex.join(["imagen-nb", "sample", caption, "--model", str(out / "model")])
    print(
        f"\nPictures: {out / 'samples.png'} and {out / 'samples'}. Model: {out / 'model'}. Draw your own:\n"
        f"  {draw}"
    )


def examples(world) -> list[str]:
    "A few captions from all over the data; the only one so often that each seed draws another picture."
    captions = list(dict.fromkeys(world.caption(i) for i in range(len(world))))
    captions = captions[:: max(1, len(captions) // EXAMPLES)][:EXAMPLES]
    return captions if len(captions) > 1 else captions * EXAMPLES


# ---------------------------------------------------------------- scores


def score_run(recipe: Recipe, out: Path, held_out: int, seconds: float) -> str:
    "Collect what the oracle said, print the tables, write scores and overview; returns a caption."
    from tqdm.auto import tqdm

    world, indices = open_data(recipe, "test"), list(range(held_out))
    rows = [json.loads((out / "samples" / f"{i:05d}.json").read_text()) for i in indices]
    guess, sizes, scores = chance(world, indices), [c.size for c in recipe.stages], {}
    for size in tqdm(sizes, "scoring against other captions", unit="stage"):
        right = [r["scores"][str(size)] for r in rows]
        wrong = score_pictures(world, indices, read_pictures(out, indices, size), shift=1)
        seen = [answers for answers, r in zip(right, rows) if not r["held_out"]]
        unseen = [answers for answers, r in zip(right, rows) if r["held_out"]]
        parts = dict(all=right, seen=seen, held_out=unseen, shuffled=wrong, chance=guess)
        scores[str(size)] = {name: tally(part) for name, part in parts.items()}
        share = scores[str(size)]["held_out"]["all"]["share"]
        tqdm.write(
            f"\n{size} px\n{report(right, wrong, guess)}\n"
            f"all right on combinations never trained on: {100 * share:.1f} %"
        )
    (out / "scores.json").write_text(json.dumps(scores | dict(seconds=seconds), indent=1))
    stages = [read_pictures(out, indices[:8], size) for size in sizes]
    show_stages([r["caption"] for r in rows[:8]], stages, out / "samples.png")
    return rows[0]["caption"]


def read_pictures(
    out: Path,  # directory of a run that has drawn held-out captions
    indices: list[int],  # which captions
    size: int,  # of which stage
) -> Tensor:  # (b 3 h w) in [-1, 1]
    "Pictures from disk as the oracle takes them."
    names = [out / "samples" / f"{i:05d}_{size}.png" for i in indices]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name))) for name in names])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


# ---------------------------------------------------------------- pictures


def draw_captions(
    imagen: Imagen,  # a trained cascade
    captions: list[str],  # what was asked for: files are named after them
    seeds: list[int],  # one for each picture, those of a caption one after the other
    folder: str | Path,  # a PNG for each goes here
    overview: str | Path,  # one picture of all captions and stages
    drawn: list[str] | None = None,  # what is drawn in their place; None: the same
    **options,  # of `Imagen.sample`
) -> list[Path]:  # the files, the overview last; where another one was, with a number in its name
    "Draw captions with every trained stage; save the last pictures one by one, and all in one overview."
    n, folder, overview = (
        len(seeds) // len(captions),
        writable_folder(folder),
        picture_file(overview),
    )
    stages = imagen.sample(
        drawn or captions,
        n=n,
        seeds=seeds,
        stages=max(count_trained(imagen), 1),
        return_all=True,
        progress=True,
        **options,
    )
    said = [a if a == d else f"{a}: {d}" for a, d in zip(captions, drawn or captions)]
    captions, said = ([caption for caption in some for _ in range(n)] for some in (captions, said))
    files: dict[tuple[str, int], Path] = {}
    for pair, image in zip(zip(captions, seeds), stages[-1]):
        if pair not in files:
            files[pair] = add_picture(image, folder / file_name(*pair), files.values())
    return [*files.values(), add_picture(show_stages(said, list(stages)), overview)]


def file_name(caption: str, seed: int) -> str:
    "A caption as a name that every file system takes: 255 bytes at most, in small letters."
    code = sys.getfilesystemencoding()
    known = caption.lower().encode(code, "replace").decode(code)
    name = "".join(c if c.isalnum() else "-" for c in known)[:60].strip("-") or "empty"
    return f"{name.encode()[:200].decode(errors='ignore')}-seed{seed}.png"


def count_trained(
    imagen: Imagen,  # a cascade
) -> int:  # stages from the base on
    "How many stages can draw."
    return next((k for k, o in enumerate(imagen.stages) if not o.is_trained), len(imagen.stages))
