"""The exact laboratory: data whose best denoiser is known, emulated networks, and laws that samplers must arrive at.

`test_laboratory.py` uses it for what is quick, `tools/measure/prove_samplers.py` for the whole matrix
and the run cards.
"""

import inspect
import math
from functools import cache

import torch

from imagen_nb import diffusion, sampling
from imagen_nb.diffusion import SCHEDULES, cosine_log_snr, to_eps, to_v, to_x0
from imagen_nb.guidance import guided
from imagen_nb.lab.mixture import GaussianMixture
from imagen_nb.sampling import sample_ddim, sample_ddpm, sample_dpmpp_2m, time_grid
from imagen_nb.text import TextEmbedding
from imagen_nb.thresholding import dynamic_threshold

# name: sampler, its options, share of the reverse process's noise (eta)
SAMPLERS = {
    "ddpm gamma 0": (sample_ddpm, dict(gamma=0.0), 1.0),
    "ddpm gamma 0.3": (sample_ddpm, dict(gamma=0.3), 1.0),
    "ddpm gamma 1": (sample_ddpm, dict(gamma=1.0), 1.0),
    "ddim eta 0": (sample_ddim, dict(eta=0.0), 0.0),
    "ddim eta 0.5": (sample_ddim, dict(eta=0.5), 0.5),
    "ddim eta 1": (sample_ddim, dict(eta=1.0), 1.0),
    "dpmpp_2m": (sample_dpmpp_2m, {}, 0.0),
}

# Unguided data: four round Gaussians in three dimensions, three classes, mean zero.
MIXTURE = GaussianMixture(
    torch.tensor([[1.5, 0, 0.5], [-1.5, 1, 0], [0, -1.25, 1], [0, 0, -1.75]]),
    torch.tensor([0.5, 0.4, 0.45, 0.6]),
    torch.tensor([0.3, 0.3, 0.2, 0.2]),
    torch.tensor([0, 0, 1, 2]),
)
MIXTURE = GaussianMixture(
    MIXTURE.means - MIXTURE.weights @ MIXTURE.means,
    *(getattr(MIXTURE, k) for k in ("stds", "weights", "labels")),
)
LABEL, N = 0, 20_000
# Guided data: with and without the caption one Gaussian each, so that the guided field is linear.
COND, UNCOND, W = (torch.tensor([1.0, -0.5, 0.25]), 0.5), (torch.tensor([0.0, 0.25, 0.0]), 1.0), 3.0


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh(seed=0, dtype=torch.float32):
    "Noise for a sampler, from a seed of its own."
    g = seeded(seed)
    return lambda i, z: torch.randn(z.shape, generator=g, dtype=dtype)


def last(steps):
    *_, (_, _, x0_hat) = steps
    return x0_hat


# ---- an exact network, asked as the cascade asks one


def words(n, label):
    "A text of one token that spells the class; the null embedding spells none (-1)."
    return TextEmbedding(torch.full((n, 1, 1), label + 1.0), torch.ones(n, 1, dtype=torch.bool))


def of_mixture(z, log_snr, text):
    return MIXTURE.denoise(z, log_snr, text.tokens[:, 0, 0].long() - 1)


def of_gaussians(z, log_snr, text):
    "E[x0 | z] of one Gaussian for rows with a caption, of another for rows without."
    known = text.tokens[:, 0, :] > 0
    mean, std = (
        torch.where(known, torch.as_tensor(a), torch.as_tensor(b)).to(z)
        for a, b in zip(COND, UNCOND)
    )
    alpha, sigma = (a[:, None].to(z) for a in diffusion.alpha_sigma(log_snr))
    return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (z - alpha * mean)


def in_unit(x0_of, target, spoil=lambda p: p):
    "What a perfect network trained on `target` answers; `spoil` is its arithmetic."
    convert = dict(eps=to_eps, x0=lambda x0, *_: x0, v=to_v)[target]
    return lambda z, log_snr, text: spoil(convert(x0_of(z, log_snr, text), z, log_snr, "x0"))


def denoiser(predict, target, text, w, limit=lambda x0_hat: x0_hat):
    "network -> guidance -> x0_hat -> threshold, as `imagen_nb.stage.denoiser` has it."
    guide = guided(predict, text, w)
    return lambda z, log_snr: limit(to_x0(guide(z, log_snr), z, log_snr, target))


GUIDANCE = {
    "off": (of_mixture, -1, 1.0),
    "w=1": (of_mixture, LABEL, 1.0),
    "w=3": (of_gaussians, 0, W),
}


