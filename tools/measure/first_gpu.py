"""The first minutes on a GPU: `make gpu`, or `python tools/measure/first_gpu.py --out FOLDER`.

What is worth most comes first. Each part writes its card, `gpu-PART.json`, as soon as it ends, so a cut loses one
part at most. A part that fails says why in its card, and the next one begins. `--tiny` tries every line of it with
small networks, on any device. A machine needs this checkout and its packages, with a torch for its GPU; weights of
the text encoders are in the checkout, and nothing is fetched.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from cards import ROOT, RUNS, device_name, write_card
from launchers import pictures
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from imagen_nb import stage as stages
from imagen_nb.cli import main as imagen_nb
from imagen_nb.engine import optim
from imagen_nb.engine.blocks import compile_blocks
from imagen_nb.engine.distributed import gradient, undisturbed
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.optim import OPTIMIZERS, make_optimizers
from imagen_nb.engine.samples import ahead, to_device
from imagen_nb.engine.sharding import own_part
from imagen_nb.engine.sketch import LENGTH
from imagen_nb.layers import Attention
from imagen_nb.pictures.pixels import Batch
from imagen_nb.recipes import paper, toy
from imagen_nb.runs.plan import GIB, Machines, cost, memory
from imagen_nb.stage import Draws, Stage, StageConfig
from imagen_nb.store import modes
from imagen_nb.text import TextEmbedding
from imagen_nb.training import TrainConfig, update

SPARE = 0.9  # share of what `plan` says would fit: its figure has never met an allocator


class Setting(NamedTuple):
    "On what the parts run, and how large."

    device: str
    stages: list[tuple[StageConfig, TrainConfig]]  # to be measured
    batch: int  # of the part on memory
    repeats: int  # of each timing
    side: int  # of the matrices of the ceiling
    is_tiny: bool


def setting(device: str, is_tiny: bool) -> Setting:
    "The paper's stages; tiny: the toy's."
    recipe = toy() if is_tiny else paper()
    pairs = list(zip(recipe.stages, recipe.training))
    if is_tiny:
        pairs = [(replace(c, steps=2), how) for c, how in pairs]
        return Setting(device, pairs, 2, 1, 64, True)
    return Setting(device, pairs, 4, 5, 8192, False)


# ---------------------------------------------------------------- pieces


def random_batch(c: StageConfig, b: int, length: int = LENGTH) -> tuple[Batch, Draws]:
    "Pictures, captions and draws of the right shapes, on the CPU."
    side, low = c.side + 2 * c.margin, c.side // c.factor + 2
    text = torch.randn(b, length, c.network.text_dim)
    read = TextEmbedding(text, torch.ones(b, length, dtype=torch.bool))
    aug = (torch.rand(b), torch.randn(b, 3, low, low)) if c.lowres_size else ()
    draws = (torch.rand(b), torch.randn(b, 3, c.side, c.side), torch.ones(b, dtype=torch.bool))
    return Batch(torch.rand(b, 3, side, side), read, torch.arange(b)), Draws(*draws, *aug)


def caption(c: StageConfig) -> TextEmbedding:
    "One of full length."
    return random_batch(c, 1)[0].text


def begun(c: StageConfig, how: TrainConfig, device: str) -> tuple[Stage, Learned]:
    "A stage as `Learned.begin` has it, made where it is needed: the largest takes minutes on a CPU."
    networks = []
    for _ in range(2):
        with torch.device(device):
            networks.append(Stage(c, c.network.build()).to(device).network)
    network, average = networks
    return Stage(c, network.train()), Learned(network, average, make_optimizers(network, how))


def take_step(stage: Stage, learned: Learned, batch: tuple, how: TrainConfig, step: int):
    "One training step, the batch on its device."
    gradient(stage, *batch, 1)
    update(learned, step, how)


def synchronize(device: str):
    "Wait for what was begun."
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    "Median of a few calls, after two that warm up."
    work(), work()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        since = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - since)
    return statistics.median(taken)


@contextlib.contextmanager
def set_to(owner, name: str, value) -> Iterator[None]:
    "An attribute for a while."
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def fullest(
    c: StageConfig,
    how: TrainConfig,
    batch: int,
    device: str,
    on: Machines | None = None,
    begin: Callable[..., tuple[Stage, Learned]] = begun,
) -> dict:
    "Bytes at the fullest moment of two steps, and of what stays, beside those that `plan` foretells."
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stage, learned = begin(c, how, device)
    for step in range(2):
        there = tuple(to_device(o, device) for o in random_batch(c, batch))
        gradient(stage, *there, 1)
        gradients = size_of(p.grad for p in learned.network.parameters())
        update(learned, step, how)
    found = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    planned = memory(cost(c, how), on or Machines())
    kept = dict(
        weights=size_of(learned.network.parameters()),
        average=size_of(learned.average.parameters()),
        gradients=gradients,
        optimizer=size_of(
            v for o in learned.optimizers for s in o.state.values() for v in s.values()
        ),
    )
    return dict(
        batch=batch,
        measured_gib=found / GIB,
        planned_gib=planned.peak(batch) / GIB,
        kept={name: [bytes, getattr(planned, name)] for name, bytes in kept.items()},
    )


def size_of(tensors: Iterable) -> int:
    "Bytes of what this process has of them; a count of steps is not always one."
    return sum(own_part(x).nbytes for x in tensors if isinstance(x, torch.Tensor))


# ---------------------------------------------------------------- parts, the worthiest first


def part_memory(s: Setting) -> dict:
    "Peak of the allocator against the plan."
    return {f"{c.size} px": fullest(c, how, s.batch, s.device) for c, how in s.stages}


def part_training(s: Setting) -> dict:
    "The command line trains the toy and the emoji networks, and doctor looks at the runs."
    found = {}
    with tempfile.TemporaryDirectory() as place:
        pictures(data := Path(place) / "pictures")
        for recipe in ("toy", "emoji"):
            out, steps = f"{place}/{recipe}", 2 if s.is_tiny else 60
            words = ["train", recipe, f"--out={out}", f"--data={data}"]
            words += [f"--set=training.{k}.steps={steps}" for k in range(3)]
            words += [f"--set=training.{k}.warmup=1" for k in range(3)]
            words += ["--no-compile", "--sample-every=0", "--validate-every=0"] * s.is_tiny
            words += [f"--set=stages.{k}.steps=2" for k in range(3)] * s.is_tiny
            since, told = time.perf_counter(), io.StringIO()
            with contextlib.redirect_stdout(told):
                code = imagen_nb(words)
                took = time.perf_counter() - since
                imagen_nb(["doctor", out, "--draw=0"])
            found[recipe] = dict(code=code, seconds=took, steps=steps, told=told.getvalue()[-3000:])
    return found


def part_speed(s: Setting, is_compiled: bool = False) -> dict:
    "Steps at the largest batch that fits, as a share of what a product of matrices reaches."
    found: dict = dict(ceiling_tflops=ceiling(s) / 1e12)
    for c, how in s.stages:
        found[f"{c.size} px"] = row = speed_of(c, how, s, is_compiled)
        row["share"] = row["tflops"] / found["ceiling_tflops"]
        clean()
    return found


def ceiling(s: Setting) -> float:
    "FLOP/s of one large product in bf16."
    x = torch.randn(s.side, s.side, dtype=torch.bfloat16, device=s.device)
    return 2 * s.side**3 / seconds(partial(torch.matmul, x, x), s.device, s.repeats)


def speed_of(c: StageConfig, how: TrainConfig, s: Setting, is_compiled: bool) -> dict:
    "Training steps of one stage."
    costed = cost(c, how)
    n = 2 if s.is_tiny else min(64, memory(costed, Machines()).most(room() * SPARE))
    stage, learned = begun(c, how, s.device)
    if is_compiled:
        compile_blocks(stage.network)
    there = tuple(to_device(o, s.device) for o in random_batch(c, n))
    took = seconds(partial(take_step, stage, learned, there, how, 1), s.device, s.repeats)
    flops = 3 * costed.sketch.flops * n / took
    return dict(batch=n, seconds=took, pictures_a_second=n / took, tflops=flops / 1e12)


def part_compiled(s: Setting) -> dict:
    "The same with compiled blocks."
    return dict(left_out="tiny") if s.is_tiny else part_speed(s, is_compiled=True)


def room() -> float:
    "Bytes that are free."
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 2.0**30


def part_switches(s: Setting) -> dict:
    "What may make it faster, one by one: seconds without, seconds with."
    (c, how), found = s.stages[0], {}
    stage, learned = begun(c, how, s.device)
    n = s.batch
    text, there = caption(c), tuple(to_device(o, s.device) for o in random_batch(c, n))

    def trained():
        return seconds(lambda: take_step(stage, learned, there, how, 1), s.device, s.repeats)

    def drawn(**how):
        few = min(8, c.steps)
        return seconds(lambda: stage.sample(text, seeds=[0], steps=few, **how), s.device, s.repeats)

    made = [random_batch(c, n) for _ in range(4)]

    def loaded(batches):
        def steps():
            for batch in batches():
                take_step(stage, learned, batch, how, 1)

        return seconds(steps, s.device, 1)

    def one_by_one():
        return (tuple(to_device(o, s.device) for o in pair) for pair in made)

    def on_their_way():
        return ahead(lambda at: made[int(at)], torch.arange(4), s.device)

    with set_to(torch.backends.cudnn, "benchmark", False):
        without = trained()
    with set_to(torch.backends.cudnn, "benchmark", True):
        found["cudnn.benchmark, a step"] = (without, trained())
    with set_to(modes, "casting_once", lambda kind: contextlib.nullcontext()):
        without = drawn()
    found["weights cast once, a picture of a few steps"] = (without, drawn())
    with set_to(stages, "RepeatedText", TextEmbedding):
        without = drawn()
    found["text read once, a picture of a few steps"] = (without, drawn())
    with set_to(Attention, "read", masked(Attention.read)):
        without = drawn(w=1)
    found["no mask, a picture of a few unguided steps"] = (without, drawn(w=1))
    found["batches copied on a stream of their own, four steps"] = (
        loaded(one_by_one),
        loaded(on_their_way),
    )
    found["the same against four steps without copies"] = 4 * trained()
    return found


def masked(read: Callable) -> Callable:
    "`Attention.read` with a mask, needed or not."
    return lambda self, text: (*read(self, text)[:2], text.mask)


def part_optimizers(s: Setting) -> dict:
    "Seconds of an update by each optimizer, and by Adam that is not fused."
    (c, how), found = s.stages[1], {}
    for name in OPTIMIZERS:
        stage, learned = begun(c, replace(how, optimizer=name), s.device)
        for p in learned.network.parameters():
            p.grad = torch.ones_like(p)
        found[name] = seconds(
            partial(optim.take_step, learned.optimizers, how.lr), s.device, s.repeats
        )
        if name == "adam":
            plain = [torch.optim.Adam(learned.network.parameters(), foreach=True)]
            found["adam, not fused"] = seconds(
                partial(optim.take_step, plain, how.lr), s.device, s.repeats
            )
            del plain
        del stage, learned
        clean()
    return found


def part_buckets(s: Setting) -> dict:
    "DDP of one process: a step, and GiB at its fullest moment, with gradients beside DDP's buckets and in them."
    (c, how), found = s.stages[1], {}  # one picture: with many, gradients come when activations go
    there = tuple(to_device(o, s.device) for o in random_batch(c, 1))
    with one_process(s.device):
        for is_view in (False, True):
            stage, learned = begun(c, how, s.device)
            spread = Stage(c, in_buckets(stage.network, is_view))
            if s.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took = seconds(partial(take_step, spread, learned, there, how, 1), s.device, s.repeats)
            full = torch.cuda.max_memory_allocated() if s.device == "cuda" else 0
            found["in buckets" if is_view else "beside"] = dict(seconds=took, gib=full / GIB)
            del stage, learned, spread
            clean()
    return found


@contextlib.contextmanager
def one_process(device: str) -> Iterator[None]:
    "A group of one."
    backend, store = "nccl" if device == "cuda" else "gloo", distributed.HashStore()
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def in_buckets(network: nn.Module, is_view: bool) -> nn.Module:
    "What averages gradients."
    return DistributedDataParallel(network, gradient_as_bucket_view=is_view)


def part_bench(s: Setting) -> dict:
    "Rows of `python -m bench` against imagen-pytorch, where it is installed."
    if s.is_tiny or importlib.util.find_spec("imagen_pytorch") is None:
        return dict(left_out='tiny, or no imagen-pytorch: pip install -e ".[bench]"')
    command = [sys.executable, "-m", "bench", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    return dict(code=done.returncode, rows=done.stdout[-4000:], errors=done.stderr[-1000:])


def part_picture(s: Setting) -> dict:
    "Seconds for a picture of each stage: a few evaluations timed, the rest alike."
    found = {}
    for c, _ in s.stages:
        found[f"{c.size} px"] = picture_of(c, s)
        clean()
    return found


def picture_of(c: StageConfig, s: Setting) -> dict:
    "A picture of one stage."
    with torch.device(s.device):
        stage = Stage(c, c.network.build()).to(s.device)
    low = torch.rand(1, 3, c.lowres_size, c.lowres_size) if c.lowres_size else None
    few = min(8, c.steps)
    draw = partial(stage.sample, caption(c), low, seeds=[0], steps=few)
    took = seconds(draw, s.device, s.repeats)
    return dict(seconds=took * c.steps / few, steps=c.steps, timed=few)


PARTS = {
    name: globals()[f"part_{name}"]
    for name in (
        "memory",
        "training",
        "speed",
        "picture",
        "switches",
        "compiled",
        "optimizers",
        "buckets",
        "bench",
    )  # fmt: skip
}


# ---------------------------------------------------------------- one after the other


def clean():
    "Give memory back."
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(name: str, s: Setting, out: Path):
    "One part, into its card; an error is what it found."
    since = time.perf_counter()
    try:
        with undisturbed():
            found = PARTS[name](s)
    except Exception as e:
        found = dict(error=f"{type(e).__name__}: {e}", where=traceback.format_exc()[-3000:])
    took = time.perf_counter() - since
    clean()
    write_card(
        out / f"gpu-{name}.json",
        PARTS[name].__doc__,
        f"python tools/measure/first_gpu.py --parts {name}",
        device=device_name(s.device),
        seconds=round(took, 1),
        found=found,
    )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RUNS, help="folder of the cards")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--minutes", type=float, default=8, help="after which no part begins")
    parser.add_argument("--tiny", action="store_true", help="small networks, on any device")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        raise SystemExit("first_gpu: torch finds no GPU; --tiny tries the script without one")
    end, s = time.monotonic() + 60 * args.minutes, setting(device, args.tiny)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        if time.monotonic() > end:
            print(f"{name}: no time left; --parts {name} measures it")
        else:
            measure(name, s, args.out)


if __name__ == "__main__":
    main()
