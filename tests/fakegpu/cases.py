"""What is run on it, and what is counted on the way."""

import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import first_gpu
import torch
from first_gpu import begun, fullest
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers "fake"
from train_worker import Letters

from imagen_nb import training
from imagen_nb.cli import main
from imagen_nb.data import ShapesWorld
from imagen_nb.engine import validation
from imagen_nb.engine.distributed import Process, undisturbed
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.logs import Log
from imagen_nb.engine.sharding import Shards
from imagen_nb.recipes import RECIPES
from imagen_nb.runs import setup
from imagen_nb.runs.plan import Machines
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.text import TextEncoder
from imagen_nb.training import TrainConfig, Trainer

from .device import Gpu, fake_gpu

PICTURES = 12  # of the drawn world
STEPS = 3  # of a training


def shrunk(recipe: str, k: int) -> StageConfig:
    "A stage with every part that it has, small: drawn in two steps, reading the six numbers of `Letters`."
    c = RECIPES[recipe]().stages[k]
    narrow = dict(text_dim=6, text_width=32, emb_dim=32)
    if recipe != "paper":
        return replace(c, network=replace(c.network, text_dim=6), steps=2)
    if k == 0:
        return replace(c, network=replace(c.network, dim=64, blocks=1, **narrow), size=32, steps=2)
    small = dict(channels=(16, 16, 32, 64), stem=16, blocks=(1, 1, 1, 1))
    sides = dict(size=64, lowres_size=16) if k == 1 else dict(size=128, lowres_size=32, crop=64)
    return replace(c, network=replace(c.network, **narrow, **small), steps=2, **sides)


@contextlib.contextmanager
def seen(gpu: Gpu):
    "Notes what has been counted after each step, and where pictures are drawn."
    notes = dict(steps=[], drawn=[], casts=0)
    add, sample = Log.add, Stage.sample

    def noted_add(self, *args):
        notes["steps"].append((gpu.waits.total(), gpu.copies.copy(), gpu.slow.total()))
        add(self, *args)

    def noted_sample(self, *args, **how):
        gpu.casts.clear()
        images = sample(self, *args, **how)
        notes["drawn"].append(self.device.type)
        notes["casts"] = max(notes["casts"], *gpu.casts.values())
        return images

    with (
        mock.patch.object(Log, "add", noted_add),
        mock.patch.object(Stage, "sample", noted_sample),
        mock.patch.object(training, "validation_loss", partial(training.validation_loss, n=8)),
        mock.patch.object(validation, "draw_samples", partial(validation.draw_samples, n=2)),
    ):
        yield notes


def trained(recipe: str, k: int, optimizer: str, accumulate: int = 1, recompute: int = 0):
    "A run of one stage from its first step to its last picture: each count for a step that does nothing else."
    how = TrainConfig(batch=4, steps=STEPS, optimizer=optimizer, warmup=2, save_every=STEPS)
    execution = Execution(
        accumulate=accumulate, recompute=bool(recompute), compile=False, progress=False,
        validate_every=STEPS, sample_every=STEPS,
    )  # fmt: skip
    world = ShapesWorld("train", level="quick", length=PICTURES)
    config = shrunk(recipe, k)
    with fake_gpu() as gpu, seen(gpu) as notes, tempfile.TemporaryDirectory() as out:
        stage = Trainer(Stage(config), world, Letters(), how, out, None, execution).fit()
        first, last = notes["steps"][0], notes["steps"][-1]
        weights = list(stage.network.parameters())
        return dict(
            waits=(last[0] - first[0]) / (STEPS - 1),
            copies=sum(n for k, n in last[1].items() if k.startswith("samples.py")) / STEPS,
            slow=(last[2] - first[2]) / (STEPS - 1),
            saving=sum(n for k, n in gpu.waits.items() if k.startswith("distributed.py")),
            casts=notes["casts"],
            drawn=sorted(set(notes["drawn"])),
            files=sorted(str(p.relative_to(out)) for p in Path(out).rglob("*.[spj]*")),
            places=sorted({str(p.device) for p in weights}),
            types=sorted({str(p.dtype) for p in weights}),
            peak=gpu.peak,
            where=dict(gpu.waits.most_common(8)),
        )


