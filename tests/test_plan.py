"""A plan against what it foretells: real tensors, what autograd keeps, torch's own count of FLOPs, the user's words."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from imagen_nb.cli import main
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.optim import OPTIMIZERS, take_step
from imagen_nb.engine.sketch import sketch
from imagen_nb.recipes import RECIPES, emoji, paper, toy
from imagen_nb.runs import plan as planning
from imagen_nb.runs.plan import Machines, plan
from imagen_nb.stage import Stage
from imagen_nb.text import TextEmbedding
from imagen_nb.training import TrainConfig
from imagen_nb.unet import UNetConfig

LENGTH = 13  # tokens of a caption
PAPER = paper().stages
SHRUNK = {  # the paper's networks with every part that they have, small
    "base": (replace(PAPER[0].network, dim=64, emb_dim=64, text_dim=48, text_width=64), 32),
    "256": (
        replace(PAPER[1].network, channels=(16, 16, 32, 64), stem=16, text_dim=48, text_width=32),
        64,
    ),
    "1024": (
        replace(PAPER[2].network, channels=(16, 24, 32, 64), stem=16, text_dim=48, text_width=32),
        96,
    ),
}
OURS = {f"{r.name} {c.size}": (c.network, c.side) for r in (toy(), emoji()) for c in r.stages}
VARIANTS = {  # what no recipe has
    "conv, add": (UNetConfig(dim=32, mults=(1, 2), attention=(True, False), blocks=2, head_dim=16,
                  text_dim=24, text_width=32, emb_dim=64, skips="add", resample="conv"), 16),
    "no text": (UNetConfig(dim=32, mults=(1, 2), attention=(False, True), blocks=1, head_dim=32,
                text_dim=0, emb_dim=64, feed_forward=2, patch=2, has_lowres=True), 32),
    "narrow": (EfficientUNetConfig(channels=(32, 48), blocks=(1, 2), strides=(1, 2), text_dim=24,
               self_attention=(False, True), text_attention=(False, False), heads=2, stem=24), 32),
}  # fmt: skip
EVERY = SHRUNK | OURS | VARIANTS


def forward(network: nn.Module, side: int, b: int, device: str = "cpu"):
    "A pass with inputs of the right shapes."
    c = network.config
    z, log_snr = torch.zeros(b, 3, side, side, device=device), torch.zeros(b, device=device)
    text = TextEmbedding(
        torch.ones(b, LENGTH, c.text_dim, device=device),
        torch.ones(b, LENGTH, dtype=torch.bool, device=device),
    )
    lowres = (z, log_snr) if c.has_lowres else (None, None)
    return network(z, log_snr, text if c.text_dim else None, *lowres)


def kept(network: nn.Module, side: int, b: int) -> int:
    "Bytes of the tensors that autograd keeps, weights excepted, every storage once."
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    storages = {}

    def pack(x):
        if (s := x.untyped_storage())._cdata not in weights:
            storages[s._cdata] = s  # held, so that no other tensor gets its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = forward(network, side, b)
    assert y.requires_grad
    return sum(s.nbytes() for s in storages.values())


@pytest.mark.parametrize("name", EVERY)
def test_activations_are_what_autograd_keeps(name):
    config, side = EVERY[name]
    network = config.build()
    one, two = (kept(network, side, b) for b in (1, 2))
    s = sketch(network, side, item=4, length=LENGTH, folds=True)
    assert s.kept == pytest.approx(two - one, rel=0.01)
    assert s.copies == pytest.approx(2 * one - two, rel=0.01, abs=4096)


def counted(network: nn.Module, side: int, device: str = "cpu") -> float:
    "FLOPs of a picture, forward, as torch counts them."
    unknown = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # to torch's counter
    rule = {unknown: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    mode = FlopCounterMode(display=False, custom_mapping=rule)
    with mode, torch.no_grad():
        forward(network, side, 1, device)
    return mode.get_total_flops()


@pytest.mark.parametrize("name", EVERY)
def test_flops_are_what_torch_counts(name):
    config, side = EVERY[name]
    network = config.build()
    s = sketch(network, side, item=4, length=LENGTH, folds=True)
    assert s.flops == pytest.approx(counted(network, side), rel=1e-6)


@pytest.mark.parametrize("k", range(3))
def test_flops_of_the_paper_at_full_size(k):
    with torch.device("meta"):
        network = PAPER[k].network.build()
    s = sketch(network, PAPER[k].side, item=4, length=LENGTH, folds=True)
    assert s.flops == pytest.approx(counted(network, PAPER[k].side, "meta"), rel=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_is_in_one_block(recipe):
    for p in plan(RECIPES[recipe]()).stages:
        n = sum(q.numel() for q in p.costed.network.parameters())
        assert sum(block.parameters for block in p.costed.sketch.blocks) == n
        assert all(q.is_meta for q in p.costed.network.parameters())


@pytest.mark.parametrize("recipe", [toy, emoji])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_learned_is_exact(recipe, optimizer):
    config = TrainConfig(optimizer=optimizer)
    for stage in recipe().stages:
        learned = Learned.begin(Stage(stage), config, torch.device("cpu"))
        network, average, optimizers = learned
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        take_step(optimizers, 1e-4)
        ours = planning.memory(planning.cost(stage, config), Machines())
        assert ours.weights == sum(p.nbytes for p in network.parameters())
        assert ours.average == sum(p.nbytes for p in average.parameters())
        assert ours.gradients == sum(p.grad.nbytes for p in network.parameters())
        kept = (v for o in optimizers for state in o.state.values() for v in state.values())
        assert ours.optimizer == sum(v.nbytes for v in kept if isinstance(v, torch.Tensor))


def momentum(network: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    "An optimizer that no recipe knows."
    return [torch.optim.SGD(network.parameters(), c.lr, momentum=0.9)]


def test_an_optimizer_of_ones_own_is_asked(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "momentum", momentum)
    costed = planning.cost(toy().stages[0], TrainConfig(optimizer="momentum"))
    assert costed.optimizers["momentum"] == 4 * costed.parameters
    part = planning.memory(costed, Machines(count=8, strategy="fsdp"))
    assert part.optimizer == part.weights


def test_a_plan_of_the_paper_takes_seconds():
    since = time.process_time()
    planning.report(plan(paper()))
    assert time.process_time() - since < 5


def test_the_base_of_the_paper():
    made = plan(paper(), Machines(share=0.4, count=8, strategy="fsdp"))
    base = made.stages[0]
    assert base.costed.parameters == pytest.approx(2.27e9, rel=0.01)
    assert base.gpu_seconds(made.on) / 86400 == pytest.approx(670, rel=0.05)  # GPU-days


def test_text_online_pays_where_the_cache_costs_more_than_reading():
    made = plan(paper())
    seconds = 3 * 2048 * 2_500_000 * 2 * 4.6e9 * 25 / (989e12 * 0.4)
    assert planning.reading(made) == pytest.approx(seconds)
    (line,) = (o for o in planning.report(made).splitlines() if "without a cache" in o)
    tokens = seconds / 3600 * 1e12 / (2 * 4096)  # of a cache of as many TB as GPU-hours
    assert f"more than {planning.scaled(tokens / 25, '')}, if" in line
    assert "without a cache" not in planning.report(
        plan(toy())
    )  # its encoder is read from the disk


# ---------------------------------------------------------------- machines


def test_the_largest_batch_fits_and_one_more_does_not():
    for p in plan(paper(), Machines(gpu="h200")).stages:
        room = Machines(gpu="h200").room
        assert room == pytest.approx(0.95 * 141 * 2**30)  # the driver has its share
        for ours in (p.memory, p.recomputed):
            most = ours.most(room)
            assert ours.peak(most) <= room < ours.peak(most + 1)
        assert p.recomputed.most(room) > p.memory.most(room) > 0
        assert p.fits and p.batch * p.micro >= 2048


def test_a_part_of_the_state_is_a_part_of_the_bytes():
    one, eight = (plan(paper(), Machines(count=n, strategy="fsdp")).stages for n in (1, 8))
    for a, b in zip(one, eight):
        for name in ("weights", "average", "gradients"):
            assert getattr(b.memory, name) * 8 == pytest.approx(getattr(a.memory, name), rel=0.01)
        share = {name: planning.optimizer_bytes(b.costed.network, name, 8) for name in OPTIMIZERS}
        assert b.memory.optimizer == share[b.costed.train.optimizer]
        assert share["adam"] * 8 == pytest.approx(a.costed.optimizers["adam"], rel=0.01)
        means = share["adafactor"] / a.costed.optimizers["adafactor"]
        assert 0.5 < means < 1  # those of rows and columns are whole everywhere
        assert b.memory.each == a.memory.each
        assert b.memory.gathered > 0 == a.memory.gathered
    ddp = plan(paper(), Machines(count=8)).stages[0].memory
    more = [a.fixed - b.fixed for a, b in zip(ddp.moments, one[0].memory.moments)]
    assert more[0] == pytest.approx(ddp.gradients, rel=0.01) and more[-1] == 0 == min(more)


@pytest.mark.parametrize("words", ["--gpu 4090", "--gpu a100-40 --set training.0.optimizer=adam"])
def test_the_smallest_change_is_one_that_fits(words, capsys):
    assert main(["plan", "paper", *words.split()]) == 1
    (line,) = (o for o in capsys.readouterr().out.splitlines() if "64 px does not fit" in o)
    change = line.partition("the smallest change that does: ")[2]
    main(["plan", "paper", *f"{words} {change}".split()])
    assert change and "64 px does not fit" not in capsys.readouterr().out


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_is_one_screen(recipe, capsys):
    assert main(["plan", recipe, "--gpu", "h200", "--price", "2.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 150
    for words in ("to train on a picture", "average of them", "pictures at once", "at 2.5 an hour"):
        assert sum(words in line for line in lines) == 1


def test_changes_of_a_recipe_are_planned(capsys):
    small = ["--set", "stages.0.network.dim=64", "--set=stages.0.network.emb_dim=64"]
    assert main(["plan", "paper", "--gpu", "4090", *small]) == 0
    network = replace(PAPER[0].network, dim=64, emb_dim=64)
    n = sum(
        p.numel()
        for p in planning.cost(
            replace(PAPER[0], network=network), TrainConfig()
        ).network.parameters()
    )
    assert planning.scaled(n, "") in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--gpu h10", "did you mean h100?"),
        ("--count 0", "got '0', expected a whole number, 1 or more"),
        ("--count 7", "count, got 7, expected a divisor of training.0.batch=2048"),
        ("--batch 0", "--batch/--batch-size: got '0'"),
        ("--count 64 --batch 33", "batch, got 33, expected at most 32"),
        ("--share 40", "--share: got '40', expected a number, 0 to 1"),
        ("--strategy tp", "invalid choice: 'tp'"),
        ("--price -1", "--price: got '-1', expected a number, 0 or more"),
        ("--set training.0.batch", "expected path=value"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(words, complaint, capsys):
    assert main(["plan", "paper", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_a_batch_that_does_not_fit_is_told(capsys):
    assert main(["plan", "paper", "--batch", "64"]) == 1
    out = capsys.readouterr().out
    most = plan(paper()).stages[0].memory.most(Machines().room)
    assert "64 px does not fit: 64 at once need" in out
    assert f"the smallest change that does: --batch {most}" in out


def test_a_network_of_ones_own_is_refused():
    with pytest.raises(ValueError, match="sketch: network, got Linear, expected UNet"):
        sketch(nn.Linear(1, 1), 8)
