"Forward process, conversions and losses against independent computations."

import math

import mpmath
import pytest
import torch
from torch.testing import assert_close

from imagen_nb.diffusion import (
    SCHEDULES,
    TARGETS,
    alpha_sigma,
    broadcast_to,
    cosine_log_snr,
    ddpm_betas,
    ddpm_log_snr,
    ddpm_timestep,
    diffusion_loss,
    edm_log_snr,
    edm_sigma,
    linear_log_snr,
    loss_weight,
    mean_by_level,
    q_posterior,
    q_sample,
    to_eps,
    to_v,
    to_x0,
    train_plane_mlp,
)

LEVELS = torch.tensor([-20.0, -9.0, -2.5, 0.0, 1.3, 7.0, 20.0])


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- schedules


def test_cosine_is_a_cosine():
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
    alpha, sigma = alpha_sigma(cosine_log_snr(t))
    assert_close(alpha, torch.cos(math.pi / 2 * t), atol=1e-12, rtol=1e-9)
    assert_close(sigma, torch.sin(math.pi / 2 * t), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "t, expected",
    [
        (0.001, 12.912),
        (0.01, 8.307),
        (0.1, 3.685),
        (0.2, 2.248),
        (0.3, 1.349),
        (0.5, 0.0),
        (0.7, -1.349),
        (0.9, -3.685),
    ],
)
def test_cosine_table(t, expected):  # computed once with another program
    assert cosine_log_snr(torch.tensor(t)).item() == pytest.approx(expected, abs=6e-4)


def test_linear_is_the_limit_of_the_thousand_steps():
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    exact = torch.log(abar) - torch.log1p(-abar)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # the limit drops terms of order beta: 0.09 at the first step, below 0.07 elsewhere
    assert (linear_log_snr(t) - exact).abs().max() < 0.1
    assert (linear_log_snr(t) - exact)[100:800].abs().max() < 0.045


@pytest.mark.parametrize("betas", [4000, 16000])
def test_linear_limit_gets_closer_with_more_steps(betas):
    share = torch.linspace(1e-4, 0.02, betas, dtype=torch.float64) * 1000 / betas
    abar = (1 - share).cumprod(0)
    exact = (torch.log(abar) - torch.log1p(-abar))[betas // 2 - 1]
    assert (linear_log_snr(double(0.5)) - exact).abs().item() < 10 / betas


@pytest.mark.parametrize("schedule", [cosine_log_snr, linear_log_snr])
def test_schedules_fall_and_are_cut(schedule):
    t = torch.linspace(0, 1, 5001)
    log_snr = schedule(t)
    assert log_snr.dtype == torch.float32 and log_snr[0] == 20
    assert (log_snr.diff() < 0).all() and log_snr.isfinite().all()
    assert schedule(torch.tensor([0.0, 1e-6, 1.0]), lo=-5.0, hi=8.0).tolist() == [8, 8, -5]


def test_schedule_ends():
    assert cosine_log_snr(torch.tensor([0.0, 1.0])).tolist() == [20, -20]
    assert linear_log_snr(torch.tensor(1.0)).item() == pytest.approx(-10.05, abs=1e-3)


@pytest.mark.parametrize("schedule", [cosine_log_snr, linear_log_snr])
def test_float32_agrees_with_float64_near_the_ends(schedule):
    step = 2.0 ** -torch.arange(2, 15, dtype=torch.float64)
    t = torch.cat([step, 1 - step])  # exact in float32 too
    assert_close(schedule(t.float()).double(), schedule(t), atol=4e-6, rtol=2e-6)


@pytest.mark.parametrize("schedule", [cosine_log_snr, linear_log_snr])
@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan])
def test_times_outside_are_refused(schedule, t):
    with pytest.raises(ValueError, match="expected values in"):
        schedule(torch.tensor([0.5, t]))


def test_half_precision_times_are_computed_in_float32():
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.bfloat16)
    assert_close(cosine_log_snr(t), cosine_log_snr(t.float()), atol=0, rtol=0)


