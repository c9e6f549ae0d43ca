"""What processes of a run tell each other."""

import torch
from torch import nn


def any_rank(
    accelerator,  # of this process
    flag: bool,  # this process's answer
) -> bool:  # the same on every process
    "True everywhere if true anywhere."
    if accelerator.num_processes == 1:
        return flag
    flag = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def is_finite(
    network: nn.Module,  # any
) -> bool:  # no weight is NaN or infinite
    "May these weights be kept?"
    return all(bool(p.isfinite().all()) for p in network.parameters())