def steps_for(sampler, schedule, guidance):
    """Enough for the discretisation error to stay below the threshold.

    A method of first order needs many steps where guidance narrows the law to 0.13.
    """
    if sampler in ("dpmpp_2m", "ddpm gamma 1"):
        return 100
    return {"off": 120, "w=1": 120, "w=3": 1000 if schedule == "linear" else 600}[guidance]


def draw(sampler, target, schedule, guidance, steps, n=N, seed=0, kind="t", run=None):
    "n results of one cell of the matrix."
    (call, options, _), (x0_of, label, w) = SAMPLERS[sampler], GUIDANCE[guidance]
    denoise = denoiser(in_unit(x0_of, target), target, words(n, label), w)
    z = torch.randn(n, 3, generator=seeded(seed))
    grid = time_grid(steps, SCHEDULES[schedule], kind=kind)
    return last((run or call)(denoise, z, grid, noise=fresh(seed + 1), **options))


# ---- the law to arrive at


def guided_slope(log_snr, w=W):
    "a, b with sigma/alpha*eps_hat = a*y + b for y = z/alpha, guided between two Gaussians."
    e2 = math.exp(-log_snr)  # (sigma/alpha)^2
    parts = [
        (share * e2 / (std**2 + e2), mean.tolist())
        for share, (mean, std) in ((w, COND), (1 - w, UNCOND))
    ]
    return sum(k for k, _ in parts), [
        -sum(k * m for (k, _), m in zip(parts, means))
        for means in zip(*(mean for _, mean in parts))
    ]


@cache
def guided_law(eta, schedule, w=W, rungs=2000):
    """Mean and standard deviation at the end of the guided reverse process with noise share eta^2, from N(0, 1).

    y = z/alpha and e = sigma/alpha = exp(-lambda/2) turn the reverse process into dy = (1+eta^2) eps_hat de plus noise
    of variance eta^2 d(e^2); its moments obey the two lines of `rate`, integrated by Runge-Kutta (order 4) in float64.
    """
    start, end = SCHEDULES[schedule](torch.tensor([1.0, 0.0]).double()).tolist()

    def rate(log_snr, state):
        a, b = guided_slope(log_snr, w)
        return [-(1 + eta**2) / 2 * (a * m + c) for m, c in zip(state, b)] + [
            -(1 + eta**2) * a * state[-1] + eta**2 * math.exp(-log_snr)
        ]

    h, state = (end - start) / rungs, [0.0, 0.0, 0.0, 1 + math.exp(-start)]

    def move(state, slope, by):
        return [x + by * d for x, d in zip(state, slope)]

    for i in range(rungs):
        at = start + i * h
        k1 = rate(at, state)
        k2 = rate(at + h / 2, move(state, k1, h / 2))
        k3 = rate(at + h / 2, move(state, k2, h / 2))
        k4 = rate(at + h, move(state, k3, h))
        state = [
            x + h / 6 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in zip(state, k1, k2, k3, k4)
        ]
    return torch.tensor(state[:3]), math.sqrt(state[3])


def one_gaussian(mean, std):
    return GaussianMixture(mean[None].float(), torch.tensor([std]), torch.ones(1))


def law(guidance, eta, schedule):
    "Where exact sampling ends."
    if guidance == "w=3":
        return one_gaussian(*guided_law(eta, schedule))
    if guidance == "off":
        return MIXTURE
    mine = MIXTURE.labels == LABEL
    return GaussianMixture(MIXTURE.means[mine], MIXTURE.stds[mine], MIXTURE.weights[mine])


# ---- energy distance


@cache
def directions(d=3, count=12):
    "Evenly spread directions: a Fibonacci lattice on half a sphere."
    if d == 1:
        return torch.ones(1, 1)
    i = (torch.arange(count) + 0.5) / count
    turn, height = math.pi * (1 + 5**0.5) * torch.arange(count), i
    ring = (1 - height**2).sqrt()
    return torch.stack([ring * turn.cos(), ring * turn.sin(), height], 1)


def error(truth, *cell, **options):
    "Distance of a cell's results to the law; infinite where the sampler refuses to go on."
    try:
        return distance(draw(*cell, **options), truth)
    except ValueError:
        return math.inf


def distance(x, truth):
    "Energy distance of points to a law: twice the integral of (F_n - F)^2, mean over directions."
    if not x.isfinite().all():
        return math.inf
    return sum(
        _distance_1d((x @ u).double(), truth.along(u)) for u in directions(x.shape[1])
    ) / len(directions(x.shape[1]))


