"""What `imagen-nb doctor` sees of a run's pictures: drawn now, or read from disk."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import torch

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.guards import Finding, say, unknown
from imagen_nb.engine.validation import describe_samples
from imagen_nb.pictures.captioned import evenly
from imagen_nb.recipes import Recipe
from imagen_nb.runs.results import read_pictures
from imagen_nb.runs.setup import open_data, trained_stages
from imagen_nb.store.config import counted
from imagen_nb.training import validation_loss

__all__ = ["FEW", "SMALL", "look_at_drawing", "draw_model", "picture_stats"]

SMALL = 20_000_000  # parameters of all stages; so many draw in seconds on any machine
FEW = 8  # pictures looked at, and drawn by small networks


def look_at_drawing(run: Path, recipe: Recipe, n: int | None, shown: dict) -> Iterator[Finding]:
    "Fill `shown` with what is known of each stage's pictures: drawn now, or read from a finished run on drawn scenes."
    if recipe.data is None:
        shown |= read_samples(run, open_data(recipe, "test"))
    n = FEW * is_small(recipe) if n is None else n
    if not n:
        return (yield unknown("drawing", "nothing drawn now: --draw N draws N pictures"))
    if not (run / "captions").is_dir():
        return (yield unknown("drawing", "no cached captions"))
    drawn = draw_samples(run, recipe, n)
    shown |= drawn
    yield say(
        "drawing",
        f"{counted(n, 'picture')} drawn now at {', '.join(drawn) or 'no stage'}, for the guards below",
    )


def is_small(recipe: Recipe) -> bool:
    "Do its networks draw in seconds on any machine?"
    with torch.device("meta"):
        return sum(p.numel() for c in recipe.stages for p in c.network.build().parameters()) < SMALL


def draw_samples(run: Path, recipe: Recipe, n: int) -> dict:
    "Pictures of n training captions by the newest averages; after an untrained stage true pictures are enlarged."
    stages, world = trained_stages(recipe, run), open_data(recipe)
    text, first = EmbeddingCache.open(run / "captions"), evenly(world, n)
    others = (i for i in range(len(world)) if i not in first)
    known = (i for i in chain(first, others) if world.caption(i) in text)  # not all in a short run
    indices = list(islice(known, n))
    images: dict[int, torch.Tensor] = {}
    extra: dict[str, dict] = {}
    embedded = text[[world.caption(i) for i in indices]]
    for stage in (o for o in stages if o.is_trained):
        size, low = stage.config.size, stage.config.lowres_size
        lowres = (
            None if low is None else images[low] if low in images else world.images(indices, low)
        )
        images[size] = stage.sample(embedded, lowres, seeds=indices)
        extra[f"{size}px"] = dict(validation=validation_loss(stage, world, text))
    shown = show(images, {size: world.images(indices, size) for size in images})
    return {name: shown[name] | extra[name] for name in shown}


def read_samples(run: Path, world) -> dict:
    "The first pictures of a finished run on drawn scenes."
    files = {
        int(p.stem[6:]): [
            int(o.stem[:5]) for o in sorted(p.parent.glob(f"*{p.stem[5:]}.png"))[: 2 * FEW]
        ]
        for p in (run / "samples").glob("00000_*.png")
    }
    return show(
        {size: read_pictures(run, rows, size) for size, rows in files.items()},
        {size: world.images(rows, size) for size, rows in files.items()},
    )


def picture_stats(
    images,  # (b 3 h w) in [-1, 1]
    lowres=None,  # what they enlarge, (b 3 h' w')
) -> dict:
    "Numbers about pictures: a row of samples.jsonl, the contrast in a picture, the likeness of neighbouring pixels."
    centred = images - images.mean((2, 3), keepdim=True)
    pairs = (centred[..., 1:] * centred[..., :-1]).mean() + (
        centred[..., 1:, :] * centred[..., :-1, :]
    ).mean()
    return dict(
        **describe_samples(images, lowres),
        contrast=images.std((2, 3)).mean().item(),
        neighbours=(pairs / 2 / centred.square().mean().clamp(min=1e-12)).item(),
    )


def show(images: dict, truth: dict | None = None) -> dict:
    "Numbers about the pictures of each stage, beside those of the stage before and of true pictures, if there are any."
    shown, before = {}, None
    for size, pictures in sorted(images.items()):
        shown[f"{size}px"] = dict(
            stats=picture_stats(pictures, before),
            truth=truth and picture_stats(truth[size])["saturated"],
            before=before is not None and before.mean((0, 2, 3)).tolist(),
        )
        before = pictures
    return shown


def draw_model(path: Path, n: int) -> dict:
    "Pictures of drawn scenes' captions by a saved cascade."
    imagen, world = Imagen.from_pretrained(path), ShapesWorld("test", level="full")
    images = imagen.sample([world.caption(i) for i in range(n)], return_all=True)
    return show({stage.config.size: pictures for stage, pictures in zip(imagen.stages, images)})
