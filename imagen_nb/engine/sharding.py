"""A run that is shared out (FSDP2): every process has a part of each weight, of its average and of optimizer state.

A tensor of which a process has some rows is torch's DTensor: arithmetic with it gives what the whole would give, and
every process must take part in it. Where a run is not sharded there are none, and nothing here is imported from torch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from imagen_nb.engine.blocks import blocks_of
from imagen_nb.store.checkpoint import checkpoints, load_meta, prune, sweep
from imagen_nb.store.files import CheckpointError
from imagen_nb.store.manifest import check_file, read_manifest
from imagen_nb.store.saving import Saving
from imagen_nb.store.shards import Groups, read_parts, shapes

if TYPE_CHECKING:
    from imagen_nb.engine.distributed import Process

PATIENCE = timedelta(days=1)  # for the slowest process to write its part


def is_spread(
    x: Tensor | nn.Module,  # any
) -> bool:  # it, or its first weight, is in parts
    "Does every process have a part of it alone?"
    first = next(x.parameters(), None) if isinstance(x, nn.Module) else x
    return hasattr(first, "placements")


def own_part(
    x: Tensor,  # perhaps in parts
) -> Tensor:  # what this process has of it; nothing where there are more processes than rows
    "The part that is here."
    return x.to_local() if is_spread(x) else x  # type: ignore[attr-defined]


def on_whole(
    f: Callable[[Tensor], Tensor],  # of matrices (k rows cols), each by itself
    m: Tensor,  # such matrices; in parts: every process has some rows of all of them
) -> Tensor:  # f(m), shared out like m
    "Every process is given whole matrices for a while, an equal number, so that f is computed once."
    if not is_spread(m):
        return f(m)
    from torch.distributed.tensor import DTensor, Shard

    mesh, apart = m.device_mesh, [Shard(0)]  # type: ignore[attr-defined]
    mine = f(m.redistribute(placements=apart).to_local())  # type: ignore[attr-defined]
    done = DTensor.from_local(mine, mesh, apart, shape=m.shape, stride=m.stride())
    return done.redistribute(placements=m.placements)  # type: ignore[attr-defined]


class Shards:
    "What processes do together so that none of them holds it all."

    def __init__(
        self,
        process: Process,  # this one
    ):
        from torch.distributed.device_mesh import init_device_mesh

        self.process = process
        self.mesh = init_device_mesh(process.device.type, (process.ranks,))
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)  # to save and load
        self.has_weights = False  # from the start

    def begin(
        self,
        bare: nn.Module,  # a network without data
        start: nn.Module,  # the same with weights, of which the first process's count; or without
    ) -> tuple[nn.Module, nn.Module]:  # the network, its average
        "Every process takes its part of the weights, twice; no process has a second whole."
        network, average = (self.spread(copy.deepcopy(bare), start) for _ in range(2))
        average.requires_grad_(False)  # else evaluating would keep casts of whole weights
        self.has_weights = not self.process.any(next(start.parameters()).is_meta)
        if self.has_weights:
            self.fill(network, start)
            for a, p in zip(average.parameters(), network.parameters()):
                a.copy_(p.detach())
        return network.train(), average.train()

    def spread(self, bare: nn.Module, start: nn.Module) -> nn.Module:
        "Room for this process's parts; in use, a block at a time is in one piece."
        from torch.distributed.fsdp import fully_shard

        for part in [*blocks_of(bare), bare]:
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True)
        bare.to_empty(device=self.process.device)
        for b, value in zip(bare.buffers(), start.buffers()):
            b.copy_(value)  # all of it everywhere
        return bare

    @torch.no_grad()
    def fill(self, network: nn.Module, start: nn.Module):
        "Share out weights, one after the other."
        from torch.distributed.tensor import distribute_tensor

        for p, q in zip(network.parameters(), start.parameters()):
            value = q.detach().to(self.process.device, torch.float32)
            p.copy_(distribute_tensor(value, self.mesh, p.placements))  # type: ignore[attr-defined]

    # ------------------------------------------------------------ checkpoints

    def save(
        self,
        path: Path,  # directory to make or to replace
        tensors: Groups,  # this process's parts
        meta: dict,  # of the run
        keep: int,  # checkpoints that stay
    ) -> Saving:  # still going on
        "Begin to save; training may go on."
        return Saving(path, tensors, meta, self.group, partial(prune, path.parent, keep))

    def newest(
        self,
        out: Path,  # folder of step directories
    ) -> Path | None:  # None: there is none
        "The newest sound checkpoint, the same for all; one that is damaged is named and passed over."
        if self.process.rank == 0:
            sweep(out)
        told = [checkpoints(out)]
        distributed.broadcast_object_list(told, group_src=0, group=self.group)
        for folder in told[0]:
            problem = self.damage(folder)
            if not self.process.any(problem is not None):
                return folder
            why = problem or f"{folder} is damaged, another process says"
            warnings.warn(f"Trainer: {why}; going back to the checkpoint before")
        if not self.has_weights:
            raise CheckpointError(
                f"Trainer: {out}, got no sound checkpoint, expected one to go on from;"
                " delete the folder to begin anew"
            )
        return None

    def damage(self, folder: Path) -> CheckpointError | None:
        "Each process reads its share of the files, and says what is wrong with them."
        try:
            files = read_manifest(folder)
            for name in sorted(files)[self.process.rank :: self.process.ranks]:
                check_file(folder / name, files[name])
        except CheckpointError as e:
            return e
        return None

    def load(
        self,
        folder: Path,  # a checkpoint, of any number of processes
        tensors: Groups,  # this process's parts, to be filled
    ) -> dict:  # meta
        "Read this process's parts."
        read_parts(folder, tensors, self.group)
        return load_meta(folder)

    def kept(
        self,
        folder: Path,  # a checkpoint, of any number of processes
    ) -> dict[str, Tensor]:  # without data
        "What it holds of optimizers."
        return shapes(folder).get("optimizer", {})
