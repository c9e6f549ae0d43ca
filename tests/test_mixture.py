"The exact denoiser against sums over a fine grid, autograd and samples."

import math

import pytest
import torch
from torch.testing import assert_close

from imagen_nb.diffusion import alpha_sigma
from imagen_nb.lab.mixture import GaussianMixture


def double(values):
    return torch.tensor(values, dtype=torch.float64)


LINE = GaussianMixture(
    double([[-1.2], [0.4], [1.5]]),
    double([0.3, 0.15, 0.5]),
    double([1.0, 2.0, 1.0]),
    torch.tensor([0, 1, 0]),
)
PLANE = GaussianMixture(
    double([[2.0, 0], [-1, 1], [0, -2]]),
    double([0.3, 0.5, 0.2]),
    double([0.5, 0.3, 0.2]),
    torch.tensor([0, 1, 1]),
)


def normal(x, mean, std):
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def by_grid(z, log_snr, weights):
    "E[x0 | z] and p(z) in one dimension, by summing over clean values."
    alpha, sigma = alpha_sigma(log_snr)
    x0 = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
    prior = sum(w * normal(x0, m, s) for w, m, s in zip(weights, LINE.means[:, 0], LINE.stds))
    joint = prior * normal(z, alpha * x0, sigma)
    return (joint * x0).sum() / joint.sum(), joint.sum() * (x0[1] - x0[0])


@pytest.mark.parametrize("log_snr", [-6.0, -1.0, 0.0, 2.0, 6.0])
@pytest.mark.parametrize("label", [-1, 0, 1])
def test_denoiser_and_density_equal_a_sum_over_a_grid(log_snr, label):
    log_snr = double(log_snr)
    weights = LINE.weights if label < 0 else LINE.weights * (LINE.labels == label)
    weights = weights / weights.sum()
    for z in (-1.7, 0.0, 0.9):
        mean, density = by_grid(z, log_snr, weights)
        point, labels = double([[z]]), torch.tensor([label])
        assert_close(LINE.denoise(point, log_snr, labels)[0, 0], mean, atol=1e-8, rtol=1e-7)
        assert_close(LINE.log_prob(point, log_snr, labels)[0].exp(), density, atol=1e-10, rtol=1e-7)
        if label < 0:
            assert_close(LINE.denoise(point, log_snr)[0, 0], mean, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 3.0])
def test_tweedie_ties_denoiser_to_density(log_snr):
    log_snr = double(log_snr)
    alpha, sigma = alpha_sigma(log_snr)
    z = torch.randn(
        20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    (score,) = torch.autograd.grad(PLANE.log_prob(z, log_snr).sum(), z)
    assert_close(
        PLANE.denoise(z.detach(), log_snr),
        (z.detach() + sigma**2 * score) / alpha,
        atol=1e-9,
        rtol=1e-9,
    )


def test_ends():
    z = double([[0.3, -0.8], [1.0, 2.0]])
    mean = (PLANE.weights[:, None] * PLANE.means).sum(0)
    assert_close(PLANE.denoise(z, double(-40.0)), mean.expand(2, 2), atol=1e-6, rtol=0)  # all noise
    assert_close(PLANE.denoise(z, double(40.0)), z, atol=1e-6, rtol=0)  # no noise


def test_rows_have_their_own_level_and_label():
    z, levels = torch.randn(3, 2, dtype=torch.float64), double([-2.0, 0.0, 5.0])
    labels = torch.tensor([0, 1, -1])
    got = PLANE.denoise(z, levels, labels)
    for k in range(3):
        assert_close(got[k], PLANE.denoise(z[k : k + 1], levels[k], labels[k : k + 1])[0])
    assert_close(got[2], PLANE.denoise(z[2:], levels[2])[0])


def test_samples_have_the_stated_moments():
    n = 40_000
    x = PLANE.sample(n, torch.Generator().manual_seed(0))
    mean = (PLANE.weights[:, None] * PLANE.means).sum(0)
    cov = torch.einsum("k,ki,kj->ij", PLANE.weights, PLANE.means - mean, PLANE.means - mean)
    cov = cov + (PLANE.weights * PLANE.stds**2).sum() * torch.eye(2)
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diag() / n).sqrt()).all()
    assert (x.T.cov() - cov).abs().max() < 0.05
    share = PLANE.component(x).bincount() / n
    assert ((share - PLANE.weights).abs() < 4 * (PLANE.weights / n).sqrt()).all()
    again = PLANE.sample(n, torch.Generator().manual_seed(0))
    assert_close(again, x, atol=0, rtol=0)
    assert set(
        PLANE.component(PLANE.sample(500, torch.Generator().manual_seed(0), label=1)).tolist()
    ) == {1, 2}


