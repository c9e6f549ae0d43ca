"""Our samplers beside diffusers' schedulers: one network, one start, one source of noise, two programs.

What has to be matched is listed in `CONVENTIONS`. `UNMATCHED` are some of it: `tools/measure/prove_samplers.py` says
what each is worth.
"""

import math

import torch

from imagen_nb.diffusion import to_x0
from imagen_nb.sampling import sample_ddim, sample_ddpm, sample_dpmpp_2m
from imagen_nb.thresholding import dynamic_threshold

CONVENTIONS = [
    (
        "Levels: their timestep i stands for log-SNR log(abar_i/(1-abar_i)); abar has no "
        "entry for clean data, so timestep 0 is already noisy"
    ),
    (
        "Their tables are float32, where 1-abar cancels (5e-4 relative at timestep 0): abar "
        "is recomputed in float64 from their betas"
    ),
    (
        "betas 'squaredcos_cap_v2' are the cosine schedule with offset 0.008 and betas cut at"
        " 0.999: not our cosine_log_snr, so our samplers run on their levels"
    ),
    (
        "Last level: their sampler ends at abar = 1 (set_alpha_to_one=True; "
        "final_sigmas_type='zero'), log-SNR +infinity; ours ends at 60"
    ),
    (
        "Steps: timestep_spacing 'leading' for DDPM and DDIM, which then visit 0; n must "
        "divide 1000, because DDIM's previous timestep is t - 1000//n, wherever the next "
        "visit is"
    ),
    (
        "DPM-Solver++ takes timestep_spacing 'linspace' and looks levels up at rounded "
        "timesteps: its sigma is sqrt((1-abar)/abar), our log-SNR -2 log(sigma)"
    ),
    "DPM-Solver++ counts half log-SNR, log(alpha/sigma)",
    (
        "DPM-Solver++(2M): algorithm_type='dpmsolver++', solver_order=2, "
        "solver_type='midpoint'; first and last step of first order, the last because of "
        "final_sigmas_type='zero', whatever lower_order_final says"
    ),
    "DPM-Solver++ keeps its state and sigmas in float32, so the two agree to float32 only",
    (
        "Variance: gamma=0 is fixed_small, gamma=1 is fixed_large, gamma between is "
        "learned_range with a network that answers 2*gamma-1 in the extra channels (log-space"
        " mean of both)"
    ),
    "fixed_large takes 1 - abar_t/abar_s of the step taken, not the table's beta",
    "No noise on the last step, in both",
    ("DDIM's eta multiplies the standard deviation of fixed_small; eta=1 is DDPM with gamma=0"),
    "clip_sample=False: their default clips x0_hat to [-1, 1] without saying so",
    (
        "Thresholding: sample_max_value is 1 by default, which makes dynamic thresholding a "
        "clip; here 100"
    ),
    (
        "Thresholded DDIM takes use_clipped_model_output=True: their default keeps the eps of"
        " before the threshold, ours follows from x0_hat"
    ),
    (
        "v is alpha*eps - sigma*x0 in both; epsilon and v are turned into x0_hat before the "
        "threshold"
    ),
    (
        "dynamic_thresholding_ratio is a share (0.995), with linear interpolation between "
        "neighbours, per picture over all channels"
    ),
]
KINDS = {
    "ddpm gamma 0": (sample_ddpm, dict(gamma=0.0)),
    "ddpm gamma 0.3": (sample_ddpm, dict(gamma=0.3)),
    "ddpm gamma 1": (sample_ddpm, dict(gamma=1.0)),
    "ddim eta 0": (sample_ddim, dict(eta=0.0)),
    "ddim eta 0.5": (sample_ddim, dict(eta=0.5)),
    "ddim eta 1": (sample_ddim, dict(eta=1.0)),
    "dpmpp_2m": (sample_dpmpp_2m, {}),
}
BETAS, PREDICTIONS, STEPS, THRESHOLDS = (
    ("squaredcos_cap_v2", "linear"),
    dict(epsilon="eps", v_prediction="v", sample="x0"),
    (5, 20, 100),
    (False, True),
)
RATIO, CAP, CLEAN = 0.95, 100.0, 60.0
UNMATCHED = {
    "DDIM steps not at 1000//n": ("ddim eta 0", dict(timestep_spacing="linspace")),
    "DDIM ends at timestep 0": ("ddim eta 0", dict(set_alpha_to_one=False)),
    "x0_hat clipped by default": ("ddpm gamma 0", dict(clip_sample=True)),
    "sample_max_value left at 1": ("ddpm gamma 0", dict(thresholding=True, sample_max_value=1.0)),
    "DPM-Solver++ by Heun": ("dpmpp_2m", dict(solver_type="heun")),
    "DPM-Solver++ ends at its smallest sigma": ("dpmpp_2m", dict(final_sigmas_type="sigma_min")),
    "float32 tables": ("ddpm gamma 0", dict(double=False)),
    "DDIM keeps the eps of before the threshold": (
        "ddim eta 0",
        dict(thresholding=True, recompute=False),
    ),
}


