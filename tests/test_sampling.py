"Samplers against exact flows, exact distributions and diffusers' schedulers."

import math

import numpy as np
import parity
import pytest
import torch
from torch.testing import assert_close

from imagen_nb.diffusion import alpha_sigma, cosine_log_snr, linear_log_snr
from imagen_nb.lab.mixture import GaussianMixture
from imagen_nb.sampling import sample_ddim, sample_ddpm, sample_dpmpp_2m, time_grid
from imagen_nb.store.keyed import keyed_generator, keyed_noise

SAMPLERS = dict(ddpm=sample_ddpm, ddim=sample_ddim, dpmpp=sample_dpmpp_2m)
MIXTURE = GaussianMixture(
    torch.tensor([[2.0, 0], [-1, 1], [0, -2]]),
    torch.tensor([0.3, 0.5, 0.2]),
    torch.tensor([0.5, 0.3, 0.2]),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh(seed=0, dtype=torch.float32):
    g = seeded(seed)
    return lambda i, z: torch.randn(z.shape, generator=g, dtype=dtype)


def last(steps):
    *_, final = steps
    return final


# ---- the grid


def test_grid_is_the_schedule_at_even_times():
    grid = time_grid(4, cosine_log_snr)
    assert_close(grid, cosine_log_snr(torch.tensor([1.0, 0.75, 0.5, 0.25, 0])))
    assert grid.dtype == torch.float32 and grid[-1] == 20 and (grid.diff() > 0).all()
    part = time_grid(3, linear_log_snr, start=0.9, end=0.3)
    assert_close(part, linear_log_snr(torch.tensor([0.9, 0.7, 0.5, 0.3])))


def test_grid_even_in_log_snr():
    grid = time_grid(8, linear_log_snr, end=0.01, kind="log_snr")
    assert_close(grid[[0, -1]], linear_log_snr(torch.tensor([1.0, 0.01])))
    assert_close(grid.diff(), grid.diff()[:1].expand(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 17, 256, 1000])
@pytest.mark.parametrize("schedule", [cosine_log_snr, linear_log_snr])
def test_grids_of_all_lengths_rise(n, schedule):
    grid = time_grid(n, schedule)
    assert len(grid) == n + 1 and (grid.diff() > 0).all() and grid[-1] == 20


def test_grid_refuses():
    for bad in (
        dict(n=0),
        dict(n=4, start=0.2, end=0.5),
        dict(n=4, start=1.2),
        dict(n=4, kind="karras"),
    ):
        with pytest.raises(ValueError, match="time_grid"):
            time_grid(schedule=cosine_log_snr, **bad)


# ---- the contract all samplers share


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name):
    seen, drawn = [], []
    grid = time_grid(5, cosine_log_snr)
    z = torch.randn(3, 2, generator=seeded())

    def denoise(z, log_snr):
        assert z.dtype == torch.float32 and log_snr.shape == (3,) and log_snr.unique().numel() == 1
        seen.append(log_snr[0].item())
        return (z * 0.5).half()

    def noise(i, z):
        drawn.append(i)
        return torch.zeros_like(z)

    options = dict(eta=1.0) if name == "ddim" else {}
    steps = list(SAMPLERS[name](denoise, z.half(), grid, noise=noise, **options))
    assert [i for i, _, _ in steps] == [0, 1, 2, 3, 4]
    assert_close(torch.tensor(seen), grid[:5])  # looks at every level but the last
    assert drawn == ([] if name == "dpmpp" else [0, 1, 2, 3])  # none on the last step
    assert all(a.dtype == b.dtype == torch.float32 for _, a, b in steps)
    assert_close(
        steps[1][2], (steps[0][1] * 0.5).half().float()
    )  # z after step 0 is what step 1 sees


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "grid", [[20.0, 3.0, -20.0], [-3.0, 2.0, 1.0], [0.0, 0.0], [1.0], [math.nan, 1.0]]
)
def test_grids_that_do_not_rise_are_refused(name, grid):
    with pytest.raises(ValueError, match="expected n\\+1 rising"):
        list(SAMPLERS[name](lambda z, l: z, torch.zeros(1, 2), torch.tensor(grid)))


