"""Every field of every config is read: two configs that differ in it alone give what their comments say.

A row is `field=(other value, measure, result before, result after)`. `ANY` stands for a result that must only change;
of a tuple each entry must. The fields are found by walking the package: one without a row is an error.
"""

import importlib
import json
import math
import pkgutil
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from test_networks import BASE, SR, awake, inputs
from test_validation import ENLARGER
from torch import nn
from train_worker import STAGE, Letters, make_trainer, pin_fp32

import imagen_nb
from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import cosine_log_snr, linear_log_snr
from imagen_nb.engine import keeping, logs
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.optim import OPTIMIZERS, Muon, make_optimizers, orthogonalize
from imagen_nb.lab.judge import JudgeConfig, TwoTowers, World
from imagen_nb.layers import Attention, FeedForward, ResBlock
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import Batch
from imagen_nb.recipes import DataConfig, Recipe, find_recipe
from imagen_nb.runs import work
from imagen_nb.runs.plan import Machines, plan, report
from imagen_nb.runs.setup import first_stages, open_data
from imagen_nb.stage import Stage, StageConfig, denoiser
from imagen_nb.store.checkpoint import checkpoints
from imagen_nb.store.config import KINDS, config_to_dict
from imagen_nb.text import TextEmbedding
from imagen_nb.training import Samples, TrainConfig, draw, ema_decay, learning_rate, update

ANY: Any = object()
WORLD = ShapesWorld("train", level="quick", size=16, length=6)


@pytest.fixture(scope="module", autouse=True)
def fp32():
    undo = pin_fp32()
    yield
    undo()


# ---------------------------------------------------------------- a stage


class Formula(nn.Module):
    "A network that is a formula of the noisy picture and the captions; it notes what it is given."

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls, self.p = answer, [], nn.Parameter(torch.zeros(()))

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        self.calls.append((z_t, log_snr, aug_log_snr))
        return self.answer(z_t, text) + 0 * self.p


RAMP = torch.linspace(-3, 3, 64 * 64).reshape(1, 1, 64, 64)
GRAY = TextEmbedding(torch.full((2, 1, 12), 0.25), torch.ones(2, 1, dtype=torch.bool))


def silent(z, text):
    return torch.zeros_like(z)


def sampled(config, answer=silent):
    "A picture, and what the network was given on the way."
    stage = Stage(config, Formula(answer))
    low = torch.full((2, 3, config.lowres_size, config.lowres_size), 0.5)
    return stage.sample(GRAY, low, seeds=[0, 1]), stage.network.calls


def trained(config, t=0.25):
    "Loss of gray pictures at one noise level, and what the network was given."
    stage, side = Stage(config, Formula(silent)), config.side + 2 * config.margin
    draws = draw(0, torch.arange(2), config)
    draws = draws._replace(t=torch.full((2,), t), aug_t=torch.full((2,), 0.1))
    batch = Batch(torch.full((2, 3, side, side), 0.5), GRAY, torch.arange(2))
    return stage.loss(batch, draws).mean().item(), stage.network.calls[0]


def drawn(config, n=64):
    return draw(0, torch.arange(n), replace(config, crop=16))


def half_way(config):
    "What a network that says nothing makes of pure white at alpha = sigma."
    denoise = denoiser(Stage(config, Formula(silent)), GRAY, 1.0, None)
    return denoise(torch.ones(2, 3, 8, 8), torch.zeros(()))[0, 0, 0, 0].item()


def residual(config):
    z, b = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    said = Stage(config, Formula(silent)).predict(z, b, GRAY, z + 1, b)
    return said.mean().item(), sampled(replace(config, aug_t=0.0))[0].mean().item()


def tokens(z, text):
    return text.tokens.mean((1, 2))[:, None, None, None].expand_as(z)


