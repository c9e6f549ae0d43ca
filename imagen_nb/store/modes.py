"""State of torch that anyone may set: put aside for a while, and back again whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "plain_torch"]


@contextmanager
def evaluating(
    network: nn.Module,  # that is asked, not trained
) -> Iterator[None]:
    "Switch dropout and its like off; at the end, or after an error, each part is in the mode it was in."
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def plain_torch() -> Iterator[None]:
    "What is made without a word is float32 on the CPU, whatever torch's defaults were set to."
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
