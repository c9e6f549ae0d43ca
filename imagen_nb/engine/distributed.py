"""One process among those that train together: what they tell each other, and the gradient they share."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from imagen_nb.engine.samples import in_parts
from imagen_nb.pictures.pixels import Batch
from imagen_nb.stage import Draws, Stage


def this_process():
    "This process as Accelerate sees it: its number, how many there are, its device."
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())


def any_rank(
    accelerator,  # of this process
    flag: bool,  # this process's answer
) -> bool:  # the same on every process
    "True everywhere if true anywhere."
    if accelerator.num_processes == 1:
        return flag
    answer = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(answer, "sum") > 0)


def gradient(
    stage: Stage,  # its network as Accelerate wraps it
    batch: Batch,  # this process's share of a step
    draws: Draws,  # its random numbers
    parts: int,  # micro-batches
    accelerator,  # of this process
) -> Tensor:  # losses, (b,)
    "Gradient of the mean loss, by micro-batches; with the last one processes average it."
    losses: list[Tensor] = []
    for k, part in enumerate(in_parts(batch, draws, parts), 1):
        with nullcontext() if k == parts else accelerator.no_sync(stage.network):
            losses.append(stage.loss(*part))
            accelerator.backward(losses[-1].sum() / len(batch.index))
    return torch.cat(losses).detach()


def is_finite(
    network: nn.Module,  # any
) -> bool:  # no weight is NaN or infinite
    "May these weights be kept?"
    return all(bool(p.isfinite().all()) for p in network.parameters())
