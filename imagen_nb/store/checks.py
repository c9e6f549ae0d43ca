"""What a function refuses: one line at its border, one sentence for whoever gave it the wrong thing."""

import math

import torch
from torch import Tensor

from imagen_nb.store.config import shown

__all__ = [
    "alike",
    "as_device",
    "check",
    "check_among",
    "floats",
    "per_sample",
    "as_plain",
    "rises",
    "told",
    "as_whole",
]


def check(
    fine: object,  # true where the input is allowed; a tensor: entry by entry
    what: str,  # the function, a colon, the argument
    got,  # what the argument was
    expected: str,  # what it may be
    wait: bool = False,  # look at a tensor even where that makes a GPU wait
):
    "Refuse an input in one sentence. A tensor is looked at only where looking costs nothing."
    if isinstance(fine, Tensor):
        free = fine.device.type == "cpu" and not torch.compiler.is_compiling()
        fine = bool(fine.all()) if free or wait else True
    if not fine:
        raise ValueError(f"{what}, got {got}, expected {expected}")


def check_among(
    what: str,  # the function, a colon, the argument
    value,  # what the argument was
    choices,  # what it may be, two or more
):
    "Refuse a name that is not among a few."
    *most, last = map(repr, choices)
    check(value in choices, what, repr(value), f"{', '.join(most)} or {last}")


def as_plain(
    value,  # anything
):  # a number of numpy or torch as Python's own; anything else as it is
    "Numbers out of arrays are numbers."
    return value.item() if getattr(value, "ndim", None) == 0 else value


def as_whole(
    what: str,  # the function, a colon, the argument
    value,  # what the argument was
    least: int = 1,  # smallest value
    most: int | None = None,  # largest value; None: there is none
) -> int:
    "Refuse anything but a whole number; 2.0 and True are none."
    n = as_plain(value)
    fine = type(n) is int and n >= least and (most is None or n <= most)
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    check(fine, what, shown(value), f"{limits}, a whole number")
    return n


def as_device(
    what: str,  # the function, a colon, the argument
    value,  # what the argument was
) -> torch.device:
    "Refuse what names no device of this machine."
    try:
        device = torch.device(value)
        torch.empty(0, dtype=torch.float32, device=device)
    except (TypeError, RuntimeError, AssertionError) as e:  # no name of a device; no such device
        reason = str(e).splitlines()[0]
        raise ValueError(
            f"{what}, got {shown(value)}, expected a device of this machine, such as 'cpu' ({reason})"
        ) from e
    return device


def per_sample(
    what: str,  # the function, a colon, the argument
    value,  # what the argument was
    b: int,  # how many samples there are
) -> float | Tensor:  # the same; a number of numpy as Python's own
    "Refuse anything but one finite number, or one for each sample."
    fine: bool | Tensor
    if isinstance(value, Tensor):
        fine = _is_numeric(value) and tuple(value.shape) in ((), (b,)) and value.isfinite()
    else:
        value = as_plain(value)
        fine = type(value) in (int, float) and math.isfinite(value)
    got = value if isinstance(value, Tensor) else repr(value)
    check(fine, what, got, f"a finite number or one per sample ({b},)")
    return value


def floats(
    x: Tensor,  # any real dtype
    what: str,  # the function, a colon, the argument
) -> Tensor:  # float64 stays, everything else becomes float32
    "At least float32: diffusion arithmetic is not done in half precision."
    check(_is_numeric(x), what, x, "a tensor of numbers")
    return x if x.dtype == torch.float64 else x.float()


def alike(
    name: str,  # the function that asks
    **tensors: Tensor,  # its arguments by name, floats
) -> list[Tensor]:  # the same, at least float32
    "The tensors that meet in a formula: of one shape, on one device, in one precision."

    def kind(x):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return None
        return x.shape, x.device, x.dtype == torch.float64

    kinds = {kind(x) for x in tensors.values()}
    if len(kinds) > 1 or None in kinds:
        got = ", ".join(f"{key} {told(x)}" for key, x in tensors.items())
        raise ValueError(
            f"{name}: got {got}, expected floats of equal shapes,"
            " devices and precision (float64 or not)"
        )
    return [x if x.dtype == torch.float64 else x.float() for x in tensors.values()]


def rises(
    x: Tensor,  # a row of numbers, (n,)
    least: int = 2,  # how many there must be
) -> bool | Tensor:  # False, or one answer for each pair of neighbours
    "Whether each number is above the one before it."
    return isinstance(x, Tensor) and x.ndim == 1 and len(x) >= least and x.diff() > 0


def told(x) -> str:
    "A tensor in words, without its values; anything else as Python writes it."
    if not isinstance(x, Tensor):
        return repr(x)
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def _is_numeric(x) -> bool:
    return isinstance(x, Tensor) and not x.is_complex() and x.dtype != torch.bool
