"""Measure a claim about sampling: what the sampler saw on its way, and how right a drawing is.

The pages in `nbs/experiments` use these; `tools/measure/run_experiments.py` draws what they show.
"""

import dataclasses
import random

import torch
from torch import Tensor

from imagen_nb.data import ShapesWorld, render
from imagen_nb.lab.oracle import read
from imagen_nb.pictures.pixels import resize
from imagen_nb.pictures.scenes import Scene, pair_places, quarter_places, radius_of
from imagen_nb.stage import Stage
from imagen_nb.text import TextEmbedding
from imagen_nb.thresholding import row_quantile
from imagen_nb.thresholding import threshold as apply_threshold

__all__ = [
    "sample_watched",
    "right_share",
    "drawing_error",
    "saturated_share",
    "other_drawing",
    "thumbnails",
]


# ---------------------------------------------------------------- sampling


def sample_watched(
    stage: Stage,  # the base of a cascade
    text: TextEmbedding,  # captions, (b l d)
    seeds: list[int],  # one per picture
    *,
    threshold: str | None,  # None, "static" or "dynamic"
    **options,  # of `Stage.sample`: steps, w, sampler
) -> tuple[Tensor, Tensor, Tensor]:  # last x0_hat, not clipped; share outside, scale (b steps)
    """`Stage.sample`, with a look at the raw x0_hat of every step, before its thresholding.

    Two numbers of each picture and step: the share of channel values outside [-1, 1], and
    the 99.5 % quantile of |x0_hat|, which is the scale s of dynamic thresholding.
    """
    looks: list[Tensor] = []
    outside: list[Tensor] = []
    scale: list[Tensor] = []

    def watch(x0_hat):
        looks.append(x0_hat)
        outside.append((x0_hat.abs() > 1).float().flatten(1).mean(1))
        scale.append(row_quantile(x0_hat.abs().flatten(1), 0.995))

    stage.sample(text, seeds=seeds, threshold=threshold, watch=watch, **options)
    return apply_threshold(looks[-1], threshold), torch.stack(outside, 1), torch.stack(scale, 1)


# ---------------------------------------------------------------- measures


def right_share(
    row: dict[str, bool | None],  # what `ShapesWorld.score` gave
) -> float:  # share of the attributes that apply, in [0, 1]
    "Alignment of one picture: how many of its caption's attributes the oracle reads."
    marks = [mark for name, mark in row.items() if name != "all" and mark is not None]
    if not marks:
        raise ValueError(f"right_share: row, got {row}, expected at least one attribute")
    return sum(marks) / len(marks)


def drawing_error(
    world: ShapesWorld,  # whose oracle reads
    image: Tensor,  # a picture, (3 h w) in [-1, 1]
) -> float:  # 0 for a perfect drawing, whatever its caption was
    """Root mean square distance from a picture to the drawing it claims to be.

    The oracle says what is there, that scene is drawn, and the two are compared. What the
    oracle cannot name is not drawn, so that it counts in full.
    """
    found = read(image, world.level)
    named = tuple(thing for thing in found.things if thing.shape != "unknown")
    claimed = render([dataclasses.replace(found, things=named)], image.shape[-1])[0]
    return (image.float().cpu() - claimed).square().mean().sqrt().item()


def saturated_share(
    images: Tensor,  # (b 3 h w) in [-1, 1]
) -> Tensor:  # share of channel values beyond 0.99, (b,)
    "How much of a picture sits at the ends of the range."
    return (images.abs() > 0.99).float().flatten(1).mean(1)


def other_drawing(
    scene: Scene,  # of level "full"
    key: str,  # another key, another drawing
) -> Scene:  # what the captions say of it is the same
    "The same things at other places and in other radii, by the law that places all scenes."
    rng, n = random.Random(f"other drawing {key}"), len(scene.things)
    if scene.relation:
        places = pair_places(rng, scene.relation)
    elif n == 1:
        x, y = (0.5 + (2 * rng.random() - 1) * 0.15 for _ in range(2))
        places = [(x, y)]
    else:
        places = quarter_places(rng, n)
    things = (
        dataclasses.replace(thing, x=x, y=y, r=radius_of(rng, str(thing.size)))
        for thing, (x, y) in zip(scene.things, places)
    )
    return dataclasses.replace(scene, things=tuple(things))


def thumbnails(
    images: Tensor,  # (b 3 h w) in [-1, 1]
    side: int = 4,  # pixels
) -> Tensor:  # (b, 3*side*side)
    "Features that hide nothing: the picture itself, at 4x4 pixels."
    return resize(images, side).flatten(1)