def stage_rows(tmp_path):
    first = StageConfig(
        size=64,
        lowres_size=16,
        crop=32,
        network=SR,
        target="x0",
        steps=3,
        w=1.0,
        sampler="ddim",
        threshold=None,
    )
    at = {t: cosine_log_snr(torch.tensor(t)).item() for t in (0.1, 0.2, 0.999)}
    linear = {t: linear_log_snr(torch.tensor(t)).item() for t in (0.1, 0.2, 0.25, 0.999)}
    levels = -2 * math.log(math.tan(math.pi / 8))  # of the cosine at t = .25
    return first, dict(
        size=(128, lambda c: sampled(c)[0].shape[-1], 64, 128),
        network=(replace(SR, stem=24), lambda c: Stage(c).network.config.stem, 16, 24),
        lowres_size=(32, lambda c: draw(0, torch.arange(1), c).aug_eps.shape[-1], 10, 18),
        crop=(16, lambda c: draw(0, torch.arange(1), c).eps.shape[-1], 32, 16),
        schedule=(
            "linear",
            lambda c: (trained(c)[1][1][0].item(), sampled(c)[1][0][1][0].item()),
            (levels, at[0.999]),
            (linear[0.25], linear[0.999]),
        ),
        target=("eps", half_way, 0.0, 2**0.5),
        loss_weight=("x0", lambda c: trained(c)[0], 0.25 * math.exp(levels), 0.25),
        time_law=(
            (1.0, 1e-4),
            lambda c: round(drawn(c).t.mean().item(), 1),
            0.5,
            round(1 / (1 + math.exp(-1)), 1),
        ),
        caption_drop=(
            0.7,
            lambda c: round(drawn(c, 400).keep_text.float().mean().item(), 1),
            0.9,
            0.3,
        ),
        aug_schedule=(
            "linear",
            lambda c: (trained(c)[1][2][0].item(), sampled(c)[1][0][2][0].item()),
            (at[0.1], at[0.2]),
            (linear[0.1], linear[0.2]),
        ),
        aug_max=(0.2, lambda c: round(drawn(c, 200).aug_t.max().item(), 1), 1.0, 0.2),
        is_residual=(True, residual, (0.0, 0.0), (1.0, 0.5)),
        t_start=(0.5, lambda c: sampled(c)[1][0][1][0].item(), at[0.999], 0.0),
        steps=(5, lambda c: len(sampled(c)[1]), 3, 5),
        sampler=("ddpm", lambda c: sampled(c, lambda z, text: z / 2)[0], ANY, ANY),
        w=(
            3.0,
            lambda c: (len(sampled(c)[1][0][0]), sampled(c, tokens)[0].mean().item()),
            (2, 0.25),
            (4, 0.75),
        ),
        threshold=(
            "dynamic",
            lambda c: round(
                sampled(c, lambda z, text: RAMP.expand_as(z))[0][0, 0, 48, 0].item(), 2
            ),
            1.0,
            0.5,
        ),
        aug_t=(0.5, lambda c: sampled(c)[1][0][2][0].item(), at[0.2], 0.0),
    )


# ---------------------------------------------------------------- networks


def built(config):
    torch.manual_seed(0)
    return config.build()


def count(kind):
    return lambda c: sum(isinstance(m, kind) for m in built(c).modules())


def reads(*path):
    "The number that a path of names and places leads to, in the network."

    def measure(config):
        here = built(config)
        for name in path:
            here = here[name] if isinstance(name, int) else getattr(here, name)
        return here

    return measure


def predicted(config):
    return awake(config)(*inputs(config)).detach()


def joined(config):
    "A skip of threes joined to features of ones."
    one = torch.ones(1, 1, 1, 1)
    return [round(v, 4) for v in built(config).join(one, 3 * one).flatten().tolist()]


SHARED = dict(  # of both networks
    text_dim=(6, reads("cond", "text", "proj", 1, "in_features"), 12, 6),
    text_width=(24, reads("cond", "pool", "score", "in_features"), 16, 24),
    pool_queries=(2, reads("cond", "pool", "score", "out_features"), 4, 2),
)


