"Adafactor against its published rule and against optax; what it keeps, what it asks, what it refuses."

from functools import cache

import numpy as np
import pytest
import torch
from train_worker import STAGE

from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.optim import (
    OPTIMIZERS,
    Adafactor,
    adafactor_shapes,
    factored_axes,
    load_optimizer_tensors,
    make_optimizers,
    optimizer_tensors,
)
from imagen_nb.recipes import paper
from imagen_nb.stage import Stage
from imagen_nb.store.files import CheckpointError
from imagen_nb.training import TrainConfig

# name -> shape, and the two axes that are a matrix's rows and columns, by hand
WEIGHTS = {
    "linear": ((192, 160), (0, 1)),
    "square linear": ((128, 128), (0, 1)),
    "small linear": ((127, 160), None),
    "convolution": ((128, 144, 3, 3), (0, 1)),
    "last convolution": ((3, 160, 3, 3), None),
    "axes apart": ((130, 2, 140), (0, 2)),
    "bias": ((160,), None),
    "number": ((), None),
}
STEPS, RATE = 20, 1e-2


def weights(zero: str = "") -> dict:
    "Starting points; the named one is zero, as the last layer of a block is."
    g = np.random.default_rng(0)
    return {
        name: g.normal(size=shape) * (name != zero) * 0.05 for name, (shape, _) in WEIGHTS.items()
    }


@cache
def gradients(step: int) -> dict:
    "Rows and columns of very different sizes, or there would be nothing to factor."
    g = np.random.default_rng(100 + step)
    found = {}
    for name, (shape, _) in WEIGHTS.items():
        grad = g.normal(size=shape) * 10.0 ** g.integers(-3, 2)
        for axis, n in enumerate(shape):
            scale = np.exp(1.5 * np.random.default_rng(axis).normal(size=n))
            grad = grad * scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        found[name] = grad
    return found


def published(x, grads, matrix, *, scaled):
    "Shazeer & Stern 2018, algorithms 4 to 6 with their constants, in float64; a point after each step."
    r = c = v = 0.0
    for t, g in enumerate(grads, 1):
        beta, g2 = 1 - t**-0.8, g * g + 1e-30
        if matrix:  # V = R C / 1'R, for each place of the kernel
            over_rows, over_columns = matrix
            r = beta * r + (1 - beta) * g2.sum(over_columns, keepdims=True)
            c = beta * c + (1 - beta) * g2.sum(over_rows, keepdims=True)
            v = r * c / r.sum(over_rows, keepdims=True)
        else:
            v = beta * v + (1 - beta) * g2
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u * u).mean()))
        x = x - RATE * (max(1e-3, np.sqrt((x * x).mean())) if scaled else 1.0) * u
        yield x


def ours(start: dict, scaled: bool) -> dict:
    "The same points by our Adafactor, all weights in one optimizer."
    params = {k: torch.tensor(v, dtype=torch.float32).requires_grad_() for k, v in start.items()}
    optimizer, points = Adafactor(params.values(), RATE, scaled=scaled), {k: [] for k in params}
    for step in range(STEPS):
        for name, g in gradients(step).items():
            params[name].grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
        for name, p in params.items():
            points[name].append(p.detach().double().numpy().copy())
    return points


def agree(points: list, expected: list) -> float:
    "Cosine of the last update with the witness's; all points within rounding."
    a, b = (np.ravel(o[-1] - o[-2]) for o in (points, expected))
    np.testing.assert_allclose(points[-1], expected[-1], rtol=2e-5, atol=2e-7)
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("scaled", [True, False])
def test_adafactor_is_the_published_rule(scaled):
    start = weights(zero="convolution")
    found = ours(start, scaled)
    for name, (_, matrix) in WEIGHTS.items():
        grads = [gradients(step)[name] for step in range(STEPS)]
        expected = list(published(start[name], grads, matrix, scaled=scaled))
        assert agree(found[name], expected) >= 0.9999, name


def test_the_witness_tells_other_axes_apart():
    "A convolution that is factored over its kernel, as torch does, is far from the rule."
    start, grads = weights()["convolution"], [gradients(k)["convolution"] for k in range(STEPS)]
    right, wrong = (list(published(start, grads, axes, scaled=True)) for axes in ((0, 1), (2, 3)))
    a, b = (np.ravel(o[-1] - o[-2]) for o in (right, wrong))
    assert a @ b / np.sqrt((a @ a) * (b @ b)) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