# ---- scales


def test_scales_conserve_variance_and_do_not_cancel():
    alpha, sigma = alpha_sigma(LEVELS)
    assert_close(alpha**2 + sigma**2, torch.ones(7))
    assert_close(torch.log(alpha**2 / sigma**2), LEVELS, atol=1e-5, rtol=1e-6)
    assert_close(sigma[-1].item(), math.exp(-10) / math.sqrt(1 + math.exp(-20)), rtol=1e-6, atol=0)


def test_broadcast_to():
    x = torch.zeros(4, 3, 2, 2)
    assert broadcast_to(torch.ones(4), x).shape == (4, 1, 1, 1)
    assert broadcast_to(torch.tensor(2.0), x).shape == ()
    assert broadcast_to(torch.ones(4, 1, 1, 1), x).shape == (4, 1, 1, 1)
    for shape in ((3,), (2, 2)):
        with pytest.raises(ValueError, match="one value per sample"):
            broadcast_to(torch.ones(shape), x)


# ---- other books


@pytest.mark.parametrize(
    "betas",
    [
        torch.linspace(1e-4, 0.02, 1000),
        torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        torch.tensor([1e-12, 0.5, 0.999999]),
    ],
)
def test_discrete_schedules_there_and_back(betas):
    betas = betas.double()
    table = ddpm_log_snr(betas)
    kept = [mpmath.mpf(1)]
    with mpmath.workdps(40):
        for beta in betas.tolist():
            kept.append(kept[-1] * (1 - mpmath.mpf(beta)))
        exact = [float(mpmath.log(k / (1 - k))) for k in kept[1:]]
    assert_close(table, double(*exact), rtol=1e-9, atol=1e-9)
    assert_close(ddpm_betas(table), betas, rtol=1e-9, atol=1e-15)
    assert_close(ddpm_log_snr(betas.float()), table.float(), rtol=2e-5, atol=2e-5)


def test_discrete_cosine_is_diffusers_s():
    "Improved DDPM's table, which theirs builds from f(t) with its offset and caps at 0.999."
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    def f(t):
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    kept = f(t) / f(double(0.0))
    assert_close(
        ddpm_betas(torch.log(kept / (1 - kept))), theirs.betas[:999].double(), rtol=1e-5, atol=1e-7
    )


def test_timesteps_between_two_and_beyond_the_ends():
    table = ddpm_log_snr(torch.linspace(1e-4, 0.02, 1000).double())
    asked = torch.stack(
        [table[0] + 1, table[0], 0.25 * table[7] + 0.75 * table[8], table[-1], table[-1] - 1]
    )
    assert_close(ddpm_timestep(asked, table), double(0, 0, 7.75, 999, 999))
    assert ddpm_timestep(asked.float().reshape(5, 1), table).shape == (5, 1)


def test_edm_sigma_is_theirs():
    "Euler's scheduler in diffusers counts noise as EDM does."
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    sigmas = torch.as_tensor(theirs.sigmas[:-1]).flip(0).double()
    table = ddpm_log_snr(theirs.betas.double())
    assert_close(
        edm_sigma(table), sigmas, rtol=1e-3, atol=0
    )  # theirs is float32, 1 - kept cancels at step 0
    assert_close(edm_sigma(table)[10:], sigmas[10:], rtol=2e-5, atol=0)
    assert_close(edm_log_snr(edm_sigma(table)), table)
    x0, eps = draws(3, 5, dtype=torch.float64), draws(3, 5, seed=1, dtype=torch.float64)
    level = table[[0, 500, 999]]
    assert_close(
        q_sample(x0, eps, level) / alpha_sigma(level)[0][:, None],
        x0 + edm_sigma(level)[:, None] * eps,
    )


