"""A run that is shared out and shared out anew: `python tools/measure/sharding.py`, into data/runs/sharding.json.

For every optimizer one directory is trained by 1, 2, 4, 2 and 1 processes in turn (gloo, float32), a few steps each,
and compared with a run of one process. The figure is the norm of the difference of the averaged and the trained
weights, divided by their norm; beside it the largest difference of one weight, and what one process gives whose
gradient is summed in two parts. Then a large base is resumed by two processes: what each holds, divided by its share.
Then a process is killed while it saves. Processes are forked from this one, which has imported what they need and
computed nothing; a process trains with one optimizer after the other.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
from torch import distributed

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from train_worker import make_trainer, pin_fp32  # noqa: E402

from imagen_nb.engine.optim import take_step  # noqa: E402
from imagen_nb.engine.sharding import own_part  # noqa: E402
from imagen_nb.stage import Stage, StageConfig  # noqa: E402
from imagen_nb.store.checkpoint import checkpoints, load_directory  # noqa: E402
from imagen_nb.unet import UNetConfig  # noqa: E402

FORK = multiprocessing.get_context("fork")
OPTIMIZERS = ("adafactor", "adam", "adamw", "muon")
COUNTS = (1, 2, 4, 2, 1)
PARTS = ("reshard", "sums", "memory", "kills")
MOMENTS = [(0, 0), (1, 1), (0, 5)]  # which process is killed, and at which flush of a save
SMALL = UNetConfig(
    dim=16, mults=(1, 2), blocks=1, attention=(False, True), head_dim=16,
    text_dim=6, text_width=16, emb_dim=128,
)  # fmt: skip
LARGE = UNetConfig(
    dim=256, mults=(1, 2, 3), blocks=2, attention=(False, False, True), text_dim=6, emb_dim=512
)
HOW = dict(batch=8, lr=1e-3, decay="constant", warmup=2, ema=0.9, keep=100)


def member(rank: int, n: int, port: int, box, f, args: tuple, named: dict):
    "One of n processes: it tells what f returns."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = dict(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, MASTER_ADDR="localhost", MASTER_PORT=port
    )
    os.environ.update({k: str(v) for k, v in names.items()})
    pin_fp32()
    box.put((rank, f(*args, **named)))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def together(n: int, f, *args, **named) -> list | None:
    "What f returned in n processes, by their number; None: one of them was killed."
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    box = FORK.SimpleQueue()
    children = [
        FORK.Process(target=member, args=(k, n, port, box, f, args, named)) for k in range(n)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode:
            was_killed = any(o.exitcode == -signal.SIGKILL for o in children)
            for other in children:
                other.kill()
                other.join()
            if was_killed:
                return None
            raise RuntimeError(f"sharding: a process ended with {child.exitcode}")
    return [answer for _, answer in sorted((box.get() for _ in children), key=lambda o: o[0])]


# ---------------------------------------------------------------- resharding


def train(out: Path, steps: int, **changes):
    "Up to that step."
    stage = StageConfig(size=16, target="x0", loss_weight="capped", network=SMALL)
    make_trainer(out, steps, stage=stage, **HOW | changes).fit()


def train_all(place: Path, optimizers: list[str], steps: int, **changes):
    "With one optimizer after the other, each in its own directory."
    for name in optimizers:
        train(place / name, steps, optimizer=name, **changes)


def weights(out: Path, step: int) -> torch.Tensor:
    "Of network and average, in one row."
    tensors = load_directory(out / f"step_{step:08d}")[0]
    groups = (tensors["network"], tensors["average"])
    return torch.cat([group[k].flatten() for group in groups for k in sorted(group)])


def gap(ours: Path, theirs: Path, step: int) -> dict:
    "Norm of the difference by norm of the weights, and the largest difference of one."
    one, other = weights(ours, step), weights(theirs, step)
    apart = (one - other).double()
    return dict(
        difference=(apart.norm() / other.double().norm()).item(), largest=apart.abs().max().item()
    )


def reshard(place: Path, optimizers: list[str], counts: list[int], steps: int) -> dict:
    "Directories trained by so many processes in turn, beside those of one process: gaps by optimizer."
    together(1, train_all, place / "alone", optimizers, steps * len(counts), save_every=steps)
    table: dict = {name: {} for name in optimizers}
    for k, n in enumerate(counts, 1):
        how = dict(shard=True, save_every=steps, validate_every=2 * steps)
        together(n, train_all, place / "shared", optimizers, k * steps, **how)
        for o in optimizers:
            way = "-".join(map(str, counts[:k]))
            table[o][way] = gap(place / "shared" / o, place / "alone" / o, k * steps)
            print(f"{o:<10} {way:<10} {json.dumps(table[o][way])}", flush=True)
    return table


def order_of_sums(place: Path, optimizers: list[str], steps: int) -> dict:
    "One process whose gradient is summed in two parts: a difference that no sharing explains."
    together(1, train_all, place / "two", optimizers, steps, accumulate=2)
    return {o: gap(place / "two" / o, place / "alone" / o, steps) for o in optimizers}


# ---------------------------------------------------------------- memory


def memory(name: str) -> int:
    "Bytes that this process holds now (RssAnon, VmRSS) or held at most (VmHWM)."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def large(out: Path):
    "A trainer as `imagen-nb train --shard` makes it, whose network has no data yet where it goes on."
    how, network = StageConfig(size=16, network=LARGE), None
    if checkpoints(out):
        with torch.device("meta"):
            network = LARGE.build()
    stage = Stage(how, network)
    return make_trainer(out, 2, stage=stage, shard=True, optimizer="adam", batch=2)


def begin(out: Path):
    "A checkpoint with all that Adam remembers, without the time of a step."
    trainer = large(out)
    trainer.log = trainer.prepare()
    for p in trainer.learned.network.parameters():
        p.grad = torch.zeros_like(p)
    take_step(trainer.learned.optimizers, 0.0)
    trainer.keeper.save(trainer.learned, 1, trainer.log.begun())
    trainer.keeper.settle()


def resume(out: Path) -> dict:
    "Go on from it; what that took of memory, by what this process keeps."
    trainer = large(out)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what it is now
    before = {name: memory(name) for name in ("RssAnon", "VmRSS")}
    trainer.prepare().close()
    held, most = memory("RssAnon") - before["RssAnon"], memory("VmHWM") - before["VmRSS"]
    groups = trainer.learned.tensors().values()
    own = [own_part(t) for ts in groups for t in ts.values()]
    share = sum(t.nbytes for t in own)
    count = sum(p.numel() for p in trainer.learned.network.parameters())
    return dict(parameters=count, share=share, held=held / share, most=most / share)


# ---------------------------------------------------------------- kills

SAVED_OFTEN = dict(optimizer="adamw", shard=True, save_every=2)


def killed_while_saving(out: Path, rank: int, flush: int):
    "Train; the process of that number is killed at the so-many-th flush of its second save."
    if int(os.environ["RANK"]) == rank:
        fsync, count = os.fsync, iter(range(10**6))

        def counted(handle):
            if any(out.glob("step_*")) and next(count) == flush:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = counted
    train(out, 5, **SAVED_OFTEN)


def same(one: Path, other: Path) -> bool:
    "Have two checkpoints the same bits?"
    a, b = load_directory(one)[0], load_directory(other)[0]
    return all(torch.equal(t, b[g][k]) for g, tensors in a.items() for k, t in tensors.items())


def kills(place: Path, moments: list[tuple[int, int]]) -> dict:
    "Runs of two processes that were cut while they saved, and went on: beside a run in one go."
    together(2, train, place / "whole", 5, **SAVED_OFTEN)
    table, last = {}, "step_00000005"
    for rank, flush in moments:
        out = place / f"killed-{rank}-{flush}"
        was_cut = together(2, killed_while_saving, out, rank, flush) is None
        left = [int(o.name[5:]) for o in checkpoints(out)]
        together(2, train, out, 5, **SAVED_OFTEN)
        row = dict(was_cut=was_cut, left=left, same=same(out / last, place / "whole" / last))
        table[f"process {rank}, flush {flush}"] = row
        print(f"killed: {rank} {flush} {row}", flush=True)
    return table


def main():
    from cards import write_card

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "runs" / "sharding.json")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    found: dict = {}
    if set(args.parts) < set(PARTS) and args.out.exists():  # the others stay as they are
        card = json.loads(args.out.read_text(encoding="utf-8"))
        found = {k: card[k] for k in ("reshard", "order_of_sums", "memory", "kills") if k in card}

    def keep(**more):
        "A cut loses nothing that was measured."
        found.update(more)
        print(more, flush=True)
        write_card(
            args.out,
            "differences of weights between a run that is shared out anew and one of one process;"
            " what a process holds by its share; what kills during a save left",
            "python tools/measure/sharding.py",
            precision="float32",
            backend="gloo",
            steps_each=args.steps,
            **found,
        )

    with tempfile.TemporaryDirectory() as folder:
        place, steps = Path(folder), args.steps * len(args.counts)
        if "reshard" in args.parts:
            keep(reshard=reshard(place, args.optimizers, args.counts, args.steps))
        if "sums" in args.parts:
            keep(order_of_sums=order_of_sums(place, args.optimizers, steps))
        if "memory" in args.parts:
            together(2, begin, place / "large")
            keep(memory=together(2, resume, place / "large"))
        if "kills" in args.parts:
            keep(kills=kills(place, MOMENTS))


if __name__ == "__main__":
    main()
