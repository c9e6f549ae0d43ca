"""Random numbers and orders that depend on a name, not on what was drawn before."""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def permute(
    n: int,  # number of samples drawn before this one
    length: int,  # size of the dataset
    seed: int | str,  # another seed, another order
) -> int:  # data position in [0, length)
    "Position of the n-th sample: a new permutation each epoch, in constant memory."
    if n < 0 or length < 1:
        raise ValueError(
            f"permute: n and length, got {n} and {length}, expected n >= 0 and length >= 1"
        )
    epoch, i = divmod(n, length)
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    while True:  # walk the cycle until it re-enters the dataset
        i = _feistel(i, half, f"permute {seed} {epoch} {length}")
        if i < length:
            return i


def _feistel(i: int, half: int, key: str, rounds: int = 4) -> int:
    "A keyed bijection of 0..4**half - 1: each round mixes one half of the bits into the other."
    mask, left, right = (1 << half) - 1, i >> half, i & (1 << half) - 1
    for k in range(rounds):
        digest = hashlib.blake2b(f"{key} {k} {right}".encode(), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
    return left << half | right


def keyed_share(
    key: str,  # names the draw
) -> float:  # in [0, 1), the same for the same key on every machine
    "A number that depends on its name alone."
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def keyed_generator(
    *key,  # whole numbers and strings that name the draw
) -> torch.Generator:  # on the CPU, the same for the same key on every machine
    "Random numbers that depend on a name, not on what was drawn before."
    try:
        parts = [k if isinstance(k, str) else int(operator.index(k)) for k in key]
    except TypeError:
        raise ValueError(
            f"keyed_generator: key, got {key!r}, expected whole numbers and strings"
        ) from None
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))


def keyed_noise(
    seeds: Sequence[int] | Tensor,  # one whole number per picture, (b,)
    shape: Sequence[int],  # of one picture, such as (3, 64, 64)
    stream: int | str = 0,  # which of a picture's draws
    device: str | torch.device | None = None,  # where the result goes; drawn on the CPU
) -> Tensor:  # unit Gaussian noise, (b, *shape), float32
    "Noise whose row k depends on `seeds[k]` and `stream` only, whatever the batch."
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    kind: Any = dict(
        dtype=torch.float32, device="cpu"
    )  # not torch's defaults, which anyone may set

    def draw(s):
        return torch.randn(tuple(shape), generator=keyed_generator("noise", s, stream), **kind)

    rows = [draw(s) for s in seeds]
    if not rows:
        raise ValueError("keyed_noise: seeds, got none, expected at least one")
    return torch.stack(rows).to(device)
