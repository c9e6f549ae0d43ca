"""Runs that are killed, cut, altered, told to stop and spread over processes: `python -m soak NAME` in `tests/`.

Every run here is forked from a parent that has imported everything and computed nothing, so that a life
costs tenths of a second. `fork` starts one, `team` several that train together.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from mmap import mmap
from pathlib import Path

for name, value in dict(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", ACCELERATE_LOG_LEVEL="error"
).items():
    os.environ.setdefault(name, value)

import accelerate.utils  # noqa: E402, F401  (what a child would import late)
import numpy.ctypeslib  # noqa: E402, F401
import torch  # noqa: E402
import torch._dynamo  # noqa: E402

torch.set_num_threads(1)

from train_worker import Letters, pin_fp32  # noqa: E402

from imagen_nb.data import ShapesWorld  # noqa: E402
from imagen_nb.engine import keeping, logs  # noqa: E402
from imagen_nb.engine.execution import Execution  # noqa: E402
from imagen_nb.stage import Stage, StageConfig  # noqa: E402
from imagen_nb.store.checkpoint import STEP, checkpoints  # noqa: E402
from imagen_nb.training import TrainConfig, Trainer  # noqa: E402
from imagen_nb.unet import UNetConfig  # noqa: E402

PICTURES = 50
STAGE = StageConfig(
    size=8,
    target="x0",
    loss_weight="capped",
    network=UNetConfig(
        dim=8,
        mults=(1,),
        blocks=1,
        attention=(True,),
        head_dim=8,
        text_dim=6,
        text_width=8,
        emb_dim=16,
    ),
)
CONFIG = dict(batch=8, optimizer="adam", lr=1e-3, warmup=4, save_every=4, ema=1.0)
PHASES = (
    "starting",
    "resuming",
    "stepping",
    "saving",
    "pruning",
    "logging",
    "validating",
    "between",
)


def make_trainer(out, steps, **changes) -> Trainer:
    "A small run, in fp32 on every machine."
    pin_fp32()
    torch.manual_seed(0)
    world = ShapesWorld("train", level="quick", size=8, length=PICTURES)
    return Trainer(
        Stage(STAGE),
        world,
        Letters(),
        TrainConfig(**CONFIG | dict(steps=steps) | changes),
        out,
        execution=Execution(progress=False, validate_every=100, sample_every=0),
    )


# ---------------------------------------------------------------- processes


def fork(work) -> int:
    "`work()` in a process of its own: it ends with 0, with 130 if it was told to stop, or with 1."
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float = 120.0) -> int:
    "How a process ended: its code, minus the signal that killed it; TimeoutError after `seconds`, when it is killed."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end in {seconds} s")


def done(work):
    "`work()` in a process of its own, to its end."
    if code := ended(fork(work), 3600):
        raise RuntimeError(f"soak: a run ended with {code}")


def team(n: int, work) -> list[int]:
    "Processes 0 to n - 1 that train together, each calling `work(rank)`."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def member(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(n),
            LOCAL_WORLD_SIZE=str(n),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        work(rank)

    return [fork(lambda rank=rank: member(rank)) for rank in range(n)]


class Watch:
    "What a child is doing, where its parent can see it even after a kill."

    def __init__(self):
        self.memory, (self.read, self.write) = mmap(-1, 16), os.pipe()

    def phase(self) -> str:
        return PHASES[struct.unpack_from("i", self.memory)[0]]

    def step(self) -> int:
        return struct.unpack_from("i", self.memory, 4)[0]

    def enter(self, name: str):
        struct.pack_into("i", self.memory, 0, PHASES.index(name))
        os.write(self.write, bytes([PHASES.index(name)]))

    def wait(self, name: str, seconds: float) -> bool:
        "Was this phase entered?"
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and select.select([self.read], [], [], left)[
            0
        ]:
            if PHASES.index(name) in os.read(self.read, 1):
                return True
        return False

    def close(self):
        [os.close(o) for o in (self.read, self.write)]

    def follow(self, trainer: Trainer, ids: Path | None = None):
        "Note each phase of a run; write the samples of every step that is done into the file `ids`."

        def noted(function, name):
            def call(*args, **kw):
                before = self.phase()
                self.enter(name)
                try:
                    return function(*args, **kw)
                finally:
                    self.enter("between" if before in ("starting", "stepping") else before)

            return call

        for module, name, phase in (
            (keeping, "save_directory", "saving"),
            (keeping, "prune", "pruning"),
            (keeping, "newest_checkpoint", "resuming"),
            (logs.Log, "write", "logging"),
            (trainer.watcher, "validate", "validating"),
        ):
            setattr(module, name, noted(getattr(module, name), phase))
        inner = noted(trainer.train_step, "stepping")
        handle = os.open(ids, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if ids else None

        def step(batch, draws):
            result = inner(batch, draws)
            struct.pack_into("i", self.memory, 4, trainer.step)
            if handle:
                os.write(
                    handle, f"{trainer.step} {' '.join(map(str, batch.index.tolist()))}\n".encode()
                )
            return result

        trainer.train_step = step
        self.enter("starting")


# ---------------------------------------------------------------- what a run left


def saved_step(out: Path) -> int:
    "Steps in the newest checkpoint."
    found = checkpoints(out)
    return int(STEP.fullmatch(found[0].name)[1]) if found else 0


TIMES = ("images_per_s", "waiting", "updating", "saving", "watching", "memory_gib")


def state(out: Path, step: int) -> dict:
    "Weights, averages, optimizer and logs of a finished run, byte for byte but for times."
    folder = out / f"step_{step:08d}"
    files = {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.suffix == ".safetensors" or p.name == "meta.json"
    }
    rows = {
        name: [json.loads(o) for o in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("log", "validation")
    }
    return files | {
        name: [{k: v for k, v in row.items() if k not in TIMES} for row in o]
        for name, o in rows.items()
    }


def differences(a: dict, b: dict) -> list[str]:
    "Names of the parts in which two finished runs differ."
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def bound(k: int, n: int, level: float = 0.95) -> float:
    "Upper end of the one-sided interval for a share, k of n seen (Clopper and Pearson); 3/n, roughly, for k = 0."
    if k == n:
        return 1.0

    def tail(p):
        return sum(chance(i, n, p) for i in range(k + 1))

    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > 1 - level else (low, middle)
    return round(high, 5)


def chance(k: int, n: int, p: float) -> float:
    "Binomial probability."
    from math import comb

    return comb(n, k) * p**k * (1 - p) ** (n - k)


def quantiles(values: list[float]) -> dict:
    "Least, median and greatest."
    v = sorted(values)
    return dict(least=round(v[0], 3), median=round(v[len(v) // 2], 3), greatest=round(v[-1], 3))
