"""Every sampler with every target and schedule, guided and not, ends in the law it should.

A sampler with a planted error does not. Quick here: one cell per sampler and kind of guidance.
The whole matrix: `pytest -m slow tests/test_laboratory.py`, or
`tools/measure/prove_samplers.py`, which writes data/runs/proof-*.json.
"""

import json
import math
from pathlib import Path

import laboratory as lab
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_nb.diffusion import TARGETS, alpha_sigma, q_posterior, q_sample, to_eps, to_v, to_x0
from imagen_nb.guidance import classifier_free_guidance
from imagen_nb.thresholding import dynamic_threshold, static_threshold

CARDS = Path(__file__).parents[1] / "data" / "runs"
CARD = json.loads((CARDS / "proof-matrix.json").read_text())


def limit(guidance, truth):
    return CARD["quantile_99"][guidance] * (truth.stds[0].item() if guidance == "w=3" else 1)


# ---- the laboratory itself


def test_energy_distance_of_known_pairs():
    point, unit = torch.zeros(10, 1), lab.one_gaussian(torch.zeros(1), 1.0)
    assert lab.distance(point, unit) == pytest.approx(
        2 * math.sqrt(2 / math.pi) - 2 / math.sqrt(math.pi), rel=1e-3
    )
    x, y = torch.randn(2, 400, 3, generator=lab.seeded())
    sides = (x - 0.4) @ lab.directions().T, y @ lab.directions().T

    def pair(a, b):
        return (a[:, None] - b[None]).abs().mean((0, 1))

    brute = 2 * pair(*sides) - pair(sides[0], sides[0]) - pair(sides[1], sides[1])
    assert lab.distance_of_two(x - 0.4, y) == pytest.approx(brute.mean().item(), rel=1e-4)
    assert (
        lab.distance(torch.full((5, 3), 1e30), lab.MIXTURE) > 1e20
    )  # nothing hides beyond the law's range


def test_thresholds_are_those_of_true_samples():
    "The stored quantiles, by fewer pairs: of 40, at most 4 lie above the 99 % quantile (probability 6e-5)."
    for guidance, stored in CARD["quantile_99"].items():
        truth = (
            lab.one_gaussian(torch.zeros(3), 1.0)
            if guidance == "w=3"
            else lab.law(guidance, 0.0, "cosine")
        )
        g = lab.seeded(100)
        two = torch.tensor(
            [lab.distance_of_two(truth.sample(lab.N, g), truth.sample(lab.N, g)) for _ in range(12)]
        )
        assert (two > stored).sum() <= 2 and two.max() > stored / 5
        assert lab.distance(truth.sample(lab.N, g), truth) < stored


def test_true_samples_of_a_slightly_wrong_law_fail():
    x = lab.MIXTURE.sample(lab.N, lab.seeded(1))
    for wrong in (x * 1.04, x + 0.04, x + 0.25 * torch.randn(x.shape, generator=lab.seeded(2))):
        assert lab.distance(wrong, lab.MIXTURE) > CARD["quantile_99"]["off"]


def test_guided_law_equals_what_can_be_integrated_by_hand():
    for schedule in lab.SCHEDULES:
        for eta in (0.0, 0.5, 1.0):  # w = 1: the exact score, whatever the noise
            mean, std = lab.guided_law(eta, schedule, w=1.0, rungs=1000)
            # what is left of starting at N(0, 1), not at the schedule's own end: alpha is 6.6e-3 there for linear
            assert_close(mean.float(), lab.COND[0], atol=4e-3, rtol=0)
            assert std == pytest.approx(lab.COND[1], rel=1e-4)
    assert lab.guided_law(0.0, "cosine")[1] == pytest.approx(0.5**3, rel=1e-6)  # s1^w s0^(1-w)
    coarse, fine = (lab.guided_law(0.5, "linear", rungs=n)[1] for n in (1000, 2000))
    assert coarse == pytest.approx(fine, rel=1e-7)


@pytest.mark.parametrize("target", TARGETS)
def test_emulated_networks_answer_in_their_unit(target):
    z, log_snr, text = (
        torch.randn(5, 3, generator=lab.seeded()),
        torch.linspace(-6, 6, 5),
        lab.words(5, 0),
    )
    for x0_of in (lab.of_mixture, lab.of_gaussians):
        answer = lab.in_unit(x0_of, target)(z, log_snr, text)
        assert_close(
            to_x0(answer, z, log_snr, target), x0_of(z, log_snr, text), atol=1e-4, rtol=1e-4
        )