def test_adafactor_is_that_of_optax(scaled):
    "Where the extra `witness` is installed."
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    start = weights(zero="convolution")
    x = {k: jax.numpy.asarray(v, dtype="float32") for k, v in start.items()}
    rule = optax.adafactor(RATE, multiply_by_parameter_scale=scaled)
    state, expected, update = rule.init(x), {k: [] for k in x}, jax.jit(rule.update)
    for step in range(STEPS):
        grads = {k: jax.numpy.asarray(v, dtype="float32") for k, v in gradients(step).items()}
        updates, state = update(grads, state, x)
        x = optax.apply_updates(x, updates)
        for name, v in x.items():
            expected[name].append(np.asarray(v, dtype="float64"))
    for name, points in ours(start, scaled).items():
        assert agree(points, expected[name]) >= 0.9999, name


def test_the_two_largest_axes_are_factored_where_both_are_large():
    for shape, axes in WEIGHTS.values():
        found = factored_axes(shape)
        assert (found and tuple(sorted(found))) == axes
    assert factored_axes((128, 200)) == (0, 1) and factored_axes((127, 200)) is None
    assert adafactor_shapes((160, 256, 3, 3)) == dict(rows=[160, 1, 3, 3], columns=[1, 256, 3, 3])


def test_weight_decay_is_that_of_adamw():
    p = torch.full((4,), 2.0, requires_grad=True)
    p.grad = torch.zeros(4)
    Adafactor([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 2.0 * 0.95))


@pytest.fixture(scope="module")
def paper_base():
    "The 2 B base of the paper with a gradient for each weight, without numbers."
    with torch.device("meta"):
        network = paper().stages[0].network.build()
    for p in network.parameters():
        p.grad = torch.empty_like(p)
    return network


def test_the_host_never_waits_and_little_is_kept(paper_base):
    "A tensor without numbers answers no question: whoever waits for one fails."
    network, config = paper_base, paper().training[0]
    total = sum(p.numel() for p in network.parameters())
    with pytest.raises(RuntimeError, match="meta"):  # it asks, so the test can fail
        torch.optim.Adafactor(network.parameters()).step()
    (optimizer,) = make_optimizers(network, config)
    optimizer.step()
    kept = sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step")
    assert isinstance(optimizer, Adafactor) and optimizer.param_groups[0]["scaled"]
    assert total > 2e9 and 0.001 < kept / total < 0.002


def test_small_tensors_are_updated_together(paper_base, monkeypatch):
    "As many calls as shapes, whatever the number of tensors; and few numbers in a call."
    calls, update = [], Adafactor.update
    monkeypatch.setattr(
        Adafactor,
        "update",
        lambda self, params, *a: calls.append(params) or update(self, params, *a),
    )
    network, config = paper_base, paper().training[0]
    (optimizer,) = make_optimizers(network, config)
    optimizer.step()
    params = list(network.parameters())
    assert sum(map(len, calls)) == len(params) and len(calls) < len(params) / 2
    assert all(sum(p.numel() for p in c) <= 2**24 for c in calls if len(c) > 1)


@pytest.mark.parametrize("name", ["adafactor", "adafactor_unscaled"])
def test_names_are_the_two_sizes_of_a_step(name):
    "A layer that starts at zero moves 1e-3 of the rate, or the rate."
    layer = torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(layer.weight)
    layer.weight.grad, layer.bias.grad = torch.ones(8, 8), None
    (optimizer,) = OPTIMIZERS[name](layer, TrainConfig(optimizer=name, lr=0.1))
    optimizer.step()
    expected = dict(adafactor=1e-4, adafactor_unscaled=0.1)[name]
    torch.testing.assert_close(layer.weight.detach(), torch.full((8, 8), -expected))
    assert len(optimizer.state) == 1  # the bias had no gradient


def test_the_memory_of_torchs_adafactor_is_refused():
    "Checkpoints of earlier versions hold it: rows and columns of the kernel."
    config = TrainConfig(optimizer="adafactor")
    learned = Learned.begin(Stage(STAGE), config, torch.device("cpu"))
    old = torch.optim.Adafactor(learned.network.parameters())
    for p in learned.network.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in (old, *learned.optimizers):
        optimizer.step()
    tensors = learned.tensors()
    learned.load(tensors, "its own")
    tensors["optimizer"] = optimizer_tensors([old])
    with pytest.raises(CheckpointError) as error:
        learned.load(tensors, "Trainer: runs/a, step 5")
    words = ("Trainer: runs/a, step 5: Adafactor: ", "row_var", "expected", "squares", "--init RUN")
    assert all(word in str(error.value) for word in words)


def test_its_memory_goes_through_a_checkpoint():
    "Six steps in one go, and three before and three after, are equal in every bit."

    def run(parts):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 160 * 130).reshape(160, 130))
        tensors = None
        for steps in parts:
            optimizer = Adafactor([p])
            if tensors:
                load_optimizer_tensors([optimizer], tensors)
            for k in steps:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
                optimizer.step()
            tensors = optimizer_tensors([optimizer])
        return p

    assert torch.equal(run([range(6)]), run([range(3), range(3, 6)]))
