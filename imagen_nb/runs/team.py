"""Processes that one run is shared by: who started them, where they compute, and who waits for whom."""

import os
import re
import sys
from collections.abc import Callable, MutableMapping
from datetime import timedelta

import torch
from torch import Tensor, distributed

from imagen_nb.engine.distributed import Process, team_size
from imagen_nb.store.files import WINDOWS

__all__ = [
    "DEVICES",
    "adopt_slurm",
    "first_node",
    "how_many",
    "leave",
    "prepared_by_first",
    "was_started",
]

DEVICES = ("cuda", "cpu")  # where a run may compute
PATIENCE = timedelta(days=30)  # for which the others wait: captions of a large data set take long


def was_started() -> bool:
    "Has a launcher numbered this process?"
    adopt_slurm(os.environ)
    return "RANK" in os.environ


def adopt_slurm(
    env: MutableMapping[str, str],  # as `srun` sets it; changed into what `torchrun` would set
):
    "Tasks of one `srun` are the processes of a run; a shell inside an allocation is none of them."
    names = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_STEP_NUM_TASKS", LOCAL_RANK="SLURM_LOCALID")
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return
    env.update({ours: env[theirs] for ours, theirs in names.items()})
    env.setdefault("MASTER_ADDR", first_node(env.get("SLURM_STEP_NODELIST", "localhost")))
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 10000))


def first_node(
    nodes: str,  # as SLURM writes them: "gpu[03-05,9],login"
) -> str:  # "gpu03"
    "Where the first process is."
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    assert found is not None  # it may be empty
    return "".join(part or "" for part in found.groups())


def how_many(
    processes: int | None,  # asked for; None: nobody said
    device: str | None,  # "cuda", "cpu"; None: GPUs where there are some
) -> tuple[int, str]:  # processes; where they compute
    "One process for each GPU; on a CPU one for each core, two at most. No GPU is passed over in silence."
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not gpus:
        raise ValueError("train: device, got cuda, expected cpu: torch finds no GPU here")
    if device == "cpu" or not gpus:
        most = (
            1 if WINDOWS else min(2, os.cpu_count() or 1)
        )  # Windows' torch may lack torchrun's needs
        return processes or most, "cpu"
    if (processes or 1) > gpus:
        raise ValueError(
            f"train: processes, got {processes}, expected at most {gpus}, the GPUs of this machine;"
            " --device cpu trains on the CPU"
        )
    if processes is None and gpus > 1:
        print(f"train: one of {gpus} GPUs; --processes {gpus} takes all", file=sys.stderr)
    return processes or 1, "cuda"


def check_team(
    processes: int | None,  # asked for beside what the launcher says
    device: str | None,  # likewise
):
    "Refuse a wish that contradicts the launcher."
    if processes not in (None, team_size()):
        raise ValueError(
            f"train: processes, got {processes}, expected {team_size()}, as many as were started"
        )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in (None, here):
        way = 'CUDA_VISIBLE_DEVICES="" before the launcher' if device == "cpu" else "--device cpu"
        raise ValueError(f"train: device, got {device}, expected {here}; or {way}")


def prepared_by_first(
    prepare: Callable[[], bool],  # what one process does alone; False: nothing is left to do
) -> bool:  # the same everywhere
    "The first process prepares, the others wait and say so; if it fails, they end too."
    if team_size() == 1:
        return prepare()
    process = Process()
    waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)
    state = torch.tensor(2, device="cpu")  # 2: it failed, 1: go on, 0: nothing to do
    if process.rank == 0:
        try:
            state = torch.tensor(int(prepare()), device="cpu")
        finally:
            tell(state, waiting)
    else:
        print(
            f"process {process.rank} waits until process 0 has read the captions", file=sys.stderr
        )
        tell(state, waiting)
    if state == 2:
        raise SystemExit(2)  # the first has said why
    return bool(state)


def leave():
    "The run is over for this process."
    if distributed.is_initialized():
        distributed.destroy_process_group()


def tell(state: Tensor, group):
    "Everyone has what the first one has."
    distributed.broadcast(state, 0, group=group)
