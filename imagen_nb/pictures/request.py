"""What is asked for: each kind of argument is settled here; what cannot be drawn is refused before anything is drawn.

A stage is anything with `is_trained` and a `config` that has `size`, `lowres_size`, `factor` and `network.stride`.
A text is anything with `tokens` and a `mask`, as a `TextEmbedding` has them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from imagen_nb.store.checks import as_plain, check, told
from imagen_nb.store.config import counted, shown
from imagen_nb.store.text_models import check_captions

__all__ = [
    "check_lowres",
    "check_request",
    "count_captions",
    "count_texts",
    "settle_seeds",
    "size_step",
]


def count_texts(
    what: str,  # the function, a colon, the argument
    text,  # what the argument was
) -> int:  # captions in it
    "Refuse anything but a `TextEmbedding`."
    fine = isinstance(getattr(text, "tokens", None), Tensor) and hasattr(text, "mask")
    got = f"a {type(text).__name__}"
    check(fine, what, got, "a TextEmbedding: what a text encoder makes of captions")
    return len(text.mask)


def count_captions(
    captions,  # what a model was asked to draw
    can_read: bool,  # it has a text encoder
) -> int:  # how many there are
    "A list of captions for a model that reads, a `TextEmbedding` for any."
    what = "Imagen.sample: captions"
    if hasattr(captions, "tokens"):
        return count_texts(what, captions)
    check(not isinstance(captions, str), what, "a string", "a list of captions")
    is_list = isinstance(captions, (list, tuple))
    check(is_list, what, shown(captions), "a list of at least one str")
    check(can_read, what, "text", "a TextEmbedding: this model has no text encoder")
    check_captions("Imagen.sample", captions)
    return len(captions)


def settle_seeds(
    seeds,  # whole numbers in whatever holds them in order; None: 0, 1, 2, ...
    b: int,  # pictures
) -> list[int]:  # one per picture
    "Refuse anything but a whole number for each picture."
    if seeds is None:
        return list(range(b))
    what, expected = "sample: seeds", f"one for each of {counted(b, 'picture')}"
    values: Any = seeds.tolist() if hasattr(seeds, "tolist") else seeds
    is_row = isinstance(values, (Sequence, Iterator)) and not isinstance(values, (str, bytes))
    values = [as_plain(s) for s in values] if is_row else []
    fine = is_row and all(type(s) is int for s in values)
    check(fine, what, shown(seeds), f"a list of whole numbers, {expected}")
    check(len(values) == b and b, what, len(values), expected)
    return values


def size_step(
    configs: Sequence,  # of stages that draw in turn
) -> int:  # sides of the first picture, drawn or given, are multiples of this
    "What every network of the row can halve often enough."
    scale, step = 1, 1
    for c in configs:
        scale *= c.factor
        step = math.lcm(step, c.network.stride // math.gcd(c.network.stride, scale))
    return step


def check_request(
    stages: Sequence,  # who is to draw, in turn
    b: int,  # pictures
    lowres: Tensor | None,  # pictures to enlarge; None: from noise
    size: int | tuple[int, int] | None,  # of the base's pictures
) -> tuple[int, int]:  # sides of the first stage's pictures
    "Refuse what cannot be drawn."
    for stage in stages:
        if not stage.is_trained:
            raise ValueError(
                f"sample: the {stage.config.size} px stage was never trained:"
                " use the stage that fit() returned, or load weights first"
            )
    configs = [o.config for o in stages]
    (h, w), step = _first_sides(configs[0], b, lowres, size), size_step(configs)
    near = " x ".join(str(max(step, round(s / step) * step)) for s in (h, w))
    fine = h >= 1 and w >= 1 and h % step == 0 and w % step == 0
    expected = f"multiples of {step}; the nearest is {near}"
    check(fine, "sample: size", f"{h} x {w} pixels", expected)
    return h * configs[0].factor, w * configs[0].factor


def check_lowres(
    lowres,  # pictures to enlarge, what was given
    b: int,  # pictures wanted
):
    "Refuse anything but a picture for each, as the networks see it."
    what, kind = "sample: lowres", type(lowres)
    name = f"{kind.__module__}.{kind.__name__}".removeprefix("builtins.")
    expected = f"a tensor of floats ({b}, 3, h, w) in [-1, 1]"
    hint = f"{expected}; `to_square` of imagen_nb.pictures.pixels makes one of a picture of PIL"
    check(isinstance(lowres, Tensor), what, f"a {name}", hint)
    is_dense = lowres.layout is torch.strided and not lowres.is_meta
    check(is_dense, what, f"{lowres.layout} on {lowres.device}", expected)
    shape = tuple(lowres.shape)
    check(lowres.ndim == 4 and shape[:2] == (b, 3), what, shape, f"({b}, 3, h, w)")
    if not lowres.is_floating_point():
        raise ValueError(f"{what}, got {told(lowres)}, expected floats in [-1, 1]: x / 127.5 - 1")
    check(lowres.abs() < 1.001, what, "values outside [-1, 1]", "floats inside", wait=True)


def _first_sides(config, b: int, lowres: Tensor | None, size) -> tuple[int, int]:
    "Where drawing begins: at given pictures, or at the base's size."
    if lowres is None:
        check(not config.lowres_size, "sample: lowres", None, f"{counted(b, 'picture')}")
        return _sides((config.size, config.size) if size is None else size)
    check(config.lowres_size, "sample: lowres", "pictures", "None: this is the base")
    got, expected = f"{size} and lowres", "one of them: the size of given pictures decides"
    check(size is None, "sample: size", got, expected)
    check_lowres(lowres, b)
    return lowres.shape[-2], lowres.shape[-1]


def _sides(size) -> tuple[int, int]:
    "Height and width from one whole number or two."
    values: Any = size.tolist() if hasattr(size, "tolist") else size
    values = (
        [as_plain(s) for s in values] if isinstance(values, (tuple, list)) else [values, values]
    )
    fine = len(values) == 2 and all(type(s) is int for s in values)
    check(fine, "sample: size", shown(size), "a whole number of pixels or (height, width)")
    return values[0], values[1]
