"""What a recipe takes before it is trained: memory, FLOPs, time and money, from sizes alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imagen_nb.data import SPLITS
from imagen_nb.engine.optim import (
    OPTIMIZERS,
    adafactor_shapes,
    inner_matrices,
    make_optimizers,
    trainable,
)
from imagen_nb.engine.sketch import LENGTH, Block, Sketch, sketch, total
from imagen_nb.recipes import Recipe
from imagen_nb.stage import StageConfig
from imagen_nb.store.config import config, option
from imagen_nb.training import TrainConfig

__all__ = ["GPUS", "Gpu", "Machines", "Plan", "StagePlan", "plan", "report"]

GIB = 2**30
WORDS = 25  # tokens of a caption on disk, where padding is not kept
FREE = 0.05  # share of a GPU's memory kept for its driver and allocator: assumed, not measured
WORK = 7  # bytes of passing work for each number of a block's largest tensor, fitted on one stage
READERS = {"google/t5-v1_1-xxl": 4.6e9}  # weights of an encoder (paper 4.4)
PICTURES = {"paper": 860_000_000}  # of a recipe that says how many (paper 4.1)


class Gpu(NamedTuple):
    "What a data sheet says."

    memory: int  # GB as it is sold; a driver shows about as many GiB
    peak: float  # TFLOP/s of dense bf16 matrices, sums in fp32
    source: str  # where it is written


GPUS = {  # where a sheet gives the figure of sparse matrices alone, half of it
    "b200": Gpu(180, 2250, "NVIDIA DGX B200 data sheet"),
    "h200": Gpu(141, 989, "NVIDIA H200 SXM data sheet"),
    "h100": Gpu(80, 989, "NVIDIA H100 SXM data sheet"),
    "a100": Gpu(80, 312, "NVIDIA A100 data sheet"),
    "a100-40": Gpu(40, 312, "NVIDIA A100 data sheet"),
    "l40s": Gpu(48, 362, "NVIDIA L40S data sheet"),
    "l4": Gpu(24, 121, "NVIDIA L4 data sheet"),
    "5090": Gpu(32, 209.5, "NVIDIA RTX Blackwell architecture paper"),
    "4090": Gpu(24, 165.2, "NVIDIA Ada architecture paper"),
    "3090": Gpu(24, 71, "NVIDIA GA102 architecture paper"),
}

# ---------------------------------------------------------------- memory of a GPU


def optimizer_bytes(
    network: nn.Module,  # on the meta device: shapes without memory
    name: str,  # of `OPTIMIZERS`
    parts: int = 1,  # into which each weight is cut; the first is the largest
) -> int:
    "What an optimizer remembers, exactly: moments in fp32, and how many steps it has taken."
    params = trainable(network)
    turned = set(map(id, inner_matrices(params))) if name == "muon" else set()
    if name not in STATE:
        whole = first_step(network, name)
        return round(
            whole * sum(own_part(p, parts) for p in params) / sum(map(Tensor.numel, params))
        )
    return sum(4 * own_part(p, parts) if id(p) in turned else STATE[name](p, parts) for p in params)


def own_part(p: Tensor, parts: int) -> int:
    "Numbers of a weight that one process holds: some of its rows."
    return math.ceil(p.shape[0] / parts) * (p.numel() // p.shape[0])


def two_moments(p: Tensor, parts: int) -> int:
    "Bytes that Adam keeps of a weight."
    return 8 * own_part(p, parts) + 4


def squared_gradients(p: Tensor, parts: int) -> int:
    "Bytes that Adafactor keeps of a weight; it counts steps on the host, and its means are whole everywhere."
    shapes = adafactor_shapes(p.shape)
    return 4 * (own_part(p, parts) if "squares" in shapes else sum(map(math.prod, shapes.values())))


STATE = dict(  # bytes of a weight in so many parts; what Muon turns has one moment
    adafactor=squared_gradients,
    adafactor_unscaled=squared_gradients,
    adam=two_moments,
    adamw=two_moments,
    muon=two_moments,
)


def first_step(network: nn.Module, name: str) -> int:
    "An optimizer of your own is asked: it takes its first step on shapes."
    for p in network.parameters():
        p.grad = torch.empty_like(p)
    optimizers = make_optimizers(network, TrainConfig(optimizer=name))
    for o in optimizers:
        o.step()
    network.zero_grad()
    kept = (v for o in optimizers for state in o.state.values() for v in state.values())
    return sum(v.nbytes for v in kept if isinstance(v, Tensor))


class Moment(NamedTuple):
    "A point of a step."

    fixed: float  # bytes, whatever the batch
    each: float  # more bytes for each picture


@dataclass(frozen=True)
class Memory:
    "Bytes of one GPU while it trains."

    weights: int  # fp32
    average: int  # of the weights, fp32
    gradients: int  # fp32
    optimizer: int  # what it remembers
    gathered: int  # FSDP's largest layers, whole for a moment
    copies: int  # weights in bf16
    each: int  # activations and inputs of one picture
    moments: tuple[Moment, ...]  # of a step

    def peak(self, batch: int) -> float:
        "Bytes at the fullest moment with so many pictures at once."
        return max(fixed + each * batch for fixed, each in self.moments)

    def most(self, room: float) -> int:
        "Pictures at once that fit; 0: none."
        return max(0, min(math.floor((room - m.fixed) / max(m.each, 1)) for m in self.moments))


class Point(NamedTuple):
    "How far a step has come on its way back, at one block."

    kept: int  # bytes of a picture: what is still needed, and work in progress
    copies: int  # bytes of weights in bf16
    learned: int  # parameters that have a gradient
    whole: int  # numbers of weights and gradients that FSDP holds whole


def way_back(
    blocks: list[Block],  # of a sketch
    recompute: bool,  # only what a part of the network was given is kept, and one part's inside
) -> list[Point]:
    "Block by block, the last first: gradients grow while activations go."
    points, learned, held = [], Counter[int | None](), held_whole(blocks)
    for k in reversed(range(len(blocks))):
        here = (None, blocks[k].unit)
        inside = [b for b in blocks[: k + 1] if not recompute or b.unit in here]
        kept = [sheet for b in inside for sheet in b.kept]
        if recompute:
            kept += [sheet for b in blocks[: k + 1] for sheet in b.given]
        bytes = total(kept) + WORK * blocks[k].widest
        learned[unit := blocks[k].unit] += blocks[k].parameters
        whole = held[unit] + learned[unit]
        points.append(Point(bytes, sum(b.copies for b in inside), learned.total(), whole))
    return points


def held_whole(
    blocks: list[Block],  # of a sketch
) -> dict[int | None, int]:  # numbers, by the part that the way back has come to
    "FSDP, beside a part's gradients: weights of the ends, of the part and the next one; gradients of the one before."
    sizes: Counter[int | None] = Counter()
    for b in blocks:
        sizes[b.unit] += b.parameters
    ends, last = sizes.pop(None), len(sizes) - 1
    parts = [(u, n) for u, n in sizes.items() if u is not None]
    whole: dict[int | None, int] = {u: ends + n + sizes[u - 1] + sizes[u + 1] for u, n in parts}
    return whole | {None: ends + sizes[last]}


@config
class Machines:
    "On what a recipe is to be trained, and how."

    gpu: str = option("h100", among=GPUS)  # its name
    count: int = option(1, least=1)  # GPUs
    strategy: str = option("ddp", among=("ddp", "fsdp"))  # each holds all of it, or a part
    batch: int | None = option(None, least=1)  # pictures at once on a GPU; None: as many as fit
    recompute: bool = False  # activations going back, instead of keeping them
    share: float = option(0.4, above=0, most=1)  # of the data sheet's peak that is reached
    price: float | None = option(None, least=0)  # of a GPU for an hour
    pictures: int | None = option(None, least=1)  # to train on; None: as the recipe says

    @property
    def parts(self) -> int:
        "Into how many the state is cut."
        return self.count if self.strategy == "fsdp" else 1

    @property
    def room(self) -> float:
        "Bytes of a GPU that training may take."
        return GPUS[self.gpu].memory * GIB * (1 - FREE)

    @property
    def speed(self) -> float:
        "FLOP/s that a GPU reaches."
        return GPUS[self.gpu].peak * 1e12 * self.share

    @property
    def passes(self) -> int:
        "A training step in forward passes: going back takes two, recomputing one more."
        return 4 if self.recompute else 3


class Costed(NamedTuple):
    "A stage with everything that does not depend on GPUs."

    stage: StageConfig
    train: TrainConfig
    network: nn.Module  # on the meta device
    sketch: Sketch  # of a training pass
    passes: int  # through the network, to draw a picture
    drawing: float  # FLOPs of a picture drawn
    optimizers: dict[str, int]  # bytes of state by name
    ways: dict[bool, list[Point]]  # back, with and without recomputation

    @property
    def parameters(self) -> int:
        "Numbers that learn."
        return sum(p.numel() for p in self.network.parameters())


def cost(
    stage: StageConfig,  # what is trained
    train: TrainConfig,  # how
) -> Costed:
    "Walk through a stage without building it."
    with torch.device("meta"):
        network = stage.network.build()
    once = sketch(network, stage.side)
    full = once if stage.side == stage.size else sketch(network, stage.size)
    passes = stage.steps * (2 if stage.w != 1 else 1)
    sizes = {name: optimizer_bytes(network, name) for name in OPTIMIZERS}
    ways = {recompute: way_back(once.blocks, recompute) for recompute in (False, True)}
    return Costed(stage, train, network, once, passes, passes * full.flops, sizes, ways)


def inputs(
    stage: StageConfig,  # what is trained
    length: int = LENGTH,  # tokens of a caption
) -> int:  # bytes of one picture
    "What a batch brings, in fp32: pictures and noise, captions as they came and without the dropped ones."
    pixels = (stage.side + 2 * stage.margin) ** 2 + 3 * stage.side**2  # eps, z_t, error
    if stage.lowres_size:
        pixels += 2 * stage.side**2  # the picture to enlarge, alone and beside z_t
    return 12 * pixels + 2 * 4 * length * stage.network.text_dim


def memory(
    costed: Costed,  # stage and optimizers
    on: Machines,  # GPUs
    optimizer: str | None = None,  # None: the recipe's
) -> Memory:
    "Bytes of one GPU."
    n, parts, way = costed.parameters, on.parts, costed.ways[on.recompute]
    local = sum(own_part(p, parts) for p in costed.network.parameters())
    name = optimizer or costed.train.optimizer
    state = costed.optimizers[name] if parts == 1 else optimizer_bytes(costed.network, name, parts)
    early = (
        on.strategy == "ddp" and on.count > 1
    )  # gradients live in DDP's buckets, made beforehand
    whole = 4 if parts > 1 else 0  # bytes of a number that is gathered
    base, extra = 8 * local + state, inputs(costed.stage)

    def gradients(p: Point) -> float:
        return 4 * (n if early else p.learned) * local / n

    moments = [
        Moment(base + whole * p.whole + p.copies + gradients(p), extra + p.kept) for p in way
    ]
    moments.append(Moment(base + 4 * local, extra))  # the update
    return Memory(
        weights=4 * local,
        average=4 * local,
        gradients=4 * local,
        optimizer=state,
        gathered=whole * max(p.whole for p in way),
        copies=max(p.copies for p in way),
        each=extra + max(p.kept for p in way),
        moments=tuple(moments),
    )


# ---------------------------------------------------------------- a plan


class StagePlan(NamedTuple):
    "What one stage takes."

    costed: Costed  # stage, network, FLOPs
    memory: Memory  # of a GPU, as asked
    recomputed: Memory  # of a GPU, with recomputation
    batch: int  # pictures at once on a GPU
    micro: int  # micro-batches of a GPU's share of a step
    fits: bool  # they do
    change: str  # the smallest that fits; empty: it fits, or nothing known does

    def gpu_seconds(self, on: Machines) -> float:
        "Of all steps, on all GPUs together."
        train = self.costed.train
        return train.steps * train.batch * on.passes * self.costed.sketch.flops / on.speed


class Plan(NamedTuple):
    "What a recipe takes."

    recipe: Recipe
    on: Machines
    stages: list[StagePlan]


def plan(
    recipe: Recipe,  # what to train
    on: Machines | None = None,  # GPUs; None: one H100
) -> Plan:
    "Count what a recipe takes on these GPUs."
    on = on or Machines()
    for k, train in enumerate(recipe.training):
        name, part = f"training.{k}.batch={train.batch}", train.batch // on.count
        if train.batch % on.count:
            raise ValueError(
                f"plan: count, got {on.count}, expected a divisor of {name}: GPUs take equal shares"
            )
        if on.batch and on.batch > part:
            raise ValueError(
                f"plan: batch, got {on.batch}, expected at most {part}, a GPU's share of {name}"
            )
    costs = [cost(*pair) for pair in zip(recipe.stages, recipe.training)]
    return Plan(recipe, on, [plan_stage(costed, k, on) for k, costed in enumerate(costs)])


def plan_stage(
    costed: Costed,  # a stage
    k: int,  # its number
    on: Machines,  # GPUs
) -> StagePlan:
    "As many pictures at once as fit, or as asked."
    ours = memory(costed, on)
    part, most = costed.train.batch // on.count, ours.most(on.room)
    micro = math.ceil(part / (on.batch or max(1, min(part, most))))
    at_once = on.batch or math.ceil(part / micro)
    fits = at_once <= most
    change = "" if fits else smallest_change(costed, k, on, most)
    other = memory(costed, replace(on, recompute=True))
    return StagePlan(costed, ours, other, at_once, micro, fits, change)


def smallest_change(
    costed: Costed,  # a stage that does not fit
    k: int,  # its number
    on: Machines,  # what was asked for
    most: int,  # pictures at once that would fit
) -> str:  # words for the command line; empty: nothing known
    "What to ask for instead, the least first."
    if most:
        return f"--batch {most}"
    thrifty, again = f"--set training.{k}.optimizer=adafactor", replace(on, recompute=True)
    tries: list[tuple[str, Machines, str | None]] = [("--recompute", again, None)]
    tries += [(thrifty, on, "adafactor"), (f"--recompute {thrifty}", again, "adafactor")]
    for n in (2**i for i in range(1, 11)):
        if n >= on.count and costed.train.batch % n == 0:
            cut, words = replace(on, strategy="fsdp", count=n), f"--strategy fsdp --count {n}"
            tries += [
                (words, cut, None),
                (f"{words} --recompute", replace(cut, recompute=True), None),
            ]
    larger = sorted((gpu.memory, name) for name, gpu in GPUS.items())
    tries += [(f"--gpu {name}", replace(on, gpu=name), None) for _, name in larger]
    fitting = (words for words, on, by in tries if memory(costed, on, by).most(on.room))
    return next(fitting, "")


# ---------------------------------------------------------------- one screen


def figure(x: float) -> str:
    "Three digits."
    return f"{x:,.0f}" if x >= 99.95 else f"{x:.3g}"


def scaled(x: float, unit: str, base: int = 1000) -> str:
    "A number with its unit: 4.43 TFLOP, 8.45 GiB."
    names, i = ["", "k", "M", "G", "T", "P", "E"], 0
    while x >= 0.9995 * base and i < len(names) - 1:
        x, i = x / base, i + 1
    return f"{figure(x)} {names[i]}{'i' if base == 1024 and i else ''}{unit}".strip()


def gib(bytes: float) -> str:
    "Bytes of memory."
    return scaled(bytes, "B", 1024)


def duration(seconds: float) -> str:
    "A time in its best unit."
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{figure(seconds / length)} {unit}"
    return f"{figure(seconds)} s"


def checkpoint(costed: Costed) -> int:
    "Bytes of weights, average and optimizer."
    return 8 * costed.parameters + costed.optimizers[costed.train.optimizer]


def optimizer_of(p: StagePlan, name: str, parts: int) -> str:
    "What an optimizer would remember on a GPU; the recipe's has a star."
    star = "* " if name == p.costed.train.optimizer else ""
    return star + gib(optimizer_bytes(p.costed.network, name, parts))


Values = Callable[[StagePlan], object]  # of a stage


def work(on: Machines) -> Iterator[tuple[str, Values]]:
    "What is computed."
    yield "", lambda p: f"{p.costed.stage.size} px"
    yield "parameters", lambda p: scaled(p.costed.parameters, "")
    name = f"to train on a picture, {on.passes} x forward"
    yield name, lambda p: scaled(on.passes * p.costed.sketch.flops, "FLOP")
    yield "to draw a picture", lambda p: scaled(p.costed.drawing, "FLOP")
    yield "  passes, two for each guided step", lambda p: p.costed.passes


def room_taken(on: Machines) -> Iterator[tuple[str, Values]]:
    "What a GPU holds."
    yield "memory of a GPU", lambda p: ""
    yield "  weights", lambda p: gib(p.memory.weights)
    yield "  average of them (EMA)", lambda p: gib(p.memory.average)
    yield "  gradients", lambda p: gib(p.memory.gradients)
    for name in OPTIMIZERS:
        yield f"  optimizer {name}", partial(optimizer_of, name=name, parts=on.parts)
    if on.parts > 1:
        yield "  layers gathered for a moment", lambda p: gib(p.memory.gathered)
    yield "  weights again, in bf16", lambda p: gib(p.memory.copies)
    yield "  a picture's activations", lambda p: gib(p.memory.each)
    if not on.recompute:
        yield "    with --recompute", lambda p: gib(p.recomputed.each)
    yield "pictures at once", lambda p: p.batch
    yield "  take at the fullest moment", lambda p: gib(p.memory.peak(p.batch))
    yield f"  at most, in {GPUS[on.gpu].memory} GB", lambda p: f"{p.memory.most(on.room):,}"
    if not on.recompute:
        yield "    with --recompute", lambda p: f"{p.recomputed.most(on.room):,}"
    yield "  micro-batches of a step, --accumulate", lambda p: p.micro


def time_taken(on: Machines) -> Iterator[tuple[str, Values]]:
    "How long, and for how much."
    speed = on.count * on.speed / on.passes
    yield "pictures a second, all GPUs", lambda p: figure(speed / p.costed.sketch.flops)
    yield "steps", lambda p: f"{p.costed.train.steps:,} x {p.costed.train.batch:,}"
    yield "GPU time of all steps", lambda p: duration(p.gpu_seconds(on))
    if (price := on.price) is not None:
        name = f"  at {price:g} an hour"
        yield name, lambda p: figure(p.gpu_seconds(on) / 3600 * price)
    yield "a checkpoint", lambda p: scaled(checkpoint(p.costed), "B")


def report(
    made: Plan,  # what `plan` gave
) -> str:  # lines, one screen
    "A plan for a person."
    on, gpu = made.on, GPUS[made.on.gpu]
    how = f", {on.strategy}" if on.count > 1 else ""
    lines = [
        f"{made.recipe.name} on {on.count} x {on.gpu}{how}",
        f"{gpu.memory} GB and {gpu.peak:g} TFLOP/s each ({gpu.source}), {on.share:.0%} of the speed"
        f" and {1 - FREE:.0%} of the memory used",
    ]
    for name, value in chain(work(on), room_taken(on), time_taken(on)):
        lines.append(f"{name:<40}" + "".join(f"{value(p):>18}" for p in made.stages).rstrip())
    return "\n".join([*lines, *whole(made), *misfits(made)])


def whole(made: Plan) -> Iterator[str]:
    "What concerns all stages."
    on, stages = made.on, made.stages
    seconds = sum(p.gpu_seconds(on) for p in stages)
    by = f", {duration(seconds / on.count)} on {on.count} of them" if on.count > 1 else ""
    money = "" if on.price is None else f", {figure(seconds / 3600 * on.price)} in all"
    yield f"all stages: {duration(seconds)} of GPU time{by}{money}"
    yield f"on disk: {disk(made)}"
    if made.recipe.encoder in READERS:
        yield online(made)
    sizes = [checkpoint(p.costed) for p in stages]
    one = 4 * sum(p.costed.parameters for p in stages) + max(sizes)
    yield (
        f"host memory: {gib(on.count * one)}, as every process holds all stages and reads a checkpoint;"
        " text encoder and pictures come on top"
    )


def disk(made: Plan) -> str:
    "Captions, pictures and checkpoints; drawn worlds have no pictures on disk."
    recipe, drawn = made.recipe, SPLITS["train"] if made.recipe.level else None
    n = made.on.pictures or PICTURES.get(recipe.name) or drawn
    words = 2 * WORDS * recipe.stages[0].network.text_dim * (n or 1_000_000)
    parts = [f"{n or 1_000_000:,} captions of {WORDS} tokens {scaled(words, 'B')}"]
    if n and not drawn:
        pixels = 3 * recipe.stages[-1].size ** 2 * n
        parts.append(f"their pictures {scaled(pixels, 'B')} before compression")
    kept = sum(p.costed.train.keep * checkpoint(p.costed) for p in made.stages)
    return ", ".join([*parts, f"checkpoints {scaled(kept, 'B')}"])


def reading(made: Plan) -> float:
    "GPU-seconds to encode the captions of all steps while training runs: two operations a weight and token."
    captions = sum(p.costed.train.steps * p.costed.train.batch for p in made.stages)
    return captions * 2 * READERS[made.recipe.encoder] * WORDS / made.on.speed


def online(made: Plan) -> str:
    "What no cache costs: as many steps read as many captions, however many different ones there are."
    seconds, width = reading(made), made.recipe.stages[0].network.text_dim
    share = seconds / sum(p.gpu_seconds(made.on) for p in made.stages)
    hours = seconds / 3600  # which a cache of any size saves; a TB of it holds so many captions
    most = scaled(hours * 1e12 / (2 * WORDS * width), "")
    return (
        f"without a cache: captions encoded online take {duration(seconds)} of GPU time more, {share:.0%};"
        f" it pays where captions are more than {most}, if a TB costs a GPU-hour"
    )


def misfits(made: Plan) -> Iterator[str]:
    "Stages that do not fit."
    for p in made.stages:
        if not p.fits:
            need = f"{gib(p.memory.peak(p.batch))}, {gib(made.on.room)} are there"
            way = f"the smallest change that does: {p.change}" if p.change else "nothing known does"
            yield f"{p.costed.stage.size} px does not fit: {p.batch:,} at once need {need}; {way}"