def test_other_books_refuse():
    for bad in (
        torch.tensor([0.1, 1.0]),
        torch.tensor([0.0, 0.1]),
        torch.tensor([[0.1]]),
        torch.tensor([math.nan]),
    ):
        with pytest.raises(ValueError, match="ddpm_log_snr: betas"):
            ddpm_log_snr(bad)
    for bad in (torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 1.0])):
        with pytest.raises(ValueError, match="ddpm_betas: log_snrs"):
            ddpm_betas(bad)
        with pytest.raises(ValueError, match="ddpm_timestep: table"):
            ddpm_timestep(torch.tensor(0.0), bad)
    with pytest.raises(ValueError, match="edm_log_snr: sigma"):
        edm_log_snr(torch.tensor([1.0, 0.0]))


# ---- loss by level


def test_mean_by_level_equals_a_loop():
    log_snr, losses = 12 * draws(500), draws(500, seed=1)
    edges = torch.tensor([-10.0, -3, 0, 2, 9, 1000])
    means, counts = mean_by_level(losses, log_snr, edges)
    for k, (low, high) in enumerate(zip(edges, edges[1:])):
        inside = losses[(log_snr >= low) & (log_snr < high)]
        assert counts[k] == len(inside)
        assert_close(means[k], inside.mean(), equal_nan=True, atol=1e-5, rtol=1e-5)
    assert mean_by_level(losses, log_snr, torch.tensor([500.0, 600.0]))[0].isnan().all()


def test_mean_by_level_refuses_bins_out_of_order():
    x = torch.zeros(3)
    for edges in (x, torch.tensor([1.0]), torch.tensor([[0.0, 1.0]])):
        with pytest.raises(ValueError, match="edges"):
            mean_by_level(x, x, edges)


# ---- what is refused everywhere


def test_tensors_that_do_not_match_are_refused():
    x, level = torch.zeros(2, 3), torch.tensor(0.0)
    bad = dict(
        shape=torch.zeros(2, 4),
        rank=torch.zeros(3),
        device=torch.zeros(2, 3, device="meta"),
        precision=x.double(),
        whole=x.long(),
        number=0.0,
    )
    calls = (
        lambda y: q_sample(x, y, level),
        lambda y: q_posterior(x, y, level, level + 1),
        lambda y: to_x0(x, y, level, "v"),
        lambda y: to_eps(y, x, level, "v"),
        lambda y: to_v(x, y, level, "eps"),
        lambda y: diffusion_loss(x, x, y, level),
    )
    for y in bad.values():
        for call in calls:
            with pytest.raises(ValueError, match="expected floats of equal shapes"):
                call(y)
    for other in (
        torch.zeros(3),
        torch.zeros(2, 3),
        torch.zeros(2, device="meta"),
        torch.zeros(2, 1, 1),
    ):
        with pytest.raises(ValueError, match="one value per sample"):
            q_sample(x, x, other)
    for other in (0.0, None, torch.tensor(True)):
        for call in (lambda l: q_sample(x, x, l), alpha_sigma, cosine_log_snr, loss_weight):
            with pytest.raises(ValueError, match="expected a tensor of numbers"):
                call(other)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_float32_schedules_against_fifty_digits(kind):
    schedule = SCHEDULES[kind]
    near = torch.logspace(-4, -0.31, 60)
    t = torch.cat([near, 1 - near])
    with mpmath.workdps(50):
        exact = [
            -2 * mpmath.log(mpmath.tan(mpmath.mpf(x) * mpmath.pi / 2))
            if kind == "cosine"
            else -mpmath.log(
                mpmath.expm1(mpmath.mpf(x) / 10 + mpmath.mpf("9.95") * mpmath.mpf(x) ** 2)
            )
            for x in t.tolist()
        ]
        exact = double(*map(float, exact))
    assert ((schedule(t).double() - exact).abs() <= 1e-6 * exact.abs().clamp(min=1)).all()


# ---- forward process