# ---- the matrix

QUICK = [
    (sampler, TARGETS[(i + j) % 3], list(lab.SCHEDULES)[(i + j) % 2], guidance)
    for i, sampler in enumerate(lab.SAMPLERS)
    for j, guidance in enumerate(lab.GUIDANCE)
    if j == i % 3
]


def check(sampler, target, schedule, guidance):
    truth = lab.law(guidance, lab.SAMPLERS[sampler][2], schedule)
    assert lab.error(
        truth, sampler, target, schedule, guidance, lab.steps_for(sampler, schedule, guidance)
    ) < limit(guidance, truth)


@pytest.mark.parametrize("sampler, target, schedule, guidance", QUICK)
def test_sampler_ends_in_the_right_law(sampler, target, schedule, guidance):
    check(sampler, target, schedule, guidance)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", lab.GUIDANCE)
@pytest.mark.parametrize("schedule", lab.SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", lab.SAMPLERS)
def test_whole_matrix(sampler, target, schedule, guidance):
    check(sampler, target, schedule, guidance)


SLOW_ONES = {p[1] for p in lab.PLANTED if lab.steps_for(p[1], "linear", "w=3") > 100}


@pytest.mark.parametrize(
    "what, sampler, right, wrong",
    [pytest.param(*p, marks=[pytest.mark.slow] * (p[1] in SLOW_ONES)) for p in lab.PLANTED],
)
def test_planted_error_fails_the_same_test(what, sampler, right, wrong):
    truth, steps = (
        lab.law("w=3", lab.SAMPLERS[sampler][2], "linear"),
        lab.steps_for(sampler, "linear", "w=3"),
    )
    assert not lab.error(
        truth, sampler, "eps", "linear", "w=3", steps, run=lab.planted(sampler, right, wrong)
    ) < limit("w=3", truth)


@pytest.mark.parametrize(
    "sampler", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW_ONES)) for s in lab.SAMPLERS]
)
def test_right_sampler_passes_where_planted_errors_fail(sampler):
    check(sampler, "eps", "linear", "w=3")


def test_planted_text_must_occur():
    with pytest.raises(LookupError, match="in its source"):
        lab.planted("ddim eta 0", "no such text", "")


def test_cards_cover_what_is_proved_today():
    "`make prove` measures anew what they say."
    cells = len(lab.SAMPLERS) * len(TARGETS) * len(lab.SCHEDULES) * len(lab.GUIDANCE)
    assert (CARD["cells"], CARD["planted"]) == (cells, len(lab.PLANTED))
    largest = json.loads((CARDS / "proof-parity.json").read_text())["largest"]
    assert set(largest) == set(lab.SAMPLERS)


# ---- orders of convergence

SHORT = lab.LADDER[1:7:2]


@pytest.mark.parametrize("data", ["LINE", "TWO"])
@pytest.mark.parametrize("sampler, theory", [("ddim eta 0", 1), ("dpmpp_2m", 2)])
def test_strong_order(sampler, theory, data):
    slope, low, high = lab.order(
        SHORT, [lab.strong_error(sampler, getattr(lab, data), n) for n in SHORT]
    )
    assert abs(slope - theory) < 0.07 and high - low < 0.5


@pytest.mark.parametrize("sampler", lab.SAMPLERS)
def test_weak_order(sampler):
    std, mean = zip(*(lab.weak_errors(sampler, n) for n in SHORT))
    theory = 2 if sampler == "dpmpp_2m" else 1
    assert abs(lab.order(SHORT, std)[0] - theory) < 0.07
    if sampler.startswith("ddpm") or sampler == "ddim eta 1":
        assert max(mean) < 1e-9  # the posterior mean is exact
    else:
        assert abs(lab.order(SHORT, mean)[0] - theory) < 0.07


def test_order_of_known_errors():
    slope, low, high = lab.order((10, 20, 40, 80), [n**-1.5 for n in (10, 20, 40, 80)])
    assert slope == pytest.approx(1.5) and high - low < 1e-6
    slope, low, high = lab.order((10, 20, 40), [0.1, 0.06, 0.02])
    assert low < slope < high and high - low > 0.5


# ---- half precision