def network(z, log_snr):
    "A prediction with no structure that could hide a mistake."
    return torch.tanh(1.3 * z + 0.1 * log_snr.reshape(-1, *[1] * (z.ndim - 1)) + 0.2)


def their_scheduler(kind, betas, prediction, threshold, n, double=True, **changes):
    "diffusers' scheduler, set up as `CONVENTIONS` says, with tables in float64."
    import diffusers

    common = dict(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=betas,
        prediction_type=prediction,
        thresholding=threshold,
        dynamic_thresholding_ratio=RATIO,
        sample_max_value=CAP,
    )
    changes = (
        {"clip_sample": False, "timestep_spacing": "leading", **changes}
        if kind != "dpmpp_2m"
        else changes
    )
    if kind == "dpmpp_2m":
        common.update(
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
            timestep_spacing="linspace",
        )
        scheduler = diffusers.DPMSolverMultistepScheduler(**common | changes)
    elif kind.startswith("ddim"):
        scheduler = diffusers.DDIMScheduler(**common | changes)
    else:
        variance = {"0": "fixed_small", "1": "fixed_large"}.get(kind.split()[-1], "learned_range")
        scheduler = diffusers.DDPMScheduler(**common | dict(variance_type=variance) | changes)
    if double:
        scheduler.betas = scheduler.betas.double()
        scheduler.alphas_cumprod = (1 - scheduler.betas).cumprod(0)
        scheduler.one = torch.tensor(1.0).double()
        ends_clean = getattr(scheduler.config, "set_alpha_to_one", True)
        scheduler.final_alpha_cumprod = scheduler.one if ends_clean else scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(n)
    return scheduler


def levels(scheduler):
    "The log-SNR their scheduler visits, and our end."
    if hasattr(scheduler, "sigmas"):
        visited = -2 * scheduler.sigmas[:-1].double().log()
    else:
        abar = scheduler.alphas_cumprod[scheduler.timesteps]
        visited = torch.log(abar / (1 - abar)).double()
    return torch.cat([visited, torch.tensor([CLEAN]).double()])


def their_steps(kind, scheduler, grid, z, g, recompute=True):
    "(z, x0_hat) after each of their steps; DPM-Solver++ does not tell x0_hat."
    options = dict(KINDS[kind][1])
    gamma = options.pop("gamma", 0.0)
    if kind.startswith("ddim") and scheduler.config.thresholding:
        options["use_clipped_model_output"] = recompute
    if kind != "dpmpp_2m":
        options["generator"] = g
    for i, t in enumerate(scheduler.timesteps):
        out = network(z, grid[i].to(z).expand(len(z)))
        if scheduler.config.get("variance_type") == "learned_range":
            out = torch.cat([out, torch.full_like(out, 2 * gamma - 1)], 1)
        step = scheduler.step(out, t, z, **options)
        z = step.prev_sample
        yield z, getattr(step, "pred_original_sample", None)


def largest_difference(kind, betas, prediction, threshold, n, recompute=True, **changes):
    """Largest difference of any step's z or x0_hat, relative to its largest value.

    Ours is in float64, and each program walks on its own path.
    """
    scheduler = their_scheduler(kind, betas, prediction, threshold, n, **changes)
    grid, draws = levels(scheduler), torch.Generator().manual_seed(7)
    start = 1.3 * torch.randn(
        2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sampler, options = KINDS[kind]

    def denoise(z, log_snr):
        x0_hat = to_x0(network(z, log_snr), z, log_snr, PREDICTIONS[prediction])
        return dynamic_threshold(x0_hat, RATIO, CAP) if threshold else x0_hat

    def noise(i, z):
        return torch.randn(z.shape, generator=draws, dtype=z.dtype)

    ours = sampler(denoise, start, grid, noise=noise, **options)
    theirs = their_steps(
        kind,
        scheduler,
        grid,
        start.float() if kind == "dpmpp_2m" else start,
        torch.Generator().manual_seed(7),
        recompute,
    )
    worst = 0.0
    for (_, *mine), other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other):
            if b is not None:
                worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    return worst if math.isfinite(worst) else math.inf