def test_q_sample_equals_a_thousand_small_steps():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    mean, var = 1.0, 0.0
    for beta in betas.tolist():
        mean, var = mean * math.sqrt(1 - beta), var * (1 - beta) + beta
    abar = (1 - betas).prod()
    log_snr = torch.log(abar / (1 - abar))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert q_sample(one, zero, log_snr).item() == pytest.approx(mean, rel=1e-9)
    assert q_sample(zero, one, log_snr).item() ** 2 == pytest.approx(var, rel=1e-9)


def test_q_sample_uses_each_row_s_own_level():
    x0, eps = draws(7, 3, 4, 4), draws(7, 3, 4, 4, seed=1)
    z_t = q_sample(x0, eps, LEVELS)
    for k in range(7):
        assert_close(z_t[k], q_sample(x0, eps, LEVELS[k])[k])
    assert_close(z_t[-1], x0[-1], atol=5e-4, rtol=0)  # log-SNR 20: clean
    assert_close(z_t[0], eps[0], atol=5e-4, rtol=0)  # log-SNR -20: noise


def test_q_sample_keeps_precision_and_shapes():
    half = draws(2, 3, 4, 4).bfloat16()
    assert q_sample(half, half, torch.tensor(0.0)).dtype == torch.float32
    assert q_sample(half.double(), half.double(), torch.tensor(0.0)).dtype == torch.float64
    with pytest.raises(ValueError, match="equal shapes"):
        q_sample(half, half[:1], torch.tensor(0.0))


@pytest.mark.parametrize("l_t, l_s", [(-1.0, 0.5), (-6.0, -5.8), (2.0, 6.0)])
def test_q_posterior_by_multiplying_densities(l_t, l_s):
    l_t, l_s = double(l_t)[0], double(l_s)[0]
    (a_t, s_t), (a_s, s_s) = alpha_sigma(l_t), alpha_sigma(l_s)
    x0, z_t = double(0.3, -0.7)
    z_t = a_t * x0 + s_t * z_t
    a_ts, v_ts = a_t / a_s, s_t**2 - (a_t / a_s * s_s) ** 2
    z = torch.linspace(-9, 9, 400_001, dtype=torch.float64)
    log_p = -((z - a_s * x0) ** 2) / (2 * s_s**2) - (z_t - a_ts * z) ** 2 / (2 * v_ts)
    p = log_p.softmax(0)
    mean = (p * z).sum()
    got = q_posterior(x0[None], z_t[None], l_t, l_s)
    assert_close(got[0][0], mean, atol=1e-8, rtol=1e-8)
    assert_close(got[1], (p * (z - mean) ** 2).sum(), atol=1e-10, rtol=1e-7)


def test_q_posterior_limits_and_bounds():
    x0, z_t = draws(5, 2), draws(5, 2, seed=1)
    l_t = torch.linspace(-8, 8, 5)
    mean, var = q_posterior(x0, z_t, l_t, torch.full((5,), 60.0))
    assert_close(mean, x0)
    assert var.max() < 1e-8  # s = 0 gives x0 back
    mean, var = q_posterior(x0, z_t, l_t, l_t)  # s = t gives z_t back
    assert_close(mean, z_t)
    assert_close(var, torch.zeros(5))
    _, small = q_posterior(x0, z_t, l_t, l_t + 1)
    assert (small < -math.expm1(-1) * alpha_sigma(l_t)[1] ** 2).all()
    with pytest.raises(ValueError, match="less noisy"):
        q_posterior(x0, z_t, l_t, l_t - 1)


def test_q_posterior_is_finite_over_the_whole_range():
    mean, var = q_posterior(
        draws(1, 9), draws(1, 9, seed=1), torch.tensor(-20.0), torch.tensor(20.0)
    )
    assert mean.isfinite().all() and 0 <= var.item() < 1e-8


# ---- conversions


def truth(x0, eps, log_snr):
    alpha, sigma = (broadcast_to(a, x0) for a in alpha_sigma(log_snr))
    return dict(x0=x0, eps=eps, v=alpha * eps - sigma * x0)


