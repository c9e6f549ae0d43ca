"""Measure a claim about sampling: what the sampler saw on its way, and numbers with intervals.

The pages in `nbs/experiments` use these; `tools/measure/run_experiments.py` draws what they show.
"""

import dataclasses
import random
from collections.abc import Callable

import torch
from torch import Tensor

from imagen_nb.data import ShapesWorld, render
from imagen_nb.lab.oracle import read
from imagen_nb.pictures.pixels import resize
from imagen_nb.pictures.scenes import Scene, pair_places, quarter_places, radius_of
from imagen_nb.stage import Stage
from imagen_nb.store.keyed import keyed_generator
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
    "frechet_distance",
    "bootstrap_mean",
    "jackknife",
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


def frechet_distance(
    a: Tensor,  # features of one set of pictures, (n d)
    b: Tensor,  # of another, (m d)
) -> float:  # squared distance, 0 for equal means and covariances
    "Distance between the two Gaussians fitted to a and b: FID's formula, with any features."
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"frechet_distance: features, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}, expected (n d) and (m d) with n, m > 1"
        )
    a, b = a.double(), b.double()
    root = _square_root(torch.cov(a.T).reshape(a.shape[1], -1))
    other = torch.cov(b.T).reshape(b.shape[1], -1)
    shared = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    spread = root.square().sum() + other.trace() - 2 * shared  # trace of root @ root
    return ((a.mean(0) - b.mean(0)).square().sum() + spread).item()


def _square_root(matrix: Tensor) -> Tensor:
    "Of a symmetric matrix without negative eigenvalues."
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


# ---------------------------------------------------------------- intervals


def bootstrap_mean(
    values: Tensor,  # one number per caption, (n,)
    resamples: int = 4000,  # draws of n captions with replacement
) -> dict:  # mean, low and high (95 %), n
    "A mean with its percentile bootstrap interval over captions; the draws are keyed."
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(
            f"bootstrap_mean: values, got {tuple(values.shape)}, expected (n,) "
            "finite numbers, n > 1"
        )
    n = len(values)
    g = keyed_generator("bootstrap", n)
    rows = torch.randint(n, (resamples, n), generator=g, device="cpu")
    ends = torch.tensor([0.025, 0.975], dtype=torch.float32, device="cpu").double()
    low, high = values[rows].mean(1).quantile(ends).tolist()
    return dict(mean=values.mean().item(), low=low, high=high, n=n)


def jackknife(
    statistic: Callable,  # statistic(kept) -> float, kept: int64 (n,) or (n-1,)
    n: int,  # captions
) -> dict:  # mean (the statistic of all), low and high (95 %), n
    """A statistic of all captions, plus and minus 1.96 jackknife standard errors.

    For statistics that a bootstrap would bias: captions drawn twice shrink a covariance.
    """
    if n < 2:
        raise ValueError(f"jackknife: n, got {n}, expected 2 or more")
    every = torch.arange(n, device="cpu")
    left_out = [statistic(every[every != k]) for k in range(n)]
    without = torch.tensor(left_out, dtype=torch.float32, device="cpu").double()
    error = ((n - 1) * without.var(correction=0)).sqrt().item()
    whole = statistic(every)
    return dict(mean=whole, low=whole - 1.96 * error, high=whole + 1.96 * error, n=n)
