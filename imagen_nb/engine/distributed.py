"""One process among those that train together: what they tell each other, and the gradient they share."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from imagen_nb.engine.samples import in_parts
from imagen_nb.engine.sharding import is_spread, own_part
from imagen_nb.pictures.pixels import Batch
from imagen_nb.stage import Draws, Stage
from imagen_nb.store.modes import plain_torch


class Process:
    "This process as `torchrun` or `accelerate launch` numbered it; without them the only one."

    def __init__(self):
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), team_size()
        self.device, is_gpu = torch.device("cpu"), torch.cuda.is_available()
        if is_gpu:
            self.device = torch.device("cuda", own_gpu())
            torch.cuda.set_device(self.device)
        if self.ranks > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if is_gpu else "gloo")

    def total(self, x: Tensor) -> Tensor:
        "The sum over processes; x stays."
        x = x.clone()
        if self.ranks > 1:
            distributed.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        "True everywhere if true anywhere."
        if self.ranks == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self):
        "Go on when all are here."
        if self.ranks > 1:
            distributed.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        "What averages gradients over processes when the loss calls it; the parameters are the same."
        if self.ranks == 1 or is_spread(network):  # in parts, it does so itself
            return network
        here = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=here, gradient_as_bucket_view=True)


def own_gpu() -> int:
    "Number of this process's GPU on its machine."
    local, there = int(os.environ.get("LOCAL_RANK", -1)), torch.cuda.device_count()
    if local >= there:
        raise ValueError(
            f"Trainer: processes of this machine, got {local + 1} or more, expected at most {there},"
            " one for each GPU"
        )
    return local if local >= 0 else torch.cuda.current_device()


def team_size() -> int:
    "How many processes train together, as their launcher says."
    return int(os.environ.get("WORLD_SIZE", 1))


def gradient(
    stage: Stage,  # its network as the process wraps it
    batch: Batch,  # this process's share of a step
    draws: Draws,  # its random numbers
    parts: int,  # micro-batches
) -> Tensor:  # losses, (b,)
    "Gradient of the mean loss, by micro-batches; with the last one processes average it."
    losses: list[Tensor] = []
    alone = getattr(stage.network, "no_sync", nullcontext)
    for k, part in enumerate(in_parts(batch, draws, parts), 1):
        with nullcontext() if k == parts else alone():
            losses.append(stage.loss(*part))
            (losses[-1].sum() / len(batch.index)).backward()
    return torch.cat(losses).detach()


def is_finite(
    network: nn.Module,  # any; of one in parts, this process's
) -> bool:  # no weight is NaN or infinite
    "May these weights be kept?"
    own = [part for p in network.parameters() if (part := own_part(p)).numel()]
    largest = torch._foreach_norm(own, float("inf"))
    return bool(torch.stack(largest).isfinite().all())  # a GPU is waited for once


# ---------------------------------------------------------------- what torch is told beforehand


@contextmanager
def undisturbed() -> Iterator[None]:
    "Torch as training wants it, whatever other code has set; afterwards it is as it was found."
    with ExitStack() as after:
        for get, put, ours in settings():
            after.callback(put, get())
            put(ours)
        after.enter_context(torch.inference_mode(False))
        after.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):  # a cache would outlive the step that changes the weights
            after.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        after.enter_context(plain_torch())
        yield


def settings() -> list[tuple[Callable, Callable, object]]:
    "What torch is set to, how it is set, and what a run wants."
    ours: list[tuple[Callable, Callable, object]] = [
        (flushes_denormals, torch.set_flush_denormal, True),  # they make a CPU many times slower
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    ]
    if team_size() > 1 and not torch.cuda.is_available():  # threads would wait for each other
        ours.append((torch.get_num_threads, torch.set_num_threads, 1))
    return ours


def flushes_denormals() -> bool:
    "Are numbers next to zero taken for zero?"
    return not (torch.tensor([1e-40], dtype=torch.float32, device="cpu") * 1).any()