@pytest.mark.parametrize("target", TARGETS)
def test_conversions_recover_the_truth(target):
    log_snr = LEVELS.double()
    x0, eps = draws(7, 3, 4, dtype=torch.float64), draws(7, 3, 4, seed=1, dtype=torch.float64)
    z_t, known = q_sample(x0, eps, log_snr), truth(x0, eps, log_snr)
    for name, convert in dict(x0=to_x0, eps=to_eps, v=to_v).items():
        assert_close(
            convert(known[target], z_t, log_snr, target), known[name], atol=1e-9, rtol=1e-9
        )


@pytest.mark.parametrize("target", TARGETS)
def test_conversions_in_half_precision_are_done_in_float32(target):
    prediction, z_t = draws(2, 3).bfloat16(), draws(2, 3, seed=1).bfloat16()
    for convert in (to_x0, to_eps, to_v):
        got = convert(prediction, z_t, torch.tensor(1.0), target)
        assert got.dtype == torch.float32
        assert_close(got, convert(prediction.float(), z_t.float(), torch.tensor(1.0), target))


def test_unknown_target_is_refused():
    x = torch.zeros(1, 2)
    for convert in (to_x0, to_eps, to_v):
        with pytest.raises(ValueError, match="got .score."):
            convert(x, x, torch.tensor(0.0), "score")
        with pytest.raises(ValueError, match="equal shapes"):
            convert(x, x[0], torch.tensor(0.0), "eps")


# ---- loss


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weight", ["eps", "x0", "v", "capped"])
def test_loss_equals_the_loss_computed_in_its_own_space(target, weight):
    log_snr = torch.linspace(-9, 9, 7, dtype=torch.float64)
    x0, eps = draws(7, 3, 4, 4, dtype=torch.float64), draws(7, 3, 4, 4, seed=1, dtype=torch.float64)
    z_t, known = q_sample(x0, eps, log_snr), truth(x0, eps, log_snr)
    prediction = known[target] + 0.1 * draws(7, 3, 4, 4, seed=2, dtype=torch.float64)
    space, convert = dict(eps=("eps", to_eps), v=("v", to_v)).get(weight, ("x0", to_x0))
    direct = ((convert(prediction, z_t, log_snr, target) - known[space]) ** 2).mean((1, 2, 3))
    if weight == "capped":
        direct = direct * (1 / alpha_sigma(log_snr)[1] ** 2).clamp(max=5)
    got = diffusion_loss(prediction, x0, eps, log_snr, target, weight)
    assert got.shape == (7,)
    assert_close(got, direct, rtol=1e-7, atol=1e-12)


