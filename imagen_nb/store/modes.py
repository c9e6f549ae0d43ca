"""State of torch that anyone may set: put aside for a while, and back again whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.overrides import has_torch_function

__all__ = ["evaluating", "plain_torch"]


@contextmanager
def evaluating(
    network: nn.Module,  # that is asked, not trained
) -> Iterator[None]:
    "Switch dropout and its like off and cast weights once; afterwards each part is in the mode it was in."
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with casting_once(next(network.parameters()).device.type):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def casting_once(
    kind: str,  # of device: "cuda", "cpu", ...
) -> Iterator[None]:
    "Inside, `torch.autocast` casts each weight at its first use alone: no weight may change meanwhile."
    if not torch.amp.is_autocast_available(kind):
        yield
        return
    with torch.autocast(kind, enabled=False, cache_enabled=True):
        try:
            yield
        finally:
            torch.clear_autocast_cache()  # torch would keep it to the end of an outer block


@contextmanager
def plain_torch() -> Iterator[None]:
    "What is made without a word is float32 on the CPU, whatever torch's defaults were set to."
    dtype, device, had_one = torch.get_default_dtype(), torch.get_default_device(), _has_device()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)  # any default, even the CPU, makes torch choose slower kernels
    had_one = had_one and not _has_device()  # else it is a block `with torch.device(...)`
    try:
        with torch.device("cpu") if _has_device() else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
        if had_one:
            torch.set_default_device(device)


def _has_device() -> bool:
    "Is there a default device, or anything else that torch asks before each call?"
    return has_torch_function((torch.empty(0, dtype=torch.float32, device="cpu"),))
