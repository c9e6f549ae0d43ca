"""What is asked for: untrained models, seeds, sides and given pictures are refused before anything is drawn.

A stage is anything with `is_trained` and a `config` that has `size`, `lowres_size`, `factor` and `network.stride`.
"""

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["size_step", "check_request"]


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
    seeds: list[int],  # one per picture
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
    if len(seeds) != b or not b:
        raise ValueError(f"sample: seeds, got {len(seeds)}, expected one for each of {b} pictures")
    configs = [o.config for o in stages]
    sides, step = _first_sides(configs[0], b, lowres, size), size_step(configs)
    if any(s < 1 or s % step for s in sides) or len(sides) != 2:
        near = " x ".join(str(max(step, round(s / step) * step)) for s in sides)
        raise ValueError(
            f"sample: size, got {' x '.join(map(str, sides))} pixels, expected"
            f" multiples of {step}; the nearest is {near}"
        )
    return sides[0] * configs[0].factor, sides[1] * configs[0].factor


def _first_sides(config, b: int, lowres: Tensor | None, size) -> tuple:
    "Where drawing begins: at given pictures, or at the base's size."
    if lowres is None:
        if config.lowres_size:
            raise ValueError(f"sample: lowres, got None, expected {b} pictures")
        return (size, size) if isinstance(size, int) else tuple(size or (config.size, config.size))
    if not config.lowres_size:
        raise ValueError("sample: lowres, got pictures, expected None: this is the base")
    if size is not None:
        raise ValueError(
            f"sample: size, got {size} and lowres, expected one of them:"
            " the size of given pictures decides"
        )
    if lowres.ndim != 4 or lowres.shape[:2] != (b, 3):
        raise ValueError(f"sample: lowres, got {tuple(lowres.shape)}, expected ({b}, 3, h, w)")
    if not lowres.is_floating_point() or not (lowres.abs() < 1.001).all():
        raise ValueError("sample: lowres, got values outside [-1, 1], expected floats inside")
    return tuple(lowres.shape[-2:])