def whole(recipe: str = "toy") -> dict:
    "`imagen-nb train`, from the first caption to the last score."
    tiny = [
        f"--set={path}={value}"
        for k in range(3)
        for path, value in (
            (f"training.{k}.steps", STEPS), (f"training.{k}.batch", 4),
            (f"training.{k}.warmup", 1), (f"stages.{k}.steps", 2),
        )
    ]  # fmt: skip
    begun, begin = [], training.Learned.begin
    few = mock.patch.object(setup, "ShapesWorld", partial(ShapesWorld, length=PICTURES))
    reads = mock.patch.object(
        TextEncoder, "to", lambda self, *_: self
    )  # how many words is a number
    with fake_gpu() as gpu, seen(gpu) as notes, few, reads, tempfile.TemporaryDirectory() as out:

        def noted_begin(*args):
            begun.append(gpu.now)
            return begin(*args)

        told = io.StringIO()
        command = ["train", recipe, "--out", out + "/run", "--held-out=2", *tiny]
        command += ["--no-compile", "--recompute", "--validate-every=0", "--sample-every=0"]
        with (
            mock.patch.object(training.Learned, "begin", noted_begin),
            contextlib.redirect_stdout(told),
        ):
            code = main(command)
        return dict(
            code=code,
            begun=begun,
            drawn=dict(Counter(notes["drawn"])),
            casts=notes["casts"],
            told=told.getvalue(),
            left=gpu.now,
            files=sorted(p.name for p in Path(out, "run").iterdir()),
        )


def full(k: int, batch: int, strategy: str = "ddp", count: int = 1) -> dict:
    "Two steps of a stage of the paper at full size: bytes of the first GPU, beside those that `plan` foretells."
    recipe, on = RECIPES["paper"](), Machines(strategy=strategy, count=count)
    with fake_gpu(count=count, memory=2**40), undisturbed(), team(count):
        how = recipe.stages[k], recipe.training[k], batch, "cuda"
        return fullest(*how, on, partial(begun_together, on))


@contextlib.contextmanager
def team(count: int):
    "The first of so many processes; the others are not there: what it is sent is what it had."
    if count == 1:
        yield
        return
    numbers = mock.patch.dict(os.environ, RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(count))
    unasked = "torch.nn.parallel.distributed._verify_param_shape_across_processes"
    with numbers, mock.patch(unasked), mock.patch.object(distributed, "new_group"):
        store = distributed.HashStore()
        distributed.init_process_group("fake", store=store, rank=0, world_size=count)
        try:
            yield
        finally:
            distributed.destroy_process_group()


def begun_together(on: Machines, c: StageConfig, how: TrainConfig, device: str):
    "As `Trainer` begins: in parts, or in DDP's buckets."
    process = Process()
    if on.strategy == "fsdp":
        with torch.device("meta"):
            start = Stage(c, c.network.build())
        learned = Learned.begin(start, how, process.device, Shards(process))
        return Stage(c, learned.network), learned
    stage, learned = begun(c, how, device)
    network = process.wrap(stage.network)
    return Stage(c, network if on.count == 1 else heard(network)), learned


def heard(network: DistributedDataParallel) -> DistributedDataParallel:
    "Gradients are sent to nobody and answered; a clock of the GPU, which it would ask, there is none."
    network.register_comm_hook(None, received)
    network.logger = mock.Mock()
    return network


def received(state, bucket):
    "The sum of gradients lies where this process's lay."
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def first(*parts: str) -> dict:
    "The script for the first minutes on a GPU, or some parts of it, tiny: what its cards hold."
    reads = mock.patch.object(TextEncoder, "to", lambda self, *_: self)
    buckets = first_gpu.in_buckets
    alone = mock.patch.multiple(
        first_gpu,
        one_process=lambda _: team(2),
        in_buckets=lambda *how: heard(buckets(*how)),
    )
    with fake_gpu(), reads, alone, tempfile.TemporaryDirectory() as out:
        with contextlib.redirect_stdout(io.StringIO()):
            first_gpu.main(["--tiny", "--out", out, "--parts", *(parts or first_gpu.PARTS)])
        return {p.stem: json.loads(p.read_text())["found"] for p in Path(out).glob("*.json")}


def run(case: str) -> dict:
    "A case by its name: `whole`, `trained paper 0 adafactor 2 True` or `full 0 2`."
    name, *words = case.split()
    torch.set_num_threads(1)
    values = [int(word) if word.isdecimal() else word for word in words]
    return dict(whole=whole, trained=trained, full=full, first=first)[name](*values)
