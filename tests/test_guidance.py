"Classifier-free guidance against exact conditional scores."

import math

import pytest
import torch
from torch.testing import assert_close

from imagen_nb.diffusion import alpha_sigma, cosine_log_snr, to_eps, to_v, to_x0
from imagen_nb.guidance import classifier_free_guidance, drop_text, guided
from imagen_nb.lab.mixture import GaussianMixture
from imagen_nb.sampling import sample_ddim, time_grid
from imagen_nb.text import TextEmbedding

CLASSES = GaussianMixture(
    torch.tensor([[-1.5, 0], [1.5, 0], [0, 1.5]]),
    torch.tensor([0.5, 0.4, 0.6]),
    torch.tensor([0.4, 0.4, 0.2]),
    torch.tensor([0, 1, 2]),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def captions(b=3, l=4, d=5, lengths=(4, 2, 1)):
    mask = torch.arange(l)[None] < torch.tensor(lengths)[:, None]
    return TextEmbedding(torch.randn(b, l, d, generator=seeded()) * mask[..., None], mask)


def words(labels):
    "A text of one token that spells the class; the null embedding spells none (-1)."
    return TextEmbedding(labels[:, None, None] + 1.0, torch.ones(len(labels), 1, dtype=torch.bool))


def classes(text):
    return text.tokens[:, 0, 0].round().long() - 1


class Recorder:
    "A predictor with a different answer for every row and text, which counts its calls."

    def __init__(self):
        self.calls = []

    def __call__(self, z, log_snr, text):
        assert len(z) == len(log_snr) == len(text.tokens) == len(text.mask)
        self.calls.append(len(z))
        return (
            z * 2
            + text.tokens.sum((1, 2))[:, None]
            + 10 * text.mask.sum(1)[:, None]
            + log_snr[:, None]
        )


# ---- caption dropout


def test_drop_text():
    text, keep = captions(), torch.tensor([True, False, False])
    got = drop_text(text, keep)
    assert_close(got.tokens[0], text.tokens[0])
    assert_close(got.mask[0], text.mask[0])
    assert (got.tokens[1:] == 0).all() and got.tokens.shape == text.tokens.shape
    assert got.mask[1:].tolist() == [[True, False, False, False]] * 2
    assert (text.tokens[1] != 0).any()  # the input is left alone
    null = text.null()  # one and the same null
    assert_close(null.pad(4).tokens[1:], got.tokens[1:])
    assert_close(null.pad(4).mask[1:], got.mask[1:])


def test_drop_text_all_and_none():
    text = captions()
    same = drop_text(text, torch.ones(3, dtype=torch.bool))
    assert_close(same.tokens, text.tokens)
    assert_close(same.mask, text.mask)
    assert drop_text(text, torch.zeros(3, dtype=torch.bool)).mask.sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "keep", [torch.ones(3), torch.ones(2, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)]
)
def test_drop_text_refuses(keep):
    with pytest.raises(ValueError, match="drop_text: keep"):
        drop_text(captions(), keep)


# ---- the weighted sum


def test_limits_and_known_values():
    cond, uncond = torch.randn(2, 4, 3, 2, generator=seeded())
    assert_close(classifier_free_guidance(cond, uncond, 1.0), cond, atol=0, rtol=0)
    assert_close(classifier_free_guidance(cond, uncond, 0.0), uncond, atol=0, rtol=0)
    assert classifier_free_guidance(torch.tensor([3.0]), torch.tensor([1.0]), 5.0).item() == 11.0
    assert_close(classifier_free_guidance(cond, uncond, 7.5), uncond + 7.5 * (cond - uncond))


def test_one_weight_per_sample():
    cond, uncond = torch.randn(2, 4, 3, 2, generator=seeded())
    w = torch.tensor([0.0, 1.0, 3.0, 8.0])
    got = classifier_free_guidance(cond, uncond, w)
    for k in range(4):
        assert_close(got[k], classifier_free_guidance(cond, uncond, w[k].item())[k])
    assert_close(
        classifier_free_guidance(cond, uncond, torch.tensor(3.0)),
        classifier_free_guidance(cond, uncond, 3.0),
    )


def test_refuses_and_upcasts():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="equal shapes"):
        classifier_free_guidance(x, x[:2], 2.0)
    with pytest.raises(ValueError, match="finite number or one per sample"):
        classifier_free_guidance(x, x, torch.ones(2))
    assert classifier_free_guidance(x.bfloat16(), x.bfloat16(), 2.0).dtype == torch.float32


@pytest.mark.parametrize("space", [to_x0, to_eps, to_v])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_guidance_commutes_with_the_choice_of_target(space, target):
    cond, uncond, z_t = torch.randn(3, 4, 6, generator=seeded(), dtype=torch.float64)
    log_snr, w = torch.tensor([-3.0, 0.0, 2.0, 5.0]).double(), 7.0
    late = space(classifier_free_guidance(cond, uncond, w), z_t, log_snr, target)
    early = classifier_free_guidance(
        space(cond, z_t, log_snr, target), space(uncond, z_t, log_snr, target), w
    )
    assert_close(late, early)


@pytest.mark.parametrize(
    "w",
    [
        float("nan"),
        float("inf"),
        "7.5",
        None,
        True,
        1j,
        torch.ones(2),
        torch.ones(4, 1),
        torch.tensor([1.0, 2.0, float("nan"), 1.0]),
        torch.ones(4).bool(),
    ],
)
def test_weights_that_are_none_are_refused(w):
    x = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match="(?s)classifier_free_guidance: w, got .* expected a finite number"
    ):
        classifier_free_guidance(x, x, w)
    with pytest.raises(ValueError, match="guided: w, got"):
        guided(Recorder(), captions(4, lengths=(4, 2, 1, 1)), w)