def _distance_1d(x, truth):
    "The same in one dimension: F_n is flat between points, F straight; 600 more stops cover the law's own range."
    far = 9 * truth.stds
    stops = torch.linspace(
        (truth.means[:, 0] - far).min().item(),
        (truth.means[:, 0] + far).max().item(),
        600,
        dtype=torch.float64,
    )
    at, order = torch.cat([x, stops]).sort()
    f = truth.cdf(at[:, None])
    empirical = (order < len(x)).double().cumsum(0)[:-1] / len(x)
    low, high = empirical - f[:-1], empirical - f[1:]
    return 2 * (at.diff() * (low**2 + low * high + high**2) / 3).sum().item()


def distance_of_two(x, y):
    "Energy distance of two sets of points of one size, mean over directions."
    at, order = (directions(x.shape[1]) @ torch.cat([x, y]).T).sort(1)
    gap = torch.where(order < len(x), 1.0, -1.0).cumsum(1) / len(x)
    return 2 * (gap[:, :-1] ** 2 * at.diff()).sum(1).mean().item()


def quantile_of_two(truth, pairs, n=N, p=0.99, seed=0):
    "The p-quantile of the distance between two true samples of n points."
    g = seeded(seed)
    return (
        torch.tensor(
            [distance_of_two(truth.sample(n, g), truth.sample(n, g)) for _ in range(pairs)]
        )
        .quantile(p)
        .item()
    )


# ---- planted errors: what is wrong, sampler, right text, wrong text (in the sampler or in q_posterior)
# They must show in the cell of guidance 3 and the linear schedule.

# A first-order flow that is told the next level stays a first-order flow: `test_contract` sees that error, no law can.
LEVEL = "denoise, z, log_snrs, i)", "denoise, z, log_snrs, i + 1)"
DRIFT = "log_snr_s - log_snr_t", "log_snr_t - log_snrs[i - 1]"  # this step, the step before
PLANTED = [
    ("sign: pull away from x0_hat", "ddpm gamma 1", ", c * alpha_s\n", ", -c * alpha_s\n"),
    (
        "index: alpha_s/alpha_t upside down",
        "ddpm gamma 1",
        "* alpha_s / alpha_t",
        "* alpha_t / alpha_s",
    ),
    ("index: network told the next level", "ddpm gamma 1", *LEVEL),
    (
        "index: x0_hat weighted with alpha_t",
        "ddpm gamma 1",
        ", c * alpha_s\n",
        ", c * alpha_t\n",
    ),
    (
        "variance: bounds swapped",
        "ddpm gamma 1",
        "small ** (1 - gamma) * large**gamma",
        "small**gamma * large ** (1 - gamma)",
    ),
    ("variance: alpha for sigma", "ddpm gamma 0", "c * sigma_s**2", "c * alpha_s**2"),
    ("variance: no square root", "ddpm gamma 1", "large**gamma).sqrt()", "large**gamma)"),
    (
        "sign: signal added to find the noise",
        "ddim eta 0",
        "(z - alpha_t * x0_hat)",
        "(z + alpha_t * x0_hat)",
    ),
    (
        "index: noise found with alpha_s",
        "ddim eta 0",
        "(z - alpha_t * x0_hat)",
        "(z - alpha_s * x0_hat)",
    ),
    ("index: noise found with sigma_s", "ddim eta 0", "x0_hat) / sigma_t", "x0_hat) / sigma_s"),
    ("index: step ends at alpha_t", "ddim eta 0", "alpha_s * x0_hat", "alpha_t * x0_hat"),
    (
        "variance: old and fresh noise swapped",
        "ddim eta 0.5",
        "(1 - fresh).sqrt() * eps_hat",
        "fresh.sqrt() * eps_hat",
    ),
    ("variance: eta not squared", "ddim eta 0.5", "eta**2 *", "eta *"),
    ("variance: old noise not reduced", "ddim eta 1", "(1 - fresh).sqrt() * eps_hat", "eps_hat"),
    ("sign: extrapolates backwards", "dpmpp_2m", "x0_hat + ratio / 2", "x0_hat - ratio / 2"),
    (
        "index: ratio of steps upside down",
        "dpmpp_2m",
        "({}) / ({})".format(*DRIFT),
        "({1}) / ({0})".format(*DRIFT),
    ),
    ("index: network told the next level", "dpmpp_2m", *LEVEL),
    (
        "index: previous is always the first",
        "dpmpp_2m",
        "        previous = x0_hat",
        "        if i == 0: previous = x0_hat",
    ),
    (
        "scale: log-SNR is not log(alpha/sigma)",
        "dpmpp_2m",
        "(log_snr_t - log_snr_s) / 2)",
        "(log_snr_t - log_snr_s))",
    ),
    (
        "scale: alpha_s and sigma_s swapped",
        "dpmpp_2m",
        "alpha_s, sigma_s = alpha_sigma(log_snr_s)",
        "sigma_s, alpha_s = alpha_sigma(log_snr_s)",
    ),
]


