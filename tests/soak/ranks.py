"One run on 1, 2 and 4 processes, by `torchrun`, `accelerate launch` and with a number of processes that changes."

import hashlib
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from torch import distributed

from . import CONFIG, ended, make_trainer, team

HERE = Path(__file__).resolve().parent


def digest(tensors) -> int:
    "48 bits of a digest of tensors: exact in float64, which gloo can gather."
    h = hashlib.sha256()
    for t in tensors:
        h.update(t.detach().cpu().numpy().tobytes())
    return int.from_bytes(h.digest()[:6], "big")


def gather(x: torch.Tensor) -> torch.Tensor:
    "The rows of all processes."
    if not distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x)
    return torch.cat(parts)


def train(out: Path, told: Path, until: int = 200, bypass: bool = False):
    "Train to step `until` of 200 on however many processes there are; process 0 writes a row per step into `told`."
    trainer = make_trainer(out, 200)
    inner = trainer.train_step
    rows, seen = [], {}

    def step(batch, draws):
        if trainer.step == until:
            raise StopIteration
        if bypass:
            trainer.stage.network = trainer.learned.network
        if not seen:  # what the optimizer is about to use
            trainer.learned.optimizers[0].register_step_pre_hook(
                lambda *_: seen.update(
                    gradients=digest(p.grad for p in trainer.learned.network.parameters())
                )
            )
            seen.update(gradients=0)
        result = inner(batch, draws)
        own = [float(seen["gradients"]), float(digest(trainer.learned.network.parameters()))]
        parts = gather(
            torch.tensor([own + [result["losses"].double().mean().item()]], dtype=torch.float64)
        )
        ids = gather(batch.index)
        drawn = gather(
            torch.tensor(
                [float(digest((e, t, k))) for e, t, k in zip(draws.eps, draws.t, draws.keep_text)],
                dtype=torch.float64,
            )
        )
        rows.append(
            dict(
                step=trainer.step,
                loss=parts[:, 2].mean().item(),
                gradients_equal=len(set(parts[:, 0].tolist())) == 1,
                weights_equal=len(set(parts[:, 1].tolist())) == 1,
                ids=ids.tolist(),
                draws=drawn.tolist(),
            )
        )
        return result

    trainer.train_step = step
    try:
        trainer.fit()
    except StopIteration:
        trainer.save()
    if trainer.process.rank == 0:
        with told.open("a") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)


def launched(command: list[str], out: Path) -> list[dict]:
    "A run of 200 steps through a launcher; its rows."
    told = out.with_suffix(".rows")
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(
            [str(HERE.parent), os.environ.get("PYTHONPATH", ""), str(HERE.parents[1])]
        ),
    )
    run = subprocess.run(
        [*command, str(HERE / "rank.py"), str(out), str(told)],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if run.returncode:
        raise RuntimeError(
            f"ranks: {' '.join(command)} ended with {run.returncode}\n{run.stderr[-3000:]}"
        )
    return [json.loads(o) for o in told.read_text().splitlines()]


def torchrun(n: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]


def accelerate(n: int) -> list[str]:
    many = (
        ["--multi_gpu"] if n > 1 else ["--cpu"]
    )  # how `accelerate launch` is told of several processes, GPUs or not
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *many,
        f"--num_processes={n}",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]


def gap(rows: list[dict], reference: list[dict]) -> float:
    "Greatest relative difference of the loss at any step."
    return max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(rows, reference, strict=True))


def compared(rows: list[dict], reference: list[dict]) -> dict:
    "Losses, gradients and draws of a run beside those of one process."
    return dict(
        steps=len(rows),
        loss_gap=gap(rows, reference),
        gradients_unequal=sum(not o["gradients_equal"] for o in rows),
        weights_unequal=sum(not o["weights_equal"] for o in rows),
        other_samples=sum(a["ids"] != b["ids"] for a, b in zip(rows, reference)),
        other_draws=sum(a["draws"] != b["draws"] for a, b in zip(rows, reference)),
    )


def forked(n: int, out: Path, until: int, bypass: bool = False) -> list[dict]:
    "The same without a launcher."
    told = out.with_suffix(".rows")
    pids = team(n, lambda rank: train(out, told, until, bypass))
    if any(codes := [ended(pid, 600) for pid in pids]):
        raise RuntimeError(f"ranks: processes ended with {codes}")
    return [json.loads(o) for o in told.read_text().splitlines()]


def measure(folder: Path, quick: bool) -> dict:
    "Card of launchers and counts."
    steps = 6 if quick else 200
    reference, result = forked(1, folder / "alone", steps), {}
    if quick:
        result["forked_2"] = compared(forked(2, folder / "two", steps), reference)
    else:
        for n, launcher in product((1, 2, 4), (torchrun, accelerate)):
            name = f"{launcher.__name__}_{n}"
            result[name] = compared(launched(launcher(n), folder / name), reference)
    around = forked(2, folder / "around", 3, bypass=True)
    counts, each = ([1, 2], 3) if quick else ([1, 2, 4, 2, 1], 40)
    for k, n in enumerate(counts):
        moved = forked(n, folder / "elastic", each * (k + 1))
    return dict(
        precision="float32",
        batch=CONFIG["batch"],
        runs=result,
        counts=counts,
        each=each,
        elastic=compared(moved, reference),
        wrapper_bypassed=compared(around, reference[:3]),
    )