@pytest.mark.parametrize(
    "other", [torch.zeros(4, 3), torch.zeros(4, 2).double(), torch.zeros(4, 2, device="meta")]
)
def test_branches_that_do_not_match_are_refused(other):
    with pytest.raises(ValueError, match="expected floats of equal shapes, devices and precision"):
        classifier_free_guidance(torch.zeros(4, 2), other, 2.0)


@pytest.mark.parametrize("side", [0, 1])
def test_nan_in_one_branch_stays_for_the_sampler_to_refuse(side):
    def predict(z, log_snr, text):
        return torch.where((text.tokens[:, 0] > 0) == bool(side), math.nan, z)

    denoise = guided(predict, words(torch.zeros(4)), 2.0)
    with pytest.raises(ValueError, match="x0_hat of step 0, got NaN"):
        next(sample_ddim(denoise, torch.ones(4, 2), time_grid(3, cosine_log_snr)))


# ---- the guided predictor


def test_guided_runs_both_branches_in_one_batch():
    text, predict = captions(), Recorder()
    z, log_snr = torch.randn(3, 2, generator=seeded(1)), torch.tensor([-1.0, 0.0, 2.0])
    got = guided(predict, text, 4.0)(z, log_snr)
    assert predict.calls == [6]
    null = text.null()
    # padding adds columns whose mask is off: recorder counts only what is on
    assert_close(got, 4 * predict(z, log_snr, text) - 3 * predict(z, log_snr, null))


def test_guided_weight_one_runs_one_branch():
    text, predict = captions(), Recorder()
    z = torch.randn(3, 2)
    assert_close(guided(predict, text, 1)(z, torch.tensor(0.0)), predict(z, torch.zeros(3), text))
    assert predict.calls[0] == 3


def test_guided_weight_per_sample():
    text, predict, z = captions(), Recorder(), torch.randn(3, 2, generator=seeded(1))
    got = guided(predict, text, torch.tensor([1.0, 0.0, 5.0]))(z, torch.tensor(0.0))
    for k, w in enumerate((1.0, 0.0, 5.0)):
        assert_close(got[k], guided(predict, text, w)(z, torch.tensor(0.0))[k])


def test_guided_interval():
    text, predict, z = captions(), Recorder(), torch.randn(3, 2, generator=seeded(1))
    ask = guided(predict, text, 4.0, interval=(-2.0, 3.0))
    log_snr = torch.tensor([-2.5, 0.0, 3.5])
    got, on, off = (
        ask(z, log_snr),
        guided(predict, text, 4.0)(z, log_snr),
        guided(predict, text, 1.0)(z, log_snr),
    )
    assert_close(got[1], on[1])
    assert_close(got[[0, 2]], off[[0, 2]])
    predict.calls.clear()
    assert_close(ask(z, torch.tensor(9.0)), guided(predict, text, 1.0)(z, torch.tensor(9.0)))
    assert predict.calls[0] == 3  # outside: half the work
    with pytest.raises(ValueError, match="interval"):
        guided(predict, text, 4.0, interval=(3.0, -2.0))


# ---- against the exact score


@pytest.mark.parametrize("w", [1.0, 3.0, 0.0])
def test_guided_noise_is_the_score_of_the_sharpened_density(w):
    log_snr, labels = torch.tensor(0.8).double(), torch.tensor([0, 1, 2, 0])
    mixture = GaussianMixture(
        *(x.double() for x in (CLASSES.means, CLASSES.stds, CLASSES.weights)), CLASSES.labels
    )
    z = torch.randn(4, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    log_p = w * mixture.log_prob(z, log_snr, labels) + (1 - w) * mixture.log_prob(z, log_snr)
    (score,) = torch.autograd.grad(log_p.sum(), z)

    def predict(z, l, text):
        return to_eps(mixture.denoise(z, l, classes(text)), z, l, "x0")

    eps_hat = guided(predict, words(labels.double()), w)(z.detach(), log_snr)
    assert_close(eps_hat, -alpha_sigma(log_snr)[1] * score, atol=1e-9, rtol=1e-9)


def sampled(w, labels):
    z = torch.randn(len(labels), 2, generator=seeded(5))
    denoise = guided(lambda z, l, text: CLASSES.denoise(z, l, classes(text)), words(labels), w)
    *_, (_, _, x) = sample_ddim(denoise, z, time_grid(60, cosine_log_snr))
    return x


def test_weight_zero_one_and_more():
    labels = torch.zeros(3000, dtype=torch.long)
    shares = [
        (CLASSES.component(sampled(w, labels)) == 0).float().mean().item() for w in (0.0, 1.0, 3.0)
    ]
    # likeliest component of a fresh sample, from 200 000 points: 0.40 of all, 0.99 of class 0
    fresh = CLASSES.component(CLASSES.sample(200_000, seeded())) == 0
    assert shares[0] == pytest.approx(
        fresh.float().mean().item(), abs=4 * math.sqrt(0.24 / 3000) + 0.01
    )
    assert shares[1] < shares[2] and shares[2] > 0.995
    assert (
        sampled(3.0, labels)[:, 0].mean() < sampled(1.0, labels)[:, 0].mean() - 0.1
    )  # past the data
