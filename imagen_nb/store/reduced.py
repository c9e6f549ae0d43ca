"""Weights in fewer bits: a float32 matrix as small whole numbers and a scale for each row or group.

A number is stored as its sign and its magnitude, so that minus zero survives as well: what `restore_tensors` gives is
what was rounded, bit for bit. Matrices take 8 bits with one float32 scale for each row. A table of words, of which a
caption reads a few rows, takes 4 bits with one float16 scale for each 32 numbers. Vectors stay in float32.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["REDUCED", "read_reduced", "reduce_tensors", "restore_tensors", "write_reduced"]

REDUCED = "reduced.safetensors"  # in a folder of a text model, in place of its weights
GROUP = 32  # numbers of a row that share a scale, in 4 bits
SCALE, EIGHT, FOUR = ":scale", ":8bit", ":4bit"  # after a tensor's name


def reduce_tensors(
    tensors: dict[str, Tensor],  # float weights by name: matrices and vectors
    words: str,  # name of the table of words, (n d) with d a multiple of 32
) -> dict[str, Tensor]:  # what is stored, by name and kind
    "Round matrices to 8 bits and the table of words to 4."
    stored = {}
    for name, value in tensors.items():
        value = value.detach().float()
        if value.ndim != 2:
            stored[name] = value.contiguous()
        elif name == words:
            stored |= _four_bits(name, value)
        else:
            scale = (value.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            codes = _codes((value / scale).round(), 8)
            stored |= {name + EIGHT: codes, name + SCALE: scale}
    if words + FOUR not in stored:
        raise ValueError(f"reduce_tensors: words, got {words!r}, expected the name of a matrix")
    return stored


def restore_tensors(
    stored: dict[str, Tensor],  # what `reduce_tensors` gave
) -> dict[str, Tensor]:  # float32 by name, in the shapes of before
    "The weights that were rounded."
    tensors = {}
    for key, value in stored.items():
        name, _, kind = key.partition(":")
        if not kind:
            tensors[name] = value
        elif ":" + kind in (EIGHT, FOUR):
            if name + SCALE not in stored:
                raise ValueError(f"restore_tensors: {name}, got no scale, expected one")
            restore = _from_eight if ":" + kind == EIGHT else _from_four
            tensors[name] = restore(value, stored[name + SCALE])
    return tensors


def write_reduced(
    file: Path,  # to write
    stored: dict[str, Tensor],  # what `reduce_tensors` gave
) -> str:  # sha256 of the file
    "Write reduced weights."
    from safetensors.torch import save

    file.write_bytes(data := save(stored, metadata={"format": "pt"}))
    return hashlib.sha256(data).hexdigest()


def read_reduced(
    file: Path,  # that `write_reduced` wrote
    sha256: str,  # of its bytes
) -> dict[str, Tensor]:  # float32 by name
    "Read and restore weights; a file with another digest is refused."
    from safetensors.torch import load

    data = file.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(
            f"read_reduced: {file} is damaged, got sha256 {found}, expected {sha256};"
            " fetch or install it again"
        )
    return restore_tensors(load(data))


# ---------------------------------------------------------------- bits


def _levels(bits: int) -> Tensor:  # (2^bits,)
    "The number that each code stands for: the highest bit is the sign."
    magnitudes = torch.arange(2.0 ** (bits - 1), dtype=torch.float32, device="cpu")
    return torch.cat([magnitudes, -magnitudes])


def _codes(numbers: Tensor, bits: int) -> Tensor:  # uint8, of the same shape
    "Sign and magnitude of whole numbers."
    return (numbers.abs() + 2 ** (bits - 1) * numbers.signbit()).to(torch.uint8)


def _four_bits(name: str, value: Tensor) -> dict[str, Tensor]:
    "Two numbers in a byte, the first in its upper half."
    if value.shape[1] % GROUP:
        raise ValueError(
            f"reduce_tensors: {name}, got {value.shape[1]} columns, expected a multiple of {GROUP}"
        )
    groups = value.reshape(-1, GROUP)
    scale = (groups.abs().amax(1, keepdim=True) / 7).half()
    numbers = (groups / _wide(scale)).round().clamp(-7, 7)
    codes = _codes(numbers, 4).reshape(len(value), -1, 2)
    return {
        name + FOUR: codes[..., 0] * 16 + codes[..., 1],
        name + SCALE: scale.reshape(len(value), -1),
    }


def _wide(scale: Tensor) -> Tensor:
    "A float16 scale to divide by."
    return scale.float().clamp(min=1e-8)


def _from_eight(codes: Tensor, scale: Tensor) -> Tensor:  # (n d) and (n 1) -> (n d)
    return _levels(8).index_select(0, codes.reshape(-1).int()).reshape(codes.shape) * scale


def _from_four(codes: Tensor, scale: Tensor) -> Tensor:  # (n d/2) and (n d/32) -> (n d)
    pairs = torch.cartesian_prod(_levels(4), _levels(4))  # (256 2): what each byte stands for
    numbers = torch.nn.functional.embedding(codes.int(), pairs).reshape(-1, GROUP)
    return (numbers * _wide(scale).reshape(-1, 1)).reshape(len(codes), -1)