def test_options_out_of_range_are_refused():
    grid = time_grid(2, cosine_log_snr)
    with pytest.raises(ValueError, match="gamma"):
        list(sample_ddpm(lambda z, l: z, torch.zeros(1, 2), grid, gamma=2))
    with pytest.raises(ValueError, match="eta"):
        list(sample_ddim(lambda z, l: z, torch.zeros(1, 2), grid, eta=-1))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "answer, says",
    [
        (lambda z, l: z * math.nan, "NaN or infinity"),
        (lambda z, l: z / 0, "NaN or infinity"),
        (lambda z, l: z[:1], "expected one like z"),
        (lambda z, l: z.mean(), "expected one like z"),
        (lambda z, l: None, "got None"),
        (lambda z, l: z.to("meta"), "on meta"),
    ],
)
def test_answers_that_are_no_picture_are_refused(name, answer, says):
    with pytest.raises(ValueError, match=f"{SAMPLERS[name].__name__}: x0_hat of step 0.*{says}"):
        next(SAMPLERS[name](answer, torch.ones(3, 2), time_grid(4, cosine_log_snr)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_nan_late_in_a_run_names_its_step(name):
    def denoise(z, log_snr):
        return z * (math.nan if log_snr[0] > 3 else 0.5)

    with pytest.raises(ValueError, match="of step 3, got NaN"):
        list(SAMPLERS[name](denoise, torch.ones(3, 2), torch.tensor([-4.0, -1, 1, 4, 6])))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("z", [torch.ones(3, 2).bool(), [1.0, 2.0], None])
def test_starts_that_are_no_noise_are_refused(name, z):
    with pytest.raises(ValueError, match=f"{SAMPLERS[name].__name__}: z, got"):
        list(SAMPLERS[name](lambda z, l: z, z, time_grid(2, cosine_log_snr)))


@pytest.mark.parametrize("n", [0, -3, 2.5, True, None, "4"])
def test_grid_takes_whole_numbers(n):
    with pytest.raises(ValueError, match="time_grid: n, got"):
        time_grid(n, cosine_log_snr)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float64_stays_float64(name):
    _, z, x0_hat = last(
        SAMPLERS[name](
            lambda z, l: z * 0.3, torch.zeros(1, 2).double(), time_grid(3, cosine_log_snr)
        )
    )
    assert z.dtype == x0_hat.dtype == torch.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_default_noise_is_torch_s(name):
    def run():
        return last(
            SAMPLERS[name](MIXTURE.denoise, torch.ones(50, 2), time_grid(4, cosine_log_snr))
        )[2]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = run()
        torch.manual_seed(0)
        assert_close(run(), one, atol=0, rtol=0)


# ---- oracles that always answer one image


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_constant_oracle_is_followed_exactly(name, n):
    x0, eps = torch.randn(2, 4, 3, generator=seeded()).double()
    grid = time_grid(n, cosine_log_snr, start=0.95, end=0.1)
    alpha, sigma = alpha_sigma(grid.double())
    z = alpha[0] * x0 + sigma[0] * eps
    for i, z_s, x0_hat in SAMPLERS[name](
        lambda z, l: x0, z, grid, noise=lambda i, z: torch.zeros_like(z)
    ):
        assert_close(x0_hat, x0)
        if name != "ddpm":
            assert_close(z_s, alpha[i + 1] * x0 + sigma[i + 1] * eps, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "gamma, name", [(0.0, "lower"), (1.0, "upper"), (0.5, "between"), (0.3, "between")]
)
def test_ddpm_adds_the_stated_variance(gamma, name):
    grid = torch.tensor([-1.5, 0.5, 3.0]).double()
    (a_t, s_t), (a_s, s_s) = alpha_sigma(grid[0]), alpha_sigma(grid[1])
    upper = s_t**2 - (a_t / a_s) ** 2 * s_s**2  # variance of q(z_t | z_s)
    lower = upper * s_s**2 / s_t**2  # of q(z_s | z_t, x0)
    z, x0 = torch.ones(1, 1).double(), torch.full((1, 1), 0.3).double()
    _, z_s, _ = next(
        sample_ddpm(lambda z, l: x0, z, grid, gamma=gamma, noise=lambda i, z: torch.ones_like(z))
    )
    mean = (a_s * upper * x0 + a_t / a_s * s_s**2 * z) / s_t**2  # textbook form of the same mean
    expected = torch.exp((1 - gamma) * lower.log() + gamma * upper.log())
    assert_close((z_s - mean) ** 2, expected[None, None], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_noise_has_the_stated_share(eta):
    grid = torch.tensor([-1.5, 0.5, 3.0]).double()
    (a_t, s_t), (a_s, s_s) = alpha_sigma(grid[0]), alpha_sigma(grid[1])
    eps = torch.full((1, 1), 0.7).double()
    z = a_t * 0.3 + s_t * eps
    added = eta * (s_s / s_t) * (1 - a_t**2 / a_s**2).sqrt()  # eq. 16 of the DDIM paper
    _, z_s, _ = next(
        sample_ddim(
            lambda z, l: torch.full_like(z, 0.3),
            z,
            grid,
            eta=eta,
            noise=lambda i, z: torch.ones_like(z),
        )
    )
    assert_close(z_s, a_s * 0.3 + (s_s**2 - added**2).sqrt() * eps + added, atol=1e-12, rtol=1e-9)


def test_ddim_with_full_noise_is_ddpm():
    z, grid = torch.randn(20, 2, generator=seeded()).double(), time_grid(12, cosine_log_snr)
    a = last(sample_ddpm(MIXTURE.denoise, z, grid, noise=fresh(1, torch.float64)))
    b = last(sample_ddim(MIXTURE.denoise, z, grid, eta=1.0, noise=fresh(1, torch.float64)))
    assert_close(a[1], b[1], atol=1e-5, rtol=1e-5)  # the grid is float32
    assert_close(a[2], b[2], atol=1e-5, rtol=1e-5)


# ---- exact flow and order of convergence


@pytest.mark.parametrize("name, order", [("ddim", 1), ("dpmpp", 2)])
def test_order_of_convergence_on_one_gaussian(name, order):
    data = GaussianMixture(
        torch.tensor([[0.5]]).double(), torch.tensor([0.3]).double(), torch.ones(1).double()
    )
    first, final = -4.0, 4.0

    def spread(l):
        alpha, sigma = alpha_sigma(torch.tensor(l).double())
        return alpha, ((alpha * 0.3) ** 2 + sigma**2).sqrt()

    (a0, s0), (a1, s1) = spread(first), spread(final)
    z = torch.linspace(-2, 2, 9).double()[:, None]
    exact = a1 * 0.5 + s1 / s0 * (z - a0 * 0.5)  # the flow keeps every point's quantile
    errors = []
    for n in (40, 80, 160):
        grid = torch.linspace(first, final, n + 1, dtype=torch.float64)
        z_end = last(SAMPLERS[name](data.denoise, z, grid))[1]
        errors.append((z_end - exact).abs().max().item())
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(rates - order) < 0.25).all(), (errors, rates)


def test_dpmpp_needs_fewer_looks_than_ddim():
    z = torch.randn(500, 2, generator=seeded())
    exact = last(sample_dpmpp_2m(MIXTURE.denoise, z, time_grid(800, cosine_log_snr)))[2]

    def error(f):
        return (
            (last(f(MIXTURE.denoise, z, time_grid(20, cosine_log_snr)))[2] - exact)
            .norm(dim=1)
            .mean()
        )

    assert error(sample_dpmpp_2m) < error(sample_ddim) / 3


# ---- distributions

RUNS = dict(
    ddpm=(sample_ddpm, {}),
    ddpm_upper=(sample_ddpm, dict(gamma=1.0)),
    ddpm_middle=(sample_ddpm, dict(gamma=0.5)),
    ddim=(sample_ddim, {}),
    ddim_half=(sample_ddim, dict(eta=0.5)),
    dpmpp=(sample_dpmpp_2m, {}),
)


@pytest.mark.parametrize("name", RUNS)
def test_exact_denoiser_gives_the_mixture_back(name):
    sampler, options = RUNS[name]
    n = 10_000
    z = torch.randn(n, 2, generator=seeded(3))
    x = last(
        sampler(MIXTURE.denoise, z, time_grid(150, cosine_log_snr), noise=fresh(4), **options)
    )[2]
    w, mu, s = MIXTURE.weights, MIXTURE.means, MIXTURE.stds
    mean = (w[:, None] * mu).sum(0)
    cov = torch.einsum("k,ki,kj->ij", w, mu - mean, mu - mean) + (w * s**2).sum() * torch.eye(2)
    # 4 standard errors, plus 0.02 for 150 steps (0.01 measured with 60 000 points)
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diag() / n).sqrt() + 0.02).all()
    centred = x - mean
    products = centred[:, :, None] * centred[:, None]
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / math.sqrt(n) + 0.02).all()
    component = MIXTURE.component(x)
    share = component.bincount(minlength=3) / n
    assert ((share - w).abs() < 4 * (w * (1 - w) / n).sqrt() + 0.01).all()
    for k in range(3):  # the spread inside each component, which variances set:
        mine = x[component == k] - mu[k]  # off by up to 5 % at 150 steps (gamma=0, k=2)
        assert ((mine.std(0) / s[k] - 1).abs() < 0.05 + 3 / math.sqrt(2 * len(mine))).all(), k