def planted(sampler, right, wrong):
    "The sampler with one piece of text replaced, wherever it stands: in itself or in `q_posterior`."
    names, found = {**vars(sampling)}, 0
    for part in (diffusion.q_posterior, SAMPLERS[sampler][0]):
        text = inspect.getsource(part)
        found += right in text
        space = {**vars(diffusion), **names} if part is diffusion.q_posterior else names
        exec(text.replace(right, wrong), space)
        names[part.__name__] = space[part.__name__]
    if not found:
        raise LookupError(f"{sampler}: no {right!r} in its source")
    return names[SAMPLERS[sampler][0].__name__]


# ---- orders of convergence, without Monte Carlo

LADDER = (40, 57, 80, 113, 160, 226, 320, 453, 640)


def on_a_line(means, stds, weights):
    means, stds, weights = (torch.tensor(x, dtype=torch.float64) for x in (means, stds, weights))
    return GaussianMixture(means[:, None], stds, weights)


LINE, TWO = on_a_line([0.5], [0.3], [1.0]), on_a_line([-1.0, 0.8], [0.3, 0.5], [0.4, 0.6])


def even(n, first=-6.0, final=6.0):
    "n even steps in log-SNR and one more, so that what a sampler does last is not measured."
    h = (final - first) / n
    return torch.linspace(first, final + h, n + 2, dtype=torch.float64)


def before_last(steps):
    "z before the last step."
    *_, (_, z, _), _ = steps
    return z


def marginal(log_snr, mean=0.5, std=0.3):
    alpha, sigma = (a.item() for a in diffusion.alpha_sigma(torch.as_tensor(log_snr).double()))
    return alpha * mean, math.sqrt((alpha * std) ** 2 + sigma**2)


def affine_law(sampler, grid, pick=before_last, truth=LINE, start=None):
    """What a sampler makes of data N(0.5, 0.3^2), exactly.

    It gives the standard deviation, and the share of an offset at the start that is left. Its steps are affine in the
    start and in each fresh noise: rows of one batch are the answers to 0, to a unit start and to a unit noise of each
    step. (The mean itself is exact for any steps when the start's mean is.)
    """
    call, options, _ = SAMPLERS[sampler]
    n = len(grid) - 1
    z = torch.zeros(n + 1, 1).double()
    z[1] = 1.0

    def noise(i, z):
        return (torch.arange(n + 1) == i + 2).double()[:, None]

    out = pick(call(truth.denoise, z, grid, noise=noise, **options))[:, 0]
    shares = out[1:] - out[0]
    return math.sqrt(
        (shares[0] * (start or marginal(grid[0])[1])) ** 2 + (shares[1:] ** 2).sum()
    ), shares[0].item()


def offset_left(eta, start, end, std=0.3):
    "Share of an offset of z that the exact reverse process with noise share eta^2 keeps, for one Gaussian."
    alpha, sigma = diffusion.alpha_sigma(torch.tensor([start, end]).double())
    spread = std**2 + (sigma / alpha) ** 2
    return (alpha[1] / alpha[0] * (spread[1] / spread[0]) ** ((1 + eta**2) / 2)).item()


def inverse_cdf(truth, level, log_snr, rounds=80):
    "x with cdf(x) = level, by halving."
    low, high = torch.full_like(level, -12.0), torch.full_like(level, 12.0)
    for _ in range(rounds):
        middle = (low + high) / 2
        above = truth.cdf(middle[:, None], log_snr) < level
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low


def strong_error(sampler, truth, n):
    "Largest distance to the exact flow, which keeps every point's quantile."
    z, grid = torch.linspace(-2, 2, 9).double()[:, None], even(n)
    call, options, _ = SAMPLERS[sampler]
    exact = inverse_cdf(truth, truth.cdf(z, grid[0]), grid[-2])
    return (before_last(call(truth.denoise, z, grid, **options))[:, 0] - exact).abs().max().item()


