"""Guards of a training run: what may not be trained on, and what `imagen-nb doctor` asks."""

import math
from typing import NamedTuple

import torch

from imagen_nb.plots import smooth
from imagen_nb.store.config import counted
from imagen_nb.store.identity import SAID

__all__ = ["check_pictures", "check_dataset", "LEVELS", "Finding", "BAND"]


def check_pictures(
    images,  # (b 3 h w)
    size: int | tuple,  # expected side, or (height, width)
):
    "Refuse pictures of another shape, not finite, or outside [-1, 1]: the usual causes of noise."
    for found in (picture_size(images, size), pixel_range(images)):
        if found.level == "error":
            raise ValueError(f"check_pictures: {found.why}")


def check_dataset(
    dataset,  # `len` and `images(indices, size)`; a stream makes its pictures right itself
    size: int,  # side of the pictures
):
    "Refuse a dataset whose first pictures are wrong."
    if hasattr(dataset, "images"):
        check_pictures(dataset.images(list(range(min(16, len(dataset)))), size), size)


# ---------------------------------------------------------------- what a guard says

LEVELS = ("ok", "unknown", "note", "warning", "error")


class Finding(NamedTuple):
    "What a guard saw."

    level: str  # of `LEVELS`
    what: str  # the guard
    why: str  # what it saw
    advice: str = ""  # what to do
    where: str = ""  # the stage


def say(what: str, why: str, *cases) -> Finding:
    "The first case (level, does it hold, advice) that holds; if none does, all is well."
    level, _, advice = next((c for c in cases if c[1]), ("ok", True, ""))
    return Finding(level, what, why, advice)


def unknown(what: str, why: str) -> Finding:
    "A guard that had nothing to look at."
    return Finding("unknown", what, why)


def soften(found: Finding, step: int, steps: int, share: float) -> Finding:
    "Early in a run, up to this share of its steps, pictures are noise and captions do not help yet: that is a note."
    if found.level in ("ok", "unknown", "note") or step >= share * steps:
        return found
    return found._replace(
        level="note", advice=f"early: step {step:,} of {steps:,}; look again later"
    )


# ---------------------------------------------------------------- guards: data and text


def picture_size(images, size) -> Finding:
    "Pictures have the side the stage was built for."
    h, w = (size, size) if isinstance(size, int) else size
    return say(
        "picture size",
        f"shape, got {tuple(images.shape)}, expected (b, 3, {h}, {w})",
        (
            "error",
            images.ndim != 4 or images.shape[1:] != (3, h, w),
            "resize with imagen_nb.data.resize",
        ),
    )


def pixel_range(images) -> Finding:
    "Pixels lie in [-1, 1], both halves of it."
    low, high = images.amin().item(), images.amax().item()
    span = f"values, got [{low:.3g}, {high:.3g}]"
    if not (math.isfinite(low) and math.isfinite(high)):
        return Finding(
            "error",
            "pixel range",
            "values, got NaN or infinity, expected numbers in [-1, 1]",
            "mend or leave out these pictures",
        )
    if low < -1.01 or high > 1.01:
        return Finding(
            "error", "pixel range", f"{span}, expected within [-1, 1]", "uint8/127.5 - 1"
        )
    if low >= 0 and len(images) >= 4:
        return Finding(
            "error",
            "pixel range",
            f"{span}, nothing darker than mid-gray in {counted(len(images), 'picture')},"
            " expected [-1, 1], not [0, 1]",
            "2*images - 1",
        )
    return say("pixel range", span)


def captions_differ(captions: list[str]) -> Finding:
    "There is text to learn from."
    n, empty, different = len(captions), sum(not c.strip() for c in captions), len(set(captions))
    return say(
        "captions",
        f"{different:,} different among {n:,}, {empty:,} empty",
        (
            "warning",
            empty > n / 2,
            "most captions are empty: --caption-column names another column; imagen-nb data shows what was found",
        ),
        (
            "warning",
            different == 1 and n > 1,
            "all captions are alike: nothing to learn from text; --caption-column names another column",
        ),
        ("note", empty > 0, "pictures without captions are learned as unconditional ones"),
    )