@pytest.mark.parametrize("spoil", ["rounded", "noise"])
@pytest.mark.parametrize("sampler", ["ddim eta 0", "dpmpp_2m"])
def test_half_precision_ruins_the_naive_setting_only(sampler, spoil):
    """From t=1 an eps with an error of 2^-9 is an x0_hat off by 87: samplers without fresh noise never get over it.

    Either a start at t=0.999 or a threshold is enough for the law; DDPM forgets the first step by itself.
    """

    def ratio(how, limit, start):
        return (
            lab.distance(lab.draw_pictures(sampler, "eps", how, limit, start), lab.PICTURES)
            / quantile
        )

    quantile = json.loads((CARDS / "proof-bf16.json").read_text())["quantile_99"]
    assert ratio("exact", "none", 1.0) < 0.6 and ratio(spoil, "none", 1.0) > 1.5
    for limit, start in (("none", 0.999), ("static", 1.0), ("dynamic", 0.999)):
        assert ratio(spoil, limit, start) < 0.6


@pytest.mark.parametrize("sampler", ["ddpm gamma 0", "ddpm gamma 1", "ddim eta 0", "dpmpp_2m"])
def test_recommended_start_is_robust_and_costs_no_brightness(sampler):
    def move(start, limit):
        return (
            (
                lab.draw_pictures(sampler, "eps", "rounded", limit, start)
                - lab.draw_pictures(sampler, "eps", "exact", limit, start)
            )
            .square()
            .mean()
            .sqrt()
        )

    assert move(0.999, "dynamic") < 0.06  # data: 0.47 wide; from 1: 0.05 for DDPM, else
    if not sampler.startswith("ddpm"):
        assert move(1.0, "none") > 0.3
    late, soon, full = (
        lab.brightness_error(sampler, start, steps=128) for start in (0.99, 0.999, 1.0)
    )
    assert abs(soon) < abs(full) + 0.001 < abs(full) + 0.002 < abs(late)


# ---- devices without float64, and without waiting for the device


class NoFloat64(TorchDispatchMode):
    "As on a device that has no float64: nothing may come out in it."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outs = out if isinstance(out, (tuple, list)) else (out,)
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in outs):
            raise TypeError(f"float64 from {func}")
        return out


def formulas(device):
    "Schedules, forward process, conversions, guidance and thresholds in float32."
    x0, eps, log_snr, t = (
        x.to(device)
        for x in (*torch.randn(2, 4, 3, 40, 40), torch.linspace(-5, 5, 4), torch.linspace(0, 1, 4))
    )
    for schedule in lab.SCHEDULES.values():
        schedule(t)
    z = q_sample(x0, eps, log_snr)
    (
        q_posterior(x0, z, log_snr, log_snr + 1),
        alpha_sigma(log_snr),
        classifier_free_guidance(eps, x0, 3.0),
    )
    for convert in (to_x0, to_eps, to_v):
        for target in TARGETS:
            convert(eps, z, log_snr, target)
    return static_threshold(z), dynamic_threshold(z * 3), dynamic_threshold(z * 3, 0.9, cap=2.0)


def walks(device):
    "Every sampler on a grid that is there already, with guidance, conversion and threshold."
    z, w = torch.randn(4, 3, 8, 8).to(device), torch.full((4,), 3.0).to(device)

    def denoise(z, log_snr):
        return dynamic_threshold(to_x0(classifier_free_guidance(z, z / 2, w), z, log_snr, "eps"))

    for call, options, _ in lab.SAMPLERS.values():
        for schedule in lab.SCHEDULES.values():
            yield call, denoise, z, lab.time_grid(3, schedule), options


def test_works_where_there_is_no_float64():
    with pytest.raises(TypeError, match="float64"), NoFloat64():
        torch.ones(2).double()
    ready = list(walks("cpu"))
    with NoFloat64():
        formulas("cpu")
        for call, denoise, z, grid, options in ready:
            lab.last(call(denoise, z, grid, **options))


def test_nothing_waits_for_the_device():
    """On the meta device no value can be looked at: what runs there never makes a GPU wait.

    A sampler looks once, at its last x0_hat, when there is nothing left to wait for; its grid is on the CPU.
    """
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.ones(2, device="meta").any())
    assert all(x.device.type == "meta" for x in formulas("meta"))
    for call, denoise, z, grid, options in walks("meta"):
        steps = call(denoise, z, grid, **options)
        next(steps), next(steps)
        with pytest.raises((RuntimeError, NotImplementedError)):
            next(steps)