def base_rows(tmp_path):
    return BASE, SHARED | dict(
        dim=(48, reads("conv_in", "out_channels"), 24, 48),
        mults=((1, 3), reads("middle", 0, "block", "conv1", "out_channels"), 48, 72),
        blocks=(2, count(ResBlock), 10, 14),
        attention=((True, True), count(Attention), 4, 7),
        head_dim=(12, predicted, ANY, ANY),
        emb_dim=(64, reads("middle", 0, "block", "film", "in_features"), 32, 64),
        text_depth=(1, lambda c: len(built(c).cond.text.mix), 0, 1),
        skips=("add", joined, [1.0, 3.0], [2.8284]),
        resample=("conv", count(ResBlock), 10, 8),
        separate_attention=(True, count(Attention), 4, 8),
        feed_forward=(
            3,
            lambda c: [m.up.out_channels for m in built(c).modules() if isinstance(m, FeedForward)],
            [],
            [144] * 4,
        ),
        patch=(2, lambda c: (c.stride, built(c).conv_in.in_channels), (2, 3), (4, 12)),
        has_lowres=(True, reads("conv_in", "in_channels"), 3, 6),
    )


def read_by(what):
    "Of each level, down and up: does its attention read this?"

    def measure(config):
        net = built(config)
        return [
            b.attention is not None and getattr(b.attention, what) for b in [*net.down, *net.up]
        ]

    return measure


def efficient_rows(tmp_path):
    some, every = [False, True, True, False], [True] * 4

    def strides(c):
        net = built(c)
        return c.stride, net.down[1].down.conv.stride[0], net.up[0].up.stride

    return SR, SHARED | dict(
        channels=((16, 64), reads("down", 1, "blocks", 0, "conv1", "out_channels"), 32, 64),
        blocks=((1, 3), lambda c: [len(b.blocks) for b in built(c).up], [2, 1], [3, 1]),
        strides=((2, 1), strides, (4, 2, 2), (2, 1, 1)),
        self_attention=((True, True), read_by("has_self"), some, every),
        text_attention=((True, True), read_by("has_text"), some, every),
        heads=(4, predicted, ANY, ANY),
        stem=(32, reads("conv_in", "out_channels"), 16, 32),
        emb_dim=(64, reads("down", 0, "blocks", 0, "film", "in_features"), 32, 64),
        has_lowres=(False, reads("conv_in", "in_channels"), 6, 3),
        patch=(2, lambda c: (c.stride, built(c).conv_in.in_channels), (4, 6), (8, 24)),
    )


# ---------------------------------------------------------------- training


def by_hand(betas, gradients=(1.0, 3.0), lr=0.01):
    "A parameter that begins at zero, after two steps of Adam without its epsilon."
    p, m, v = 0.0, 0.0, 0.0
    for k, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p -= lr * m / (1 - betas[0] ** k) / math.sqrt(v / (1 - betas[1] ** k))
    return round(p, 6)


def two_steps(config):
    "A bias after two known gradients, by each optimizer that is Adam or has one."
    found = []
    for name in ("adam", "adamw", "muon"):
        net = nn.Linear(2, 1)
        nn.init.zeros_(net.bias)
        optimizers = make_optimizers(net, replace(config, optimizer=name))
        for g in (1.0, 3.0):
            net.weight.grad, net.bias.grad = torch.zeros(1, 2), torch.tensor([g])
            for o in optimizers:
                o.step()
        found.append(round(net.bias.item(), 6))
    return tuple(found)


def decays(config):
    "Does a weight shrink without a gradient? By each optimizer; the middle layer is Muon's."
    found = []
    for name in OPTIMIZERS:
        net = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
        for p in net.parameters():
            nn.init.ones_(p)
            p.grad = torch.zeros_like(p)
        for o in make_optimizers(net, replace(config, optimizer=name)):
            o.step()
        found.append(all(bool((p < 1).all()) for p in net.parameters()))
    return tuple(found)


def updated(config, step, gradient=0.0):
    "How far `update` takes four weights of one, and their average from zero."
    net, average = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    nn.init.ones_(net.weight)
    nn.init.zeros_(average.weight)
    net.weight.grad = torch.full((1, 4), gradient)
    update(Learned(net, average, [torch.optim.SGD(net.parameters(), 1.0)]), step, config)
    return round((1 - net.weight).norm().item(), 5), round(average.weight.mean().item(), 5)


def samples_of(config):
    return Samples(ENLARGER, WORLD, Letters(), config)


def everything_drawn(config):
    batch, draws = samples_of(config)(torch.arange(6))
    return tuple(batch.captions), draws.t, draws.eps, draws.aug_t, draws.aug_eps