def test_paper_s_loss_is_plain_squared_error_of_the_noise():
    x0, eps, eps_hat = (draws(7, 3, 4, 4, seed=k) for k in range(3))
    plain = ((eps - eps_hat) ** 2).mean((1, 2, 3))
    for level in (LEVELS, LEVELS[:, None, None, None], LEVELS[0]):
        assert_close(diffusion_loss(eps_hat, x0, eps, level), plain, atol=0, rtol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_own_weight_is_exactly_one_and_capped_stays_small(target):
    assert (loss_weight(LEVELS, target, target) == 1).all()
    assert loss_weight(LEVELS, "x0", "capped", cap=5).max() == pytest.approx(5)
    assert loss_weight(LEVELS, "v", "capped", cap=5).max() <= 1.0
    assert loss_weight(LEVELS, "x0", "eps").log().tolist() == pytest.approx(
        LEVELS.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weight", ["eps", "x0", "v", "capped"])
def test_loss_and_gradient_stay_finite_at_the_ends(target, weight):
    x0, eps = draws(7, 3, 4, 4), draws(7, 3, 4, 4, seed=1)
    prediction = draws(7, 3, 4, 4, seed=2).requires_grad_()
    loss = diffusion_loss(prediction, x0, eps, LEVELS, target, weight)
    loss.sum().backward()
    assert loss.isfinite().all() and prediction.grad.isfinite().all()


def test_best_prediction_does_not_depend_on_the_weight():
    "Where loss is least: the conditional mean, found here by descent on two clean points."
    z_t, log_snr = double(0.4)[:, None], double(0.7)
    x0, likely = double(-1.0, 0.5)[:, None], double(0.3, 0.7)
    alpha, sigma = alpha_sigma(log_snr)
    eps = (z_t - alpha * x0) / sigma  # both explain z_t
    for target, convert in (("eps", to_x0), ("v", to_x0), ("x0", to_x0)):
        for weight in ("eps", "x0", "v", "capped"):
            guess = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
            loss = (
                likely * diffusion_loss(guess.expand(2, 1), x0, eps, log_snr, target, weight)
            ).sum()
            (slope,) = torch.autograd.grad(loss, guess, create_graph=True)
            (curve,) = torch.autograd.grad(slope, guess)
            best = guess.detach() - slope.detach() / curve  # one Newton step: it is a parabola
            assert_close(
                convert(best, z_t, log_snr, target), (likely[:, None] * x0).sum(0, keepdim=True)
            )


def test_loss_refuses_wrong_input():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="equal shapes"):
        diffusion_loss(x[:1], x, x, torch.zeros(2))
    with pytest.raises(ValueError, match="weight, got 'snr'"):
        diffusion_loss(x, x, x, torch.zeros(2), weight="snr")
    with pytest.raises(ValueError, match="target, got"):
        diffusion_loss(x, x, x, torch.zeros(2), target="score")
    with pytest.raises(ValueError, match="cap"):
        diffusion_loss(x, x, x, torch.zeros(2), cap=0)
    with pytest.raises(ValueError, match="one value per sample"):
        diffusion_loss(x, x, x, torch.zeros(5), "v")


# ---- parity


@pytest.mark.parametrize("target, theirs", [("eps", "epsilon"), ("v", "v_prediction")])
def test_parity_of_noising_and_velocity_with_diffusers(target, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    abar = scheduler.alphas_cumprod.double()
    steps = torch.tensor([0, 10, 300, 999])
    log_snr = torch.log(abar / (1 - abar))[steps].float()
    x0, eps = draws(4, 3, 8, 8), draws(4, 3, 8, 8, seed=1)
    # theirs holds 1-abar in float32, which cancels at step 0 (1-abar = 1e-4)
    assert_close(q_sample(x0, eps, log_snr), scheduler.add_noise(x0, eps, steps), atol=2e-5, rtol=0)
    assert_close(
        truth(x0, eps, log_snr)["v"], scheduler.get_velocity(x0, eps, steps), atol=2e-5, rtol=0
    )


# ---------------------------------------------------------------- a network that is trained


def test_a_small_network_learns_and_a_seed_decides_everything():
    def sample(n, generator):  # two points, as far apart as their mean is from both
        return torch.randint(2, (n, 1), generator=generator) * 2.0 - torch.ones(1, 2)

    before = torch.get_rng_state()
    network, losses = train_plane_mlp(sample, steps=150)
    again, _ = train_plane_mlp(sample, steps=150)
    other, _ = train_plane_mlp(sample, steps=1, seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert losses.shape == (150,) and losses[-20:].mean() < 0.8 * losses[:5].mean()
    z, log_snr = torch.tensor([[0.9, 0.9], [-0.9, -0.9]]), torch.tensor([0.0, 0.0])
    assert torch.equal(network(z, log_snr), again(z, log_snr))
    assert not torch.equal(network(z, log_snr), other(z, log_snr))
    assert torch.equal(network(z, log_snr[0]), network(z, log_snr))  # one level for all
    assert (to_x0(network(z, log_snr), z, log_snr, "v") * z.sign()).min() > 0.75  # 0.64 for v = 0
    assert not any(p.requires_grad for p in network.parameters())