def test_gamma_orders_the_spread():
    z, grid = torch.randn(4000, 2, generator=seeded(3)), time_grid(40, cosine_log_snr)
    spread = [
        last(sample_ddpm(MIXTURE.denoise, z, grid, gamma=g, noise=fresh(4)))[2].std(0).norm()
        for g in (0.0, 0.5, 1.0)
    ]
    assert spread[0] < spread[1] < spread[2]


def test_class_labels_steer():
    labelled = GaussianMixture(
        MIXTURE.means, MIXTURE.stds, MIXTURE.weights, torch.tensor([0, 1, 1])
    )
    labels = torch.tensor([0, 1]).repeat(500)
    z = torch.randn(1000, 2, generator=seeded())
    x = last(
        sample_ddim(lambda z, l: labelled.denoise(z, l, labels), z, time_grid(40, cosine_log_snr))
    )[2]
    assert (labelled.labels[labelled.component(x)] == labels).float().mean() > 0.99


# ---- parity with diffusers, see parity.py for what has to be matched


@pytest.mark.filterwarnings("ignore:__array__")  # theirs, not ours
@pytest.mark.parametrize("n", [5, 20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("threshold", parity.THRESHOLDS)
@pytest.mark.parametrize("prediction", parity.PREDICTIONS)
@pytest.mark.parametrize("betas", parity.BETAS)
@pytest.mark.parametrize("kind", parity.KINDS)
def test_parity_with_diffusers(kind, betas, prediction, threshold, n):
    pytest.importorskip("diffusers")
    # 5e-13 and 2e-6 measured; their DPM-Solver++ works in float32
    assert parity.largest_difference(kind, betas, prediction, threshold, n) < (
        1e-5 if kind == "dpmpp_2m" else 1e-10
    )


@pytest.mark.filterwarnings("ignore:__array__", "ignore:The `timesteps`")
@pytest.mark.parametrize("what", parity.UNMATCHED)
def test_conventions_that_are_not_matched_show(what):
    pytest.importorskip("diffusers")
    kind, changes = parity.UNMATCHED[what]
    threshold = changes.get("thresholding", False)
    changes = {k: v for k, v in changes.items() if k != "thresholding"}
    matched, changed = (
        parity.largest_difference(kind, "linear", "epsilon", threshold, 20, **c)
        for c in ({}, changes)
    )
    assert changed > 20 * matched


# ---- keyed randomness


def test_keyed_noise_depends_on_its_own_seed_only():
    together, alone = keyed_noise([5, 9, 5], (3, 4, 4)), keyed_noise([9], (3, 4, 4))
    assert together.shape == (3, 3, 4, 4) and together.dtype == torch.float32
    assert_close(together[1], alone[0], atol=0, rtol=0)
    assert_close(together[0], together[2], atol=0, rtol=0)
    assert_close(keyed_noise(torch.tensor([5, 9]), (3, 4, 4)), together[:2], atol=0, rtol=0)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(keyed_noise([9], (3, 4, 4), stream=1), alone)


def test_keyed_noise_is_unit_gaussian_and_uncorrelated():
    x = keyed_noise(range(400), (100,))
    assert abs(x.mean()) < 4 / 200 and abs(x.std() - 1) < 4 / math.sqrt(2 * 40_000)
    y = keyed_noise(range(400), (100,), stream=1)
    assert abs((x * y).mean()) < 4 / 200 and abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(39_900)


def test_keyed_generator_is_pinned_and_tells_keys_apart():
    assert keyed_generator(1, "a").initial_seed() == 13963493416124208211
    assert (
        keyed_generator(np.int64(1), "a").initial_seed()
        == keyed_generator(torch.tensor(1), "a").initial_seed()
        == 13963493416124208211
    )
    keys = [(1, 23), (12, 3), ("1", 23), (1, "23"), (-1, 23), (1, 2, 3), ("1, 23",), (2**70,)]
    assert len({keyed_generator(*k).initial_seed() for k in keys}) == len(keys)
    state = torch.get_rng_state()
    keyed_generator(3)
    keyed_noise([1], (4,))
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is left alone


def test_keyed_refuses():
    with pytest.raises(ValueError, match="whole numbers"):
        keyed_generator(1.5)
    with pytest.raises(ValueError, match="at least one"):
        keyed_noise([], (3,))
