"""Looks at a run: loss on pictures held back, beside two controls, and drawn samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imagen_nb.cascade import sample_in_parts
from imagen_nb.diffusion import SCHEDULES, alpha_sigma, broadcast_to, to_eps, to_v
from imagen_nb.engine.samples import to_device
from imagen_nb.engine.sharding import is_spread
from imagen_nb.pictures.pixels import Batch, resize
from imagen_nb.plots import image_grid
from imagen_nb.stage import Draws, Stage, StageConfig, lowres_pair, noisy_lowres
from imagen_nb.store.config import counted
from imagen_nb.store.keyed import permute
from imagen_nb.store.modes import evaluating

if TYPE_CHECKING:
    from imagen_nb.engine.execution import Execution
    from imagen_nb.engine.logs import Log
    from imagen_nb.engine.samples import Arrivals
    from imagen_nb.training import Samples

HELD_BACK = 2**20  # validation draws come from this epoch on, which no run reaches
VALIDATED, DRAWN = 64, 4  # pictures of a look


class LinearPixels(nn.Module):
    "A network that has learned nothing: the best linear guess of each pixel, by channel."

    def __init__(
        self,
        config: StageConfig,  # whose target it gives
        x0: Tensor,  # pictures, (b 3 h w)
        lowres: Tensor,  # what is known of them, alike; zeros: nothing
    ):
        super().__init__()

        def flat(images):
            return images.double().transpose(0, 1).flatten(1)  # (3, b*h*w)

        x, y = flat(x0), flat(lowres)
        m, m_low = x.mean(1), y.mean(1)
        x, y = x - m[:, None], y - m_low[:, None]
        slope = (x * y).mean(1) / y.square().mean(1).clamp(min=1e-12)
        v = (x - slope[:, None] * y).square().mean(1)  # what is left to guess
        numbers = (m - slope * m_low, slope, v)
        self.config = config
        self.numbers = nn.Parameter(
            torch.stack(numbers).float()[..., None, None], requires_grad=False
        )

    def forward(self, z_t, log_snr, text, lowres=None, aug_log_snr=None):
        offset, slope, v = self.numbers  # (3, 1, 1)
        m = offset if lowres is None else offset + slope * lowres
        alpha, sigma = (broadcast_to(o, z_t) for o in alpha_sigma(log_snr))
        x0_hat = m + alpha * v / (alpha**2 * v + sigma**2) * (z_t - alpha * m)
        if self.config.target == "eps":
            return to_eps(x0_hat, z_t, log_snr, "x0")
        if self.config.target == "v":
            return to_v(x0_hat, z_t, log_snr, "x0")
        return x0_hat - lowres if self.config.is_residual else x0_hat


def other_captions(
    captions: list[str],  # one per picture
) -> list[str]:  # one per picture, of another
    "The next caption that says something else; where all say the same, that."

    def others(k):
        return captions[k + 1 :] + captions[:k]

    return [next((c for c in others(k) if c != own), own) for k, own in enumerate(captions)]


@torch.no_grad()
def compare_losses(
    stage: Stage,  # with averaged weights
    parts: list[tuple[Batch, Draws]],  # on the CPU; picture k is at noise level k % levels
    text,  # text[captions] -> TextEmbedding of their captions
    levels: int,  # equal bins of t
) -> dict:  # a row of `validation.jsonl` without step and samples
    "Loss by noise level with the true captions, with other ones, and of a linear guess."
    c, n = stage.config, sum(len(batch.index) for batch, _ in parts)
    if n < levels:
        raise ValueError(
            f"validation_loss: n, got {n}, expected at least {counted(levels, 'picture')}"
        )
    others = other_captions([caption for batch, _ in parts for caption in batch.captions or ()])

    def seen(batch, draws):
        if not c.lowres_size:
            return batch.images, torch.zeros_like(batch.images)
        x0, low = lowres_pair(batch.images, c.factor)
        return x0, noisy_lowres(
            low, SCHEDULES[c.aug_schedule](draws.aug_t), draws.aug_eps, c.factor
        )

    linear = Stage(c, LinearPixels(c, *map(torch.cat, zip(*(seen(*part) for part in parts)))))
    place, rows = 0, []
    with evaluating(stage.network):
        for batch, draws in parts:
            trivial = linear.loss(batch, draws)
            other = batch._replace(text=text[others[place : place + len(batch.index)]])
            place += len(batch.index)
            batch, other = to_device(batch, stage.device), to_device(other, stage.device)
            draws = to_device(draws, stage.device)
            answers = [stage.loss(o, draws).cpu() for o in (batch, other)]
            rows.append(torch.stack([*answers, trivial]))
    losses = torch.cat(rows, 1).double()  # (3, n)
    true, shuffled, guessed = (
        [row[k::levels].mean().item() for k in range(levels)] for row in losses
    )
    gain = losses[0] - losses[1]  # (n,)
    mean, half = gain.mean().item(), 1.96 * gain.std().item() / n**0.5
    return dict(
        n=n,
        levels=[k / levels for k in range(levels)],
        loss=true,
        shuffled=shuffled,
        trivial=guessed,
        text_gain=dict(mean=mean, low=mean - half, high=mean + half),
    )


def describe_samples(
    images: Tensor,  # drawn, (b 3 h w) in [-1, 1]
    lowres: Tensor | None = None,  # what they enlarge, (b 3 h' w'); None: the base
) -> dict:  # a row of `samples.jsonl` without its step
    "What a look at pictures would tell, in numbers."
    gap = None
    if lowres is not None:
        small = resize(images, (lowres.shape[-2], lowres.shape[-1]))
        gap = (small - lowres).abs().mean().item()
    return dict(
        min=images.min().item(),
        max=images.max().item(),
        mean=images.mean((0, 2, 3)).tolist(),
        std=images.std().item(),
        saturated=(images.abs() > 0.99).float().mean().item(),
        lowres_gap=gap,
    )


def draw_samples(
    stage: Stage,  # with averaged weights
    dataset,  # pictures held back: `len`, `caption(i, epoch)`, `images(indices, size, crop)`
    text,  # text[captions] -> TextEmbedding
    n: int = DRAWN,  # pictures
) -> tuple[Tensor, Tensor | None]:  # drawn, (b 3 h w) in [-1, 1]; what they enlarge; None: the base
    "Draw, or enlarge, the first pictures of validation; same captions and seeds each time."
    c, total = stage.config, len(dataset)
    rows = [permute(HELD_BACK * total + k, total, 0) for k in range(n)]
    lowres = resize(dataset.images(rows, c.size), (c.lowres_size,) * 2) if c.lowres_size else None
    captions = [dataset.caption(i, HELD_BACK) for i in rows]
    at_once = n if lowres is None else 1
    return sample_in_parts(stage, text[captions], lowres, list(range(n)), at_once), lowres


class Watcher:
    "Looks at averaged weights now and then; a look whose row is there already is left out."

    def __init__(
        self,
        valid: Any,  # pictures held back, in random access; None: some of the samples'
        samples: Samples | Arrivals,  # what the run learns from
        validate: Callable,  # (stage, dataset, text) -> a row of `validation.jsonl`
        execution: Execution,  # how often
    ):
        self.every = dict(validation=execution.validate_every, samples=execution.sample_every)
        self.on, self.dataset = (
            ("valid", valid) if valid is not None else ("train", samples.dataset)
        )
        self.text, self.config, self.validate = samples.text, samples.config, validate
        if any(self.every.values()) and not hasattr(self.dataset, "images"):
            raise ValueError(
                "Trainer: valid, got None, expected pictures held back: a stream cannot be looked"
                " at twice; or give validate_every=0 and sample_every=0"
            )

    def __call__(
        self,
        step: int,  # steps done
        stage: Stage,  # with averaged weights
        log: Log,  # takes the rows
    ):
        "Take the looks that are due: one process does it, of a sharded network all."
        now, steps = dict(step=step, samples=step * self.config.batch), self.config.steps
        due = [k for k, every in self.every.items() if is_due(step, every, steps)]
        told = log.process.any if is_spread(stage.network) else bool
        due = [k for k in due if told(log.is_main and step not in log.steps[k])]
        if "validation" in due:
            row = self.validate(stage, self.dataset, self.text)
            log.note("validation", now | dict(on=self.on) | row)
        if "samples" in due:
            images, lowres = draw_samples(stage, self.dataset, self.text)
            grid = image_grid(images if lowres is None else [lowres, images])
            log.note("samples", now | describe_samples(images, lowres), grid)


def is_due(
    step: int,  # steps done
    every: int | None,  # steps; 0: never
    steps: int,  # of the run
) -> bool:  # now
    "Every so many steps, and at the end."
    return bool(every and step and (step % every == 0 or step == steps))