def same_encoder(cache: dict, used: dict) -> Finding:
    "The cached embeddings come from the encoder that the stage was trained with."
    wrong = [
        f"{k} {cache.get(k)}, expected {v}"
        for k, v in used.items()
        if k not in SAID and cache.get(k) != v
    ]
    return say(
        "text cache",
        "; ".join(wrong) or f"of {cache.get('encoder')}, as in training",
        (
            "error",
            wrong,
            "the cache is another encoder's: build it again (imagen-nb embed), or name the right encoder",
        ),
    )


def enough_samples(samples: int, pictures: int | None = None, is_fresh: bool = True) -> Finding:
    "A base from scratch has seen enough to draw; and not the same few pictures too often."
    epochs = samples / pictures if pictures else 0
    # reference bases, test captions right: 15-17 % after 3,360 and 10,080 samples,
    # 31-40 % after 20,160, 90-98 % after 40,320
    return say(
        "amount of training",
        f"{samples:,} samples"
        + (f", {epochs:,.1f} epochs of {counted(pictures, 'picture')}" if pictures else ""),
        (
            "warning",
            is_fresh and samples < 20_000,
            "too few for a base from scratch: more steps or a larger batch",
        ),
        (
            "note",
            epochs > 500,
            "few pictures, seen often: watch the validation loss (--held-out .05)",
        ),
    )


# ---------------------------------------------------------------- guards: configuration


def aug_level(aug_t: float, aug_max: float) -> Finding:
    "Sampling asks for a noise on the low-res picture that training has shown."
    return say(
        "aug level",
        f"sampling at {aug_t:g}, trained from 0 to {aug_max:g}",
        (
            "error",
            not 0 <= aug_t <= aug_max,
            f"aug_t at most {aug_max:g}, or train with a larger aug_max",
        ),
    )


def guidance_is_trained(w: float, caption_drop: float) -> Finding:
    "Guidance needs captions dropped in training, but not too many (paper: 10 %)."
    return say(
        "guidance",
        f"w = {w:g}, {100 * caption_drop:.3g} % of captions dropped in training",
        (
            "error",
            caption_drop == 0 and w != 1,
            "no caption was ever dropped, so there is nothing to guide away from: w = 1",
        ),
        ("warning", caption_drop > 0.3, "so much dropping weakens the text; the paper drops 10 %"),
    )


def average_is_warm(step: int, ema: float, ema_power: float, first: float = 0.1) -> Finding:
    "The averaged weights have forgotten the first tenth of the run."
    k = torch.arange(int(first * step) + 1, step + 1, dtype=torch.float64)
    held = (
        torch.minimum((1 - 1 / k) ** ema_power, torch.tensor(float(ema), dtype=torch.float64))
        .log()
        .sum()
        .exp()
        .item()
    )
    return say(
        "averaged weights",
        f"{100 * held:.2g} % of them are from the first tenth of {counted(step, 'step')}",  # reference: 1e-11 %
        (
            "error",
            held > 0.1,
            "the average still holds the beginning: lower ema, or set ema_power = 13",
        ),
        (
            "warning",
            held > 0.01,
            "the average still holds some of the beginning: train on, or lower ema",
        ),
    )


# ---------------------------------------------------------------- guards: the log


def few_skipped(skipped: int, step: int) -> Finding:
    "Steps whose gradient was not finite."
    return say(
        "skipped steps",
        f"{skipped:,} of {step:,}",  # reference and shipped cascade: 0
        (
            "error",
            skipped > 0.05 * step,
            "lower the learning rate, or look at the data of these steps",
        ),
        (
            "warning",
            skipped > 0.001 * step,
            "a few are skipped without harm; so many mean a learning rate near its limit",
        ),
        ("note", skipped, "these steps changed nothing"),
    )


def warm_up_is_over(step: int, warmup: int, steps: int) -> Finding:
    "The learning rate has reached its peak."
    return say(
        "learning rate",
        f"step {step:,} of {steps:,}, warm-up of {warmup:,}",
        (
            "warning",
            warmup >= steps,
            f"it never reaches its peak: a warm-up well under {counted(steps, 'step')}",
        ),
        ("note", step < warmup, "still warming up: losses and pictures say little yet"),
    )