def test_density_sums_to_one():
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    for level in (None, double(1.0)):
        assert LINE.log_prob(x, level).exp().sum().item() * (x[1] - x[0]).item() == pytest.approx(
            1, abs=1e-6
        )


def test_two_dimensions_by_summing_over_the_plane():
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    assert PLANE.log_prob(plane).exp().sum().item() * cell.item() == pytest.approx(1, abs=1e-6)
    z, log_snr = double([[0.4, -0.6]]), double(0.5)
    alpha, sigma = alpha_sigma(log_snr)
    weight = PLANE.log_prob(plane) - ((z - alpha * plane) ** 2).sum(1) / (2 * sigma**2)
    assert_close(
        PLANE.denoise(z, log_snr)[0],
        (weight.softmax(0)[:, None] * plane).sum(0),
        atol=1e-7,
        rtol=1e-7,
    )


def test_points_as_data():
    "Zero spread: the denoiser is a weighted mean of the points, never outside their hull."
    points = GaussianMixture(double([[-1.0, 0], [1, 0]]), double([0.0, 0]), double([1.0, 1]))
    assert_close(points.denoise(double([[0.0, 5.0]]), double(0.0)), double([[0.0, 0.0]]))
    alpha, sigma = alpha_sigma(double(0.0))
    lean = torch.tanh(alpha * 0.3 / sigma**2)
    assert_close(
        points.denoise(double([[0.3, 1.0]]), double(0.0)), torch.stack([lean, 0 * lean])[None]
    )


def test_float32_is_stable_over_the_whole_range():
    plane = GaussianMixture(PLANE.means.float(), PLANE.stds.float(), PLANE.weights.float())
    z = torch.randn(7, 2)
    levels = torch.tensor([-20.0, -10, -3, 0, 3, 10, 20])
    got = plane.denoise(z, levels)
    assert got.dtype == torch.float32
    assert_close(got, PLANE.denoise(z.double(), levels.double()).float(), atol=2e-4, rtol=1e-4)


def test_refuses():
    with pytest.raises(ValueError, match="stds"):
        GaussianMixture(torch.zeros(2, 2), torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="means"):
        GaussianMixture(torch.zeros(2), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="weights > 0"):
        GaussianMixture(torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, 0.0]))
    plain = GaussianMixture(torch.zeros(2, 2), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="without labels"):
        plain.sample(3, label=0)
    with pytest.raises(ValueError, match="without labels"):
        plain.denoise(torch.zeros(1, 2), torch.tensor(0.0), torch.tensor([0]))


# ---- one dimension


@pytest.mark.parametrize("level", [None, -3.0, 0.0, 4.0])
def test_cdf_is_the_integral_of_the_density(level):
    log_snr = None if level is None else double(level)
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)[:, None]
    density = LINE.log_prob(x, log_snr).exp()
    sums = torch.cumulative_trapezoid(density, x[:, 0])
    assert_close(LINE.cdf(x[1:], log_snr), sums, atol=2e-7, rtol=0)
    with pytest.raises(ValueError, match="cdf, got 2 dimensions"):
        PLANE.cdf(torch.zeros(3, 2).double())


def test_along_is_the_law_of_the_projection():
    u = double([3.0, -4.0])
    x = PLANE.sample(40_000, torch.Generator().manual_seed(0)) @ u / 5
    cuts = double([[-2.0], [-0.5], [0.4], [1.7]])
    share = (x[:, None] <= cuts.T).double().mean(0)
    assert ((PLANE.along(u).cdf(cuts) - share).abs() < 4 * 0.5 / 200).all()
    assert_close(PLANE.along(7 * u).means, PLANE.along(u).means)