def train_rows(tmp_path):
    first = TrainConfig(
        batch=8, steps=20, optimizer="adam", lr=0.01, warmup=4, clip=1.0, ema=0.9, ema_power=13.0
    )
    folders = iter(range(9))

    def kept(c):
        out = tmp_path / f"kept {next(folders)}"
        make_trainer(out, 6, batch=2, save_every=c.save_every // 2500, keep=c.keep).fit()
        return [int(p.name[5:]) for p in checkpoints(out)]

    def steps(c):
        return len(list(samples_of(c).batches(0))), learning_rate(12, c)

    adam, quick = by_hand((0.9, 0.999)), by_hand((0.5, 0.9))
    return first, dict(
        batch=(4, lambda c: samples_of(c).index(3).tolist(), [*range(24, 32)], [*range(12, 16)]),
        steps=(12, steps, ANY, (12, 0.0)),
        optimizer=("adamw", lambda c: type(*make_optimizers(nn.Linear(2, 2), c)), ANY, ANY),
        lr=(0.02, lambda c: learning_rate(4, c), 0.01, 0.02),
        betas=((0.5, 0.9), two_steps, (adam,) * 3, (quick,) * 3),
        weight_decay=(0.1, decays, (False,) * 5, (True,) * 5),
        warmup=(2, lambda c: learning_rate(0, c), 0.0025, 0.005),
        decay=("constant", lambda c: learning_rate(20, c), 0.0, 0.01),
        final=(0.5, lambda c: learning_rate(20, c), 0.0, 0.005),
        clip=(0.25, lambda c: updated(c, 4, 5.0)[0], 0.01, 0.0025),  # lr times the norm
        ema=(0.99, lambda c: updated(c, 10**6)[1], 0.1, 0.01),
        ema_power=(1.0, lambda c: ema_decay(5, c), 0.8**13, 0.8),
        seed=(1, everything_drawn, ANY, ANY),
        save_every=(7500, kept, [6, 4], [6, 3]),
        keep=(3, kept, [6, 4], [6, 4, 2]),
    )


def test_two_steps_of_muon_written_out():
    "Momentum .95, Nesterov, orthogonal updates of the size of AdamW's: no field, but documented."
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False)
    muon, w = Muon(layer.parameters(), lr=0.1, weight_decay=0.5), layer.weight.detach().clone()
    m = torch.zeros_like(w)
    for g in torch.randn(2, 16, 24):
        layer.weight.grad = g.clone()
        muon.step()
        m = 0.95 * m + 0.05 * g
        update = 0.05 * g + 0.95 * m  # looks ahead
        w = (1 - 0.1 * 0.5) * w - 0.1 * 0.2 * 24**0.5 * orthogonalize(update[None])[0]
        torch.testing.assert_close(layer.weight.detach(), w, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- how a run is carried out


class Shared(Formula):
    "A network whose copies note the sizes of batches in one list."

    rows: list[int] = []

    def forward(self, z_t, *others):
        self.rows.append(len(z_t))
        return self.p * z_t


class Told:
    "A tracker that keeps what it is told."

    package, rows = "json", []

    def __init__(self, out, start):
        self.rows.clear()

    def note(self, kind, row, picture):
        self.rows.append(kind)

    def close(self):
        pass


def numbers_kept(network):
    "Numbers that a forward pass keeps for the way back, but for weights."
    kept, own = [], {p.data_ptr() for p in network.parameters()}

    def pack(x):
        kept.append(0 if x.data_ptr() in own else x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(*inputs(BASE))
    return sum(kept)


def execution_rows(tmp_path):
    first = Execution(validate_every=0, sample_every=0, progress=False)
    stage, folders = replace(STAGE, steps=2, w=1.0), iter(range(99))
    process = SimpleNamespace(wrap=lambda network: network)

    def run(c, steps=2, network=None):
        out = tmp_path / f"run {next(folders)}"
        own = {f.name: getattr(c, f.name) for f in fields(c)}
        make_trainer(out, steps, stage=stage, network=network, **own).fit()
        return out

    def parts(c):
        Shared.rows.clear()
        run(c, steps=1, network=Shared(None))
        return list(Shared.rows)

    def looks(kind):
        def measure(c):
            path = run(c) / f"{kind}.jsonl"
            rows = path.read_text().splitlines() if path.exists() else []
            return [json.loads(row)["step"] for row in rows]

        return measure

    def told(c):
        Told.rows.clear()
        run(c)
        return list(Told.rows)

    def shown(c):
        trainer = make_trainer(
            tmp_path / f"run {next(folders)}", 1, stage=stage, progress=c.progress
        )
        return trainer.prepare().show is not None

    def compiled(c):
        network = c.wrap(built(BASE), process)
        return any(m._compiled_call_impl is not None for m in network.modules())

    def keeps_less(c):
        return numbers_kept(c.wrap(built(BASE), process)) < numbers_kept(built(BASE)) / 2

    def shared_out(c):
        pair, samples = SimpleNamespace(rank=0, ranks=2), SimpleNamespace(config=None)
        with mock.patch.object(keeping, "Shards", lambda process: "in parts"):
            return keeping.Keeper(tmp_path, samples, pair, learning_rate, c.shard).shards

    return first, dict(
        accumulate=(2, parts, [8], [4, 4]),
        shard=(True, shared_out, None, "in parts"),
        compile=(True, compiled, False, True),
        recompute=(True, keeps_less, False, True),
        validate_every=(1, looks("validation"), [], [1, 2]),
        sample_every=(1, looks("samples"), [], [1, 2]),
        track=(("told",), told, [], ["log"]),
        progress=(True, shown, False, True),
    )


# ---------------------------------------------------------------- data and runs


def data_rows(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        lines = ["file_name,picture,text,words"]
        for k in range(6):
            for shade, start in enumerate("ab"):
                side = 16 + 8 * (k % 2)
                Image.new("RGB", (side, side), (40 * k, 200 * shade, 0)).save(
                    folder / f"{start}{k}.png"
                )
            lines.append(f"a{k}.png,b{k}.png,{name} {k},other {k}")
        (folder / "list.csv").write_text("\n".join(lines) + "\n")

    def opened(c, split="train"):
        return load_captioned(size=8, split=split, **vars(c))

    def captions(c):
        return [opened(c).caption(i) for i in range(len(opened(c)))]

    def green(c):
        return round(opened(c).images([0])[0, 1].mean().item(), 2)

    ones, twos = [[f"{name} {k}" for k in range(6)] for name in ("one", "two")]
    first = DataConfig(source=str(tmp_path / "one" / "list.csv"))

    def shares(c):
        return [len(opened(c, split)) for split in ("train", *(["valid"] if c.held_out else []))]

    return first, dict(
        source=(str(tmp_path / "two" / "list.csv"), captions, ones, twos),
        image_column=("picture", green, -1.0, round(200 / 127.5 - 1, 2)),
        caption_column=("words", captions, ones, [f"other {k}" for k in range(6)]),
        min_size=(20, lambda c: len(opened(c)), 6, 3),
        held_out=(0.4, shares, [6], ANY),
    )


class Reader(Letters):
    "Letters, as an encoder."

    identity, width = None, 6

    def to(self, device):
        return self

    def __call__(self, captions):
        return self[captions]


STAGES = (
    replace(STAGE, steps=1, w=1.0),
    replace(ENLARGER, size=32, lowres_size=16, crop=16, steps=1, w=1.0),
)


@pytest.fixture
def worked(tmp_path, monkeypatch):
    "Does the work of a job with a tiny recipe; returns its folder and the encoder's name."
    asked, made = [], iter(range(99))
    plain = dict(batch=2, optimizer="adam", warmup=0, ema=0.5)
    recipe = Recipe(
        name="small",
        encoder="toy",
        level="quick",
        stages=STAGES,
        training=(TrainConfig(steps=1, **plain), TrainConfig(steps=1, **plain)),
    )

    def world(recipe, split="train"):
        return ShapesWorld(split, level=recipe.level, size=16, length=6)

    def call(job=None, recipe=recipe):
        folder = tmp_path / f"work {next(made)}"
        job = job or make_job(str(folder))
        (out := type(tmp_path)(job.out)).mkdir(exist_ok=True)
        (out / "config.json").write_text(json.dumps(config_to_dict(recipe)))
        work.work(job)
        return out, asked[-1]

    def make_job(out, **others):
        execution = Execution(validate_every=0, sample_every=0, progress=False)
        return work.Job(**dict(out=out, held_out=2, execution=execution) | others)

    monkeypatch.setattr(work, "make_encoder", lambda name: asked.append(name) or Reader())
    monkeypatch.setattr(work, "open_data", world)
    monkeypatch.setattr(work, "held_back", lambda recipe: None)
    monkeypatch.setattr(work, "EmbeddingCache", SimpleNamespace(open=lambda *a: Reader()))
    return SimpleNamespace(call=call, recipe=recipe, job=make_job, asked=asked)


def steps_of(out):
    return [int(p.parent.name[:-2]) for p in sorted(out.glob("*px/step_*"))]


def recipe_rows(tmp_path, worked):
    folder, first = tmp_path / "pictures", worked.recipe
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a black picture.png")
    (folder / "a black picture.txt").write_text("black")
    model = Imagen(Reader(), [Stage(STAGES[0]), Stage(STAGES[1])])
    model.stages[0].network.conv_in.weight.data.fill_(3.0)
    model.save_pretrained(tmp_path / "model")

    def refused(c):
        with pytest.raises(ValueError) as e:
            open_data(replace(c, level=None))
        return "recipe small needs" in str(e.value), "recipe tiny needs" in str(e.value)

    def opened(c):
        return type(open_data(c)).__name__, open_data(c).size  # the last stage's

    def begun(c):
        weight = first_stages(c)[0].network.conv_in.weight
        return round(weight.max().item(), 2), round(weight.mean().item(), 5)

    def lasts(c):
        out, _ = worked.call(recipe=c)
        return [p.name for p in sorted(out.glob("16px/step_*"))]

    longer = tuple(replace(t, steps=2) for t in first.training)
    wider = (replace(STAGES[0], size=32), replace(STAGES[1], size=64, lowres_size=32))
    return first, dict(
        name=("tiny", refused, (True, False), (False, True)),
        encoder=("other", lambda c: worked.call(recipe=c)[1], "toy", "other"),
        level=("full", lambda c: open_data(c).level, "quick", "full"),
        data=(DataConfig(source=str(folder)), opened, ("ShapesWorld", 64), ("CaptionedImages", 32)),
        init=(str(tmp_path / "model"), begun, ANY, (3.0, 3.0)),
        stages=(wider, lambda c: [s.config.size for s in first_stages(c)], [16, 32], [32, 64]),
        training=(longer, lasts, ["step_00000001"], ["step_00000002"]),
    )


def job_rows(tmp_path, worked):
    first, made = worked.job(str(tmp_path / "first")), iter(range(99))

    def done(c, where):
        out = tmp_path / f"{next(made)} {where}"
        worked.call(replace(c, out=str(out)))
        return out

    def drew(c):
        return len(list((done(c, "drew") / "samples").glob("*.json")))

    def looked(c):
        return len(list(done(c, "looked").glob("*px/validation.jsonl")))

    def models(c):
        worked.call(c)
        return sorted(p.parent.name for p in tmp_path.glob("*/model"))

    def readers(c):
        before = len(worked.asked)
        done(c, "read")
        return len(worked.asked) - before  # to draw with, and perhaps to train with

    watched = replace(first.execution, validate_every=1)
    return first, dict(
        out=(str(tmp_path / "second"), models, ["first"], ["first", "second"]),
        stage=(0, lambda c: steps_of(done(c, "alone")), [16, 32], [16]),
        held_out=(3, drew, 2, 3),
        execution=(watched, looked, 0, 2),
        online=(True, readers, 1, 2),
    )


# ---------------------------------------------------------------- the judge


def judge_rows(tmp_path):
    first = JudgeConfig(
        size=16, width=8, channels=(4, 8), blocks=(1, 1), text_width=12, text_layers=1, heads=2
    )
    pieces = ["[PAD]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]

    def made(c):
        torch.manual_seed(0)
        return TwoTowers(c, pieces).eval()

    def seen(c):
        looked = made(c).looked_at(torch.zeros(1, 3, 32, 32))
        return tuple(looked.shape[2:])

    def heads(c):
        return made(c).text_tower.tokens(*made(c).pieces(["abc de"]))

    def cut(c):
        return made(c).pieces(["abcdefgh"])[0].shape[1]

    return first, dict(
        size=(24, seen, (16, 16), (24, 24)),
        width=(6, lambda c: made(c).text_vectors(["ab"]).shape[1], 8, 6),
        channels=(
            (4, 6),
            lambda c: made(c).image_features(torch.zeros(1, 3, 16, 16)).shape[1],
            8,
            6,
        ),
        blocks=((1, 2), lambda c: len(made(c).image_tower.parts), 6, 7),
        text_width=(16, lambda c: heads(c).shape[2], 12, 16),
        text_layers=(2, lambda c: len(made(c).text_tower.layers), 1, 2),
        heads=(3, heads, ANY, ANY),
        max_length=(5, cut, 8, 5),
    )


def world_rows(tmp_path):
    first = World(objects=("cat", "ear"), styles=("3d",), tones=("", "light"), toned=("ear",))
    return first, dict(
        objects=(("ear",), lambda c: len(c.facts()), 3, 2),
        styles=(("3d", "flat"), lambda c: len(c.facts()), 3, 6),
        tones=(("", "light", "dark"), lambda c: len(c.facts()), 3, 4),
        toned=((), lambda c: len(c.facts()), 3, 2),
    )


# ---------------------------------------------------------------- a plan


def machines_rows(tmp_path):
    recipe = find_recipe("toy")

    def first_stage(c):
        return plan(recipe, c).stages[0]

    def told(c):
        return report(plan(recipe, c))

    return Machines(count=2), dict(
        gpu=("h200", lambda c: c.room, ANY, ANY),
        count=(3, lambda c: replace(c, strategy="fsdp").parts, 2, 3),
        strategy=("fsdp", lambda c: c.parts, 1, 2),
        batch=(8, lambda c: first_stage(c).batch, ANY, 8),
        recompute=(True, lambda c: c.passes, 3, 4),
        share=(0.2, lambda c: c.speed / 989e12, 0.4, 0.2),
        price=(2.5, lambda c: " in all" in told(c), False, True),
        pictures=(1234, lambda c: "1,234" in told(c), False, True),
    )


# ---------------------------------------------------------------- all of them

ROWS = dict(
    JudgeConfig=judge_rows,
    World=world_rows,
    Machines=machines_rows,
    StageConfig=stage_rows,
    UNetConfig=base_rows,
    EfficientUNetConfig=efficient_rows,
    TrainConfig=train_rows,
    Execution=execution_rows,
    DataConfig=data_rows,
    Recipe=recipe_rows,
    Job=job_rows,
)


def every_field():
    "(class, field) of each config of the package, with all its modules imported."
    for module in pkgutil.walk_packages(imagen_nb.__path__, "imagen_nb."):
        importlib.import_module(module.name)
    ours = [kind for kind in KINDS.values() if kind.__module__.startswith("imagen_nb.")]
    return [(kind.__name__, f.name) for kind in ours for f in fields(kind)]


def same(a, b) -> bool:
    "Equal; tensors bit by bit, numbers within rounding."
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return a == pytest.approx(b, rel=1e-4, abs=1e-6) if isinstance(a, float) else a == b


def has_changed(a, b) -> bool:
    "Other; of a tuple each entry."
    return all(map(has_changed, a, b)) if isinstance(a, tuple) else not same(a, b)


@pytest.mark.parametrize("kind, field", every_field())
def test_a_field_is_read(kind, field, tmp_path, request, monkeypatch):
    monkeypatch.setitem(logs.TRACKERS, "told", Told)
    needs_work = kind in ("Recipe", "Job")
    first, rows = ROWS[kind](tmp_path, *([request.getfixturevalue("worked")] if needs_work else []))
    assert rows.keys() == {f.name for f in fields(first)}  # no row for a field that is gone
    value, measure, before, after = rows[field]
    found, then = measure(first), measure(replace(first, **{field: value}))
    assert has_changed(found, then)
    assert before is ANY or same(found, before)
    assert after is ANY or same(then, after)
    if before is ANY or after is ANY:  # it is the field that matters, not chance
        assert same(found, measure(first))
