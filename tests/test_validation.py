"""What a run is measured with: noise by level, captions of other pictures, and the best linear guess."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from train_worker import STAGE, Letters

from imagen_nb.data import ShapesWorld
from imagen_nb.diffusion import alpha_sigma, cosine_log_snr, to_eps, to_v
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.engine.validation import LinearPixels, other_captions
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.text import TextEmbedding
from imagen_nb.training import validation_loss, validation_samples

WORLD = ShapesWorld("valid", level="quick", size=16)
ENLARGER = StageConfig(
    size=16,
    lowres_size=8,
    crop=8,
    target="x0",
    loss_weight="capped",
    is_residual=True,
    aug_max=0.3,
    network=EfficientUNetConfig(
        channels=(8, 8),
        blocks=(1, 1),
        strides=(1, 2),
        self_attention=(False, False),
        text_attention=(False, False),
        stem=8,
        text_dim=6,
        text_width=8,
        heads=2,
        emb_dim=8,
    ),
)


class Gray:
    "Pictures of one gray each, and captions that name it."

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def caption(self, i, epoch=None):
        return str(i)

    def level(self, i):
        return 2 * torch.as_tensor(i).float() / (self.n - 1) - 1

    def images(self, indices, size, crop=None):
        return self.level(indices)[:, None, None, None].expand(-1, 3, size, size).clone()


class Numbers:
    "A text encoder that hands on the number."

    def __getitem__(self, captions):
        return TextEmbedding(
            torch.tensor([float(c) for c in captions])[:, None, None],
            torch.ones(len(captions), 1, dtype=torch.bool),
        )


class Planted(nn.Module):
    "A network that is a formula."

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(()))

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        return self.answer(z_t, log_snr, text)


def fresh(config):
    torch.manual_seed(0)
    stage = Stage(config)
    for p in stage.network.parameters():  # fresh blocks are the identity: wake them
        if p.ndim > 1:
            nn.init.normal_(p, std=0.1)
    return stage


def test_levels_are_visited_evenly_and_draws_are_keyed():
    stage = Stage(STAGE, Planted(None))

    def drawn(batch_size, seed=0):
        parts = validation_samples(stage, WORLD, Letters(), 48, seed, batch_size)
        return (
            torch.cat([b.images for b, _ in parts]),
            sum((b.captions for b, _ in parts), []),
            *(torch.cat([getattr(d, k) for _, d in parts]) for k in ("t", "eps", "keep_text")),
        )

    images, captions, t, eps, keep = drawn(16)
    assert (t * 8).long().tolist() == [k % 8 for k in range(48)] and keep.all()
    for k in range(8):
        assert (t[k::8] * 8 - k).sort().values.diff().max() < 0.45  # spread inside a level
    for other in (drawn(5), drawn(48)):
        assert all(
            a == b if isinstance(a, list) else torch.equal(a, b)
            for a, b in zip((images, captions, t, eps), other)
        )
    assert not torch.equal(eps, drawn(16, seed=1)[3]) and captions != drawn(16, seed=1)[1]
    few = ShapesWorld(
        "valid", level="quick", size=16, length=5
    )  # seen more than once, with other noise
    parts = validation_samples(stage, few, Letters(), 10, 0, 5)
    assert sorted(parts[0][0].captions) == sorted(parts[1][0].captions) and not torch.equal(
        parts[0][1].eps, parts[1][1].eps
    )


def test_other_captions_are_never_the_own_one_where_captions_differ():
    said = ["a", "b", "b", "a", "a", "c", "b", "a"]
    assert all(a != b for a, b in zip(said, other_captions(said)))
    assert other_captions(["a", "b", "c"]) == ["b", "c", "a"] and other_captions(["a", "a"]) == [
        "a",
        "a",
    ]


@pytest.mark.parametrize("target", ["x0", "eps", "v"])
@pytest.mark.parametrize("weight", ["eps", "x0", "capped"])
def test_a_planted_linear_guess_loses_what_trivial_says(target, weight):
    config = replace(STAGE, target=target, loss_weight=weight)
    n, stage = 32, Stage(config, Planted(None))
    images = torch.cat([b.images for b, _ in validation_samples(stage, WORLD, Letters(), n)])
    m, v = (
        f(images.double(), (0, 2, 3), keepdim=True).float()
        for f in (torch.mean, lambda *a, **k: torch.var(*a, correction=0, **k))
    )

    def answer(z_t, log_snr, text):
        alpha, sigma = (o[:, None, None, None] for o in alpha_sigma(log_snr))
        x0_hat = m + alpha * v / (alpha**2 * v + sigma**2) * (z_t - alpha * m)
        return dict(
            x0=x0_hat, eps=to_eps(x0_hat, z_t, log_snr, "x0"), v=to_v(x0_hat, z_t, log_snr, "x0")
        )[target]

    row = validation_loss(Stage(config, Planted(answer)), WORLD, Letters(), n=n)
    torch.testing.assert_close(
        torch.tensor(row["loss"]), torch.tensor(row["trivial"]), rtol=1e-3, atol=1e-5
    )
    assert row["n"] == n and row["levels"] == [k / 8 for k in range(8)]


def test_trivial_is_the_error_of_theory_and_no_gain_beats_it():
    "v sigma^2/(alpha^2 v + sigma^2), averaged over a level; a gain that is 10 % off loses more."
    config = replace(STAGE, loss_weight="x0", time_law=None)
    n, stage = 128, Stage(config, Planted(None))
    parts = validation_samples(stage, WORLD, Letters(), n)
    images, t = torch.cat([b.images for b, _ in parts]), torch.cat([d.t for _, d in parts])
    alpha, sigma = alpha_sigma(cosine_log_snr(t))
    v = images.var((0, 2, 3), correction=0)
    theory = (v[:, None] * sigma**2 / (alpha**2 * v[:, None] + sigma**2)).mean(0)
    row = validation_loss(Stage(config, Planted(lambda z, l, _: z)), WORLD, Letters(), n=n)
    torch.testing.assert_close(sum(row["trivial"]), 8 * theory.mean().item(), rtol=0.05, atol=0)
    linear = LinearPixels(config, images, torch.zeros_like(images))
    best = sum(validation_loss(Stage(config, linear), WORLD, Letters(), n=n)["loss"])
    torch.testing.assert_close(best, sum(row["trivial"]))
    for change in (0.9, 1.1):
        off = LinearPixels(config, images, torch.zeros_like(images))
        with torch.no_grad():
            off.numbers[2].mul_(change**4)
        assert sum(validation_loss(Stage(config, off), WORLD, Letters(), n=n)["loss"]) > best


def test_the_linear_guess_of_an_enlarger_knows_the_small_picture():
    blind = StageConfig(
        **{k: getattr(ENLARGER, k) for k in ("size", "target", "loss_weight")}
        | dict(network=STAGE.network)
    )
    with_lowres = validation_loss(fresh(ENLARGER), WORLD, Letters(), n=32)
    without = validation_loss(Stage(blind, Planted(lambda z, l, _: z)), WORLD, Letters(), n=32)
    assert all(a < b for a, b in zip(with_lowres["trivial"][2:], without["trivial"][2:]))
    assert all(a > 0 for a in with_lowres["trivial"])


def without_text(forward, z, log_snr, text, *rest):
    return forward(z, log_snr, text.null(), *rest)


def test_a_network_that_ignores_text_gains_exactly_nothing():
    for config in (STAGE, replace(ENLARGER, time_law=(0.0, 1.0))):
        stage = fresh(config)
        stage.network.forward = partial(without_text, stage.network.forward)
        row = validation_loss(stage, WORLD, Letters(), n=24)
        assert (
            row["text_gain"] == dict(mean=0.0, low=0.0, high=0.0) and row["loss"] == row["shuffled"]
        )


def test_a_network_that_reads_gains():
    gray = Gray(40)

    def read(z, log_snr, text):
        return gray.level(text.tokens[:, 0, 0])[:, None, None, None].expand_as(z)

    stage = Stage(replace(STAGE, loss_weight="x0"), Planted(read))
    row = validation_loss(stage, gray, Numbers(), n=40)
    assert max(row["loss"]) < 1e-10 and min(row["shuffled"]) > 1e-4 and row["text_gain"]["high"] < 0
    gain = row["text_gain"]
    assert (
        gain["low"] < gain["mean"] < gain["high"]
        and abs(gain["mean"] + sum(row["shuffled"]) / 8) < 1e-6
    )
    row = validation_loss(stage, gray, Numbers(), n=8)  # a picture at each level
    gains = torch.tensor(row["loss"]).double() - torch.tensor(row["shuffled"]).double()
    half = 1.96 * gains.std().item() / 8**0.5
    found = [row["text_gain"][name] for name in ("low", "high")]
    assert found == pytest.approx([gains.mean().item() - half, gains.mean().item() + half])


def test_the_batch_size_changes_rounding_alone():
    stage = fresh(STAGE)
    rows = [validation_loss(stage, WORLD, Letters(), n=24, batch_size=b) for b in (24, 7)]
    for key in ("loss", "shuffled", "trivial"):
        torch.testing.assert_close(
            torch.tensor(rows[0][key]), torch.tensor(rows[1][key]), rtol=1e-4, atol=1e-6
        )
    assert rows[0]["loss"] != rows[0]["shuffled"]
    assert stage.network.training  # as it was


def test_too_few_pictures_for_the_levels_are_refused():
    with pytest.raises(ValueError, match="validation_loss: n, got 4, expected at least 8"):
        validation_loss(fresh(STAGE), WORLD, Letters(), n=4)


class Forgetful(Planted):
    "Half of what it answers is dropped while it is trained."

    def forward(self, *inputs):
        return nn.functional.dropout(inputs[0], 0.5, self.training)


def test_nothing_is_dropped_while_validating():
    stage = Stage(STAGE, Forgetful(None).train())
    found = validation_loss(stage, WORLD, Letters(), n=16)
    assert stage.network.training
    stage.network.eval()
    assert found == validation_loss(stage, WORLD, Letters(), n=16)