# ---- precision and refusals


@pytest.mark.parametrize("std", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("level", [-20.0, -10.0, -3.0, 0.0, 3.0, 10.0, 20.0])
def test_float32_agrees_with_float64_on_likely_and_unlikely_points(level, std):
    means, weights = double([[2.0, 0], [-1, 1], [0, -2]]), double([0.5, 0.3, 0.2])
    exact = GaussianMixture(means, double([std] * 3), weights)
    single = GaussianMixture(means.float(), torch.tensor([std] * 3), weights.float())
    alpha, sigma = alpha_sigma(double(level))
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for far in (1.0, 3.0):
        z = (
            alpha * exact.sample(60, torch.Generator().manual_seed(1)) + far * sigma * noise
        ).float()
        # exact for the z float32 can hold: the difference is the arithmetic's
        assert_close(
            single.denoise(z, torch.tensor(level)).double(),
            exact.denoise(z.double(), double(level)),
            atol=2e-4,
            rtol=1e-4,
        )
    assert single.denoise(1e3 * z, torch.tensor(level)).isfinite().all()


def test_follows_the_points_precision():
    single = GaussianMixture(PLANE.means.float(), PLANE.stds.float(), PLANE.weights.float())
    z, level = torch.randn(4, 2), torch.tensor(0.5)
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        for mixture in (single, PLANE):
            assert (
                mixture.denoise(z.to(dtype), level).dtype
                == mixture.log_prob(z.to(dtype), level).dtype
                == expected
            )


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(means=torch.zeros(2, 2).long()), "floating point"),
        (dict(means=torch.zeros(0, 2)), "means, got"),
        (dict(means=torch.tensor(1.0)), "means, got"),
        (dict(means=torch.full((2, 2), math.nan)), "expected numbers"),
        (dict(stds=torch.tensor([1.0, math.inf])), "expected numbers"),
        (dict(stds=torch.tensor([1.0, math.nan])), "expected numbers"),
        (dict(weights=torch.tensor([1.0, math.nan])), "expected numbers"),
        (dict(stds=torch.ones(2, device="meta")), "on meta"),
        (dict(labels=torch.tensor([0.0, 1.0])), "whole numbers"),
        (dict(labels=torch.tensor([0, -1])), "labels"),
        (dict(labels=torch.tensor([0, 1, 2])), "labels, got"),
    ],
)
def test_refuses_what_is_no_mixture(change, says):
    parts = dict(means=torch.zeros(2, 2), stds=torch.ones(2), weights=torch.ones(2)) | change
    with pytest.raises(ValueError, match=f"GaussianMixture: .*{says}"):
        GaussianMixture(**parts)


@pytest.mark.parametrize(
    "z, log_snr, labels, says",
    [
        (torch.zeros(3, 2), torch.zeros(2), None, "log_snr, got"),
        (torch.zeros(3, 2), torch.zeros(3, 1), None, "log_snr, got"),
        (torch.zeros(3, 3), torch.tensor(0.0), None, "points, got"),
        (torch.zeros(2), torch.tensor(0.0), None, "points, got"),
        (torch.zeros(3, 2, device="meta"), torch.tensor(0.0), None, "on meta"),
        (torch.zeros(3, 2), torch.tensor(0.0), torch.tensor([0, 1]), "labels, got"),
        (torch.zeros(3, 2), torch.tensor(0.0), torch.tensor([0, 1, 7]), r"got \[0, 1, 7\]"),
        (torch.zeros(3, 2), torch.tensor(0.0), torch.zeros(3), "whole numbers"),
    ],
)
def test_refuses_points_levels_and_labels_that_do_not_fit(z, log_snr, labels, says):
    for ask in (PLANE.denoise, PLANE.log_prob):
        with pytest.raises(ValueError, match=f"GaussianMixture: .*{says}"):
            ask(z.to(torch.float64), log_snr, labels)


def test_refuses_to_draw_what_is_not_there():
    with pytest.raises(ValueError, match="n, got 0"):
        PLANE.sample(0)
    with pytest.raises(ValueError, match=r"labels, got \[5\]"):
        PLANE.sample(3, label=5)