def weak_errors(sampler, n):
    "Relative errors of standard deviation and mean (offset left) for one Gaussian."
    grid = even(n)
    std, left = affine_law(sampler, grid)
    return abs(std / marginal(grid[-2])[1] - 1), abs(
        left / offset_left(SAMPLERS[sampler][2], grid[0], grid[-2]) - 1
    )


def full_error(sampler, n, kind="t", schedule="cosine"):
    "Relative error of the standard deviation as one samples: from t=1 to t=0, where the picture is the last x0_hat."
    grid = time_grid(n, SCHEDULES[schedule], kind=kind).double()
    return abs(affine_law(sampler, grid, pick=last)[0] / 0.3 - 1)


def order(steps, errors):
    "Slope of -log error over log steps with its 95 % interval (Student's t)."
    x, y = torch.tensor(steps).double().log(), -torch.tensor(errors).double().log()
    x = x - x.mean()
    slope = (x * y).sum() / (x**2).sum()
    left = y - y.mean() - slope * x
    t = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}[len(steps) - 2]
    half = t * ((left**2).sum() / (len(steps) - 2) / (x**2).sum()).sqrt()
    return slope.item(), (slope - half).item(), (slope + half).item()


# ---- error in distribution in one dimension, nearly without noise


def ranked_noise(seed, block=64):
    "Fresh noise that every `block` neighbours share out evenly, so that the points stay a fine sample of their law."
    g = seeded(seed)

    def noise(i, z):
        rank = z[:, 0].argsort().argsort()
        place, jitter = torch.rand(2, len(z) // block, block, generator=g, dtype=torch.float64)
        u = (place.argsort(1) + jitter) / block
        return torch.special.ndtri(u.flatten()[rank].clamp(1e-12, 1 - 1e-12))[:, None]

    return noise


def transport_error(sampler, n, kind="t", schedule="cosine", points=2048, seed=0):
    "Wasserstein-1 distance of the results to `TWO`: how far a result has to move, on average."
    call, options, _ = SAMPLERS[sampler]
    z = torch.special.ndtri((torch.arange(points).double() + 0.5) / points)[:, None]
    x = last(
        call(
            TWO.denoise,
            z,
            time_grid(n, SCHEDULES[schedule], kind=kind),
            noise=ranked_noise(seed),
            **options,
        )
    )[:, 0]
    at = torch.cat([x, torch.linspace(-4, 4, 4001).double()]).sort()
    empirical = (at.indices < points).double().cumsum(0)[:-1] / points
    f = TWO.cdf(at.values[:, None])
    return ((empirical - (f[1:] + f[:-1]) / 2).abs() * at.values.diff()).sum().item()


# ---- half precision

PICTURES = GaussianMixture(
    0.4 * MIXTURE.means, 0.15 * MIXTURE.stds, MIXTURE.weights
)  # three pixels, within [-1, 1]
SPOIL = {
    "exact": lambda p: p,
    "rounded": lambda p: p.bfloat16().float(),
    "noise": lambda p: p * (1 + 2**-9 * torch.randn(p.shape, generator=seeded(11))),
}
LIMITS = {
    "none": lambda x: x,
    "static": lambda x: x.clamp(-1, 1),
    "dynamic": lambda x: dynamic_threshold(x, 0.995),
}


def draw_pictures(sampler, target, spoil, limit, start, steps=50, n=5000, schedule="cosine"):
    "Results when the network's answer carries an error of half precision."
    call, options, _ = SAMPLERS[sampler]
    denoise = denoiser(
        in_unit(lambda z, l, text: PICTURES.denoise(z, l), target, SPOIL[spoil]),
        target,
        words(n, -1),
        1.0,
        LIMITS[limit],
    )
    grid = time_grid(steps, SCHEDULES[schedule], start=start)
    return last(
        call(denoise, torch.randn(n, 3, generator=seeded(3)), grid, noise=fresh(4), **options)
    )


def brightness_error(sampler, start, steps=256, pixels=3 * 64 * 64, spread=0.3):
    """Relative error of the spread of pictures' mean value when sampling starts from pure noise at t=start.

    The mean of d pixels, times sqrt(d), is one coordinate with unit noise and sqrt(d) times the signal: so wide that a
    late start hides some of it.
    """
    wide = on_a_line([0.0], [spread * pixels**0.5], [1.0])
    grid = time_grid(steps, cosine_log_snr, start=start).double()
    return affine_law(sampler, grid, last, wide, start=1.0)[0] / wide.stds[0].item() - 1