def rarely_clipped(norms: list[float], clip: float) -> Finding:
    "Most gradients are below the clip."
    if len(norms) < 5:
        return unknown("gradient norm", f"{counted(len(norms), 'line')} after warm-up, expected 5")
    clipped = sum(n >= clip for n in norms) / len(norms)
    return say(
        "gradient norm",
        f"median {sorted(norms)[len(norms) // 2]:.2g}, at the clip of {clip:g}"
        f" in {100 * clipped:.0f} % of lines after warm-up",
        ("error", max(norms) == 0, "no gradient at all: is the loss connected to the network?"),
        ("warning", clipped > 0.5, "every step is clipped: lower the learning rate, or raise clip"),
    )  # reference: 0 %


def data_is_fast(waiting: list[float]) -> Finding:
    "Steps do not wait for pictures."
    share = sum(waiting) / len(waiting)
    return say(
        "data wait",
        f"{100 * share:.1f} % of the time",  # measured on two busy CPU cores: 1 % at 32 px, 5 % at 512 px
        (
            "warning",
            share > 0.2,
            "pictures come too slowly: smaller files, a local disk, or more CPU cores for each process",
        ),
    )


def loss_falls(losses: list[float]) -> Finding:
    "The last tenth of the log is not well above its best tenth."
    if not all(map(math.isfinite, losses)):
        return Finding(
            "error",
            "loss",
            "not a finite number",
            "lower the learning rate; go back to an earlier checkpoint",
        )
    width = max(5, len(losses) // 10)
    if len(losses) < 2 * width:
        return unknown(
            "loss",
            f"{counted(len(losses), 'line')} of the log, expected {2 * width} to see a trend",
        )
    means = smooth(losses, width)[width - 1 :]
    best, now = min(means), means[-1]
    # 30 runs that went well: at most 1.10; the reference runs end at 1.05 or less
    return say(
        "loss",
        f"{now:.4f} lately, {best:.4f} at best",
        (
            "warning",
            now > 1.3 * best,
            "it has risen for long: lower the learning rate, or go back to an earlier checkpoint",
        ),
    )


BAND = 5.0  # spreads s of three runs that hold 95 % of further ones: 4.30 (t, 2 degrees of freedom) * sqrt(1 + 1/3)


def loss_is_normal(rows: list[dict], band: dict) -> Finding:
    "The smoothed loss lies in the band of the reference runs at the same step."
    mean, spread = dict(zip(band["step"], band["mean"])), math.exp(BAND * band["spread"])
    pairs = [
        (r["step"], v, mean[r["step"]])
        for r, v in zip(rows, smooth([r["loss"] for r in rows]))
        if r["step"] in mean
    ]
    if not pairs:
        return unknown("reference", "no line of the log is at a step of the reference runs")
    step, now, normal = pairs[-1]
    outside = sum(not m / spread <= v <= m * spread for _, v, m in pairs)
    return say(
        "reference",
        f"loss at step {step:,} is {now:.4f}, reference {normal / spread:.4f} to {normal * spread:.4f};"
        f" outside in {outside} of {counted(len(pairs), 'line')}",
        (
            "warning",
            now > normal * spread,
            "not normal: other data, another version of a library, or a fault; compare with notebook 12",
        ),
        ("note", now < normal / spread, "better than the reference runs"),
    )


# ---------------------------------------------------------------- guards: validation


def beats_trivial(row: dict) -> Finding:
    "The loss is below that of the best linear guess from each pixel alone."
    loss, trivial = (sum(row[k]) / len(row[k]) for k in ("loss", "trivial"))
    return say(
        "trivial predictor",
        f"validation loss {loss:.4f}, trivial predictor {trivial:.4f}",
        # reference, after 5, 15, 30, 60, 100 % of the steps: base .14 .07 .04 .03 .02 of it;
        # to 128 px 1.18 .90 .58 .32 .26; to 512 px, where the input says nearly all, 1.18 1.14 1.04 .84 .72
        (
            "error",
            not loss < trivial,
            "the network has learned nothing that pixels alone do not say: pixel range, learning rate, data?",
        ),
    )


def text_helps(gain: dict, is_base: bool) -> Finding:
    "True captions give a lower validation loss than other pictures' captions."
    return say(
        "text",
        f"true minus shuffled captions: {gain['mean']:+.2g} ({gain['low']:+.2g} to {gain['high']:+.2g})",
        (
            "warning" if is_base else "note",
            not gain["high"] < 0,
            "captions do not help: are they right, and this cache's?"
            if is_base
            else "captions do not help this stage; the low-res picture says it all",
        ),
    )


def no_overfitting(losses: list[float]) -> Finding:
    "Validation loss has not turned upwards."
    if len(losses) < 4:
        return unknown(
            "overfitting", f"{counted(len(losses), 'validation')}, expected 4 to see a trend"
        )
    best, now = min(losses), sum(losses[-2:]) / 2
    return say(
        "overfitting",
        f"validation loss {now:.4f} lately, {best:.4f} at best",
        (
            "warning",
            now > 1.15 * best,
            "it rises while training goes on: more pictures, fewer steps, or the checkpoint of its best",
        ),
    )


# ---------------------------------------------------------------- guards: weights and samples


def has_learned(average: dict) -> Finding:
    "The output layer, which starts at zero, is zero no more, and every weight is a number."
    out = [v for k, v in average.items() if k.startswith("out.") and v.ndim == 4]
    largest = f"{max(v.abs().max().item() for v in out):.2g}" if out else "not known"
    return say(
        "weights",
        f"largest weight of the output layer {largest}",
        (
            "error",
            not all(v.isfinite().all() for v in average.values()),
            "weights are NaN or infinite: go back to an earlier checkpoint",
        ),
        (
            "error",
            out and not any(v.any() for v in out),  # a network of your own may have no `out`
            "never trained: it draws nothing but gray",
        ),
    )


def none_untrained(drawn: list[int], trained: list[int]) -> Finding:
    "Pictures come from trained stages alone."
    wrong = sorted(set(drawn) - set(trained))
    return say(
        "untrained stages",
        f"pictures of {', '.join(f'{o} px' for o in sorted(drawn)) or 'no stage'},"
        f" trained: {', '.join(f'{o} px' for o in sorted(trained)) or 'none'}",
        ("error", wrong, f"the {wrong[:1]} px stage was never trained: its pictures are noise"),
    )


def not_noise(neighbours: float) -> Finding:
    "Neighbouring pixels are alike."
    return say(
        "noise",
        f"neighbouring pixels correlate by {neighbours:.2f}",
        # reference: at least .96 at every moment; real drawn scenes: at least .89; noise: 0
        (
            "error",
            neighbours < 0.5,
            "the samples are noise: train longer, and look at the warnings above",
        ),
    )


def not_constant(std: float) -> Finding:
    "Pictures show something."
    return say(
        "contrast",
        f"standard deviation {std:.2f}",  # reference: at least .26; the cascade that ships: .24
        (
            "error",
            std < 0.03,
            "the samples are blank: is the network trained, are the pixels in [-1, 1]?",
        ),
    )


def not_saturated(saturated: float, truth: float | None = None) -> Finding:
    "Not many more black and white pixels than in real pictures."
    limit = (
        0.95 if truth is None else min(0.95, truth + 0.15)
    )  # reference: .10 to .22 below the truth of the same captions
    beside = "" if truth is None else f", {100 * truth:.0f} % in real pictures"
    return say(
        "saturation",
        f"{100 * saturated:.0f} % of values at the ends{beside}",
        ("warning", saturated > limit, "lower w, or threshold='dynamic'"),
    )


def same_colour(mean: list[float], before: list[float]) -> Finding:
    "A stage keeps the mean colour of the pictures it enlarges."
    drift = max(abs(a - b) for a, b in zip(mean, before))
    return say(
        "colour",
        f"mean colour moves by {drift:.3f}",  # reference: at most .007 from true pictures; whole cascades: at most .006
        (
            "warning",
            drift > 0.05,
            "a colour drift: train longer, target v or x0, a smaller w at this stage",
        ),
    )


def follows_lowres(gap: float) -> Finding:
    "An enlarged picture, made small again, is the small picture."
    return say(
        "low-res input",
        f"differs from the enlarged picture by {gap:.3f}",  # reference: at most .035 at any moment, .013 at the end
        (
            "warning",
            gap > 0.1,
            "the output departs from its input: a smaller aug_t, w = 1, or longer training",
        ),
    )
