"""Every guard of `engine.guards` with a healthy case and a planted fault; `python tests/guards.py` prints them.

`python tests/guards.py data/runs/doctor.json` also writes it as a run card.
"""

import json
import math
import sys
from pathlib import Path

import torch

from imagen_nb.data import ShapesWorld
from imagen_nb.engine import guards as health
from imagen_nb.pictures.pixels import resize
from imagen_nb.runs.drawings import picture_stats
from imagen_nb.text import TextEncoder

WORLD = ShapesWorld("train", level="quick", size=32)
PICTURES = WORLD.images(list(range(8)))
TRUTH = picture_stats(PICTURES)
CURVE = [0.02 + 0.7 * math.exp(-k / 4) for k in range(70)]  # falls, then levels out
ROWS = [dict(step=20 * (k + 1), loss=v) for k, v in enumerate(CURVE)]
BAND = dict(step=[r["step"] for r in ROWS], mean=health.smooth(CURVE), spread=0.035)
ENCODER = TextEncoder.toy().identity


def stats(images, lowres=None):
    return picture_stats(images, lowres)


def gain(mean):
    return dict(mean=mean, low=mean - 0.01, high=mean + 0.01)


def validation(loss, trivial=0.5):
    return dict(loss=[loss] * 8, trivial=[trivial] * 8)


def of_colour(images):
    return images.mean((0, 2, 3)).tolist()


SMALL, OTHER = (
    resize(PICTURES, (8, 8)),
    resize(PICTURES.roll(1, 0), (8, 8)),
)  # low-res pictures: their own, and other ones
OUT = {"out.2.weight": torch.randn(4, 4, 3, 3)}

# guard -> (healthy, planted, what the planted fault must raise); each calls the guard as the doctor does
CASES = {
    "picture size": (
        lambda: health.picture_size(PICTURES, 32),
        lambda: health.picture_size(PICTURES, 64),
        "error",
    ),
    "pixel range: [0, 1]": (
        lambda: health.pixel_range(PICTURES),
        lambda: health.pixel_range((PICTURES + 1) / 2),
        "error",
    ),
    "pixel range: [0, 255]": (
        lambda: health.pixel_range(PICTURES),
        lambda: health.pixel_range((PICTURES + 1) * 127.5),
        "error",
    ),
    "pixel range: too bright": (
        lambda: health.pixel_range(PICTURES),
        lambda: health.pixel_range(PICTURES.clamp(min=0) * 3 - 1),
        "error",
    ),
    "pixel range: too dark": (
        lambda: health.pixel_range(PICTURES),
        lambda: health.pixel_range(PICTURES.clamp(max=0) * 3 + 1),
        "error",
    ),
    "pixel range: NaN": (
        lambda: health.pixel_range(PICTURES),
        lambda: health.pixel_range(PICTURES.log()),
        "error",
    ),
    "caption column empty": (
        lambda: health.captions_differ([WORLD.caption(i) for i in range(50)]),
        lambda: health.captions_differ([""] * 50),
        "warning",
    ),
    "captions all alike": (
        lambda: health.captions_differ([WORLD.caption(i) for i in range(50)]),
        lambda: health.captions_differ(["a picture"] * 50),
        "warning",
    ),
    "cache of another encoder": (
        lambda: health.same_encoder(ENCODER, ENCODER),
        lambda: health.same_encoder(ENCODER | dict(revision="other"), ENCODER),
        "error",
    ),
    "cache cut at another length": (
        lambda: health.same_encoder(ENCODER, ENCODER),
        lambda: health.same_encoder(ENCODER | dict(max_length=16), ENCODER),
        "error",
    ),
    "too few samples": (
        lambda: health.enough_samples(67_200, 100_000),
        lambda: health.enough_samples(3_360, 100_000),
        "warning",
    ),
    "few pictures seen often": (
        lambda: health.enough_samples(67_200, 100_000),
        lambda: health.enough_samples(67_200, 100),
        "note",
    ),
    "aug level out of range": (
        lambda: health.aug_level(0.05, 0.15),
        lambda: health.aug_level(0.2, 0.15),
        "error",
    ),
    "guidance without dropped captions": (
        lambda: health.guidance_is_trained(2.0, 0.1),
        lambda: health.guidance_is_trained(2.0, 0.0),
        "error",
    ),
    "half of the captions dropped": (
        lambda: health.guidance_is_trained(2.0, 0.1),
        lambda: health.guidance_is_trained(2.0, 0.5),
        "warning",
    ),
    "average not warmed up": (
        lambda: health.average_is_warm(1400, 1.0, 13.0),
        lambda: health.average_is_warm(1400, 0.9999, 0.0),
        "error",
    ),
    "steps skipped": (
        lambda: health.few_skipped(0, 1400),
        lambda: health.few_skipped(100, 1400),
        "error",
    ),
    "still warming up": (
        lambda: health.warm_up_is_over(1400, 60, 1400),
        lambda: health.warm_up_is_over(40, 60, 1400),
        "note",
    ),
    "warm-up longer than the run": (
        lambda: health.warm_up_is_over(1400, 60, 1400),
        lambda: health.warm_up_is_over(40, 10_000, 1400),
        "warning",
    ),
    "every step clipped": (
        lambda: health.rarely_clipped([0.07, 0.1, 0.08, 1.2, 0.06], 1.0),
        lambda: health.rarely_clipped([1.2, 3.0, 0.9, 2.0, 1.0], 1.0),
        "warning",
    ),
    "no gradient": (
        lambda: health.rarely_clipped([0.07, 0.1, 0.08, 0.1, 0.06], 1.0),
        lambda: health.rarely_clipped([0.0] * 5, 1.0),
        "error",
    ),
    "waiting for data": (
        lambda: health.data_is_fast([0.01, 0.02]),
        lambda: health.data_is_fast([0.3, 0.5]),
        "warning",
    ),
    "loss rising for long": (
        lambda: health.loss_falls(CURVE),
        lambda: health.loss_falls(CURVE + [0.02 + 0.001 * k for k in range(40)]),
        "warning",
    ),
    "loss not finite": (
        lambda: health.loss_falls(CURVE),
        lambda: health.loss_falls(CURVE + [math.nan]),
        "error",
    ),
    "above the reference band": (
        lambda: health.loss_is_normal(ROWS, BAND),
        lambda: health.loss_is_normal([r | dict(loss=1.4 * r["loss"]) for r in ROWS], BAND),
        "warning",
    ),
    "no better than trivial": (
        lambda: health.beats_trivial(validation(0.07)),
        lambda: health.beats_trivial(validation(0.51)),
        "error",
    ),
    "text does not help the base": (
        lambda: health.text_helps(gain(-0.05), True),
        lambda: health.text_helps(gain(-0.005), True),
        "warning",
    ),
    "overfitting": (
        lambda: health.no_overfitting([0.1, 0.06, 0.05, 0.051, 0.05]),
        lambda: health.no_overfitting([0.1, 0.06, 0.05, 0.06, 0.07]),
        "warning",
    ),
    "never trained: output layer zero": (
        lambda: health.has_learned(OUT),
        lambda: health.has_learned({k: 0 * v for k, v in OUT.items()}),
        "error",
    ),
    "weights not finite": (
        lambda: health.has_learned(OUT),
        lambda: health.has_learned({k: v / 0 for k, v in OUT.items()}),
        "error",
    ),
    "untrained stage sampled": (
        lambda: health.none_untrained({32, 128}, {32, 128, 512}),
        lambda: health.none_untrained({32, 128, 512}, {32, 128}),
        "error",
    ),
    "samples are noise": (
        lambda: health.not_noise(TRUTH["neighbours"]),
        lambda: health.not_noise(stats(torch.randn(8, 3, 32, 32).clamp(-1, 1))["neighbours"]),
        "error",
    ),
    "samples are blank": (
        lambda: health.not_constant(TRUTH["contrast"]),
        lambda: health.not_constant(stats(torch.full((8, 3, 32, 32), 0.1))["contrast"]),
        "error",
    ),
    "samples saturated": (
        lambda: health.not_saturated(TRUTH["saturated"], TRUTH["saturated"]),
        lambda: health.not_saturated(
            stats((9 * PICTURES).clamp(-1, 1))["saturated"], TRUTH["saturated"]
        ),
        "warning",
    ),
    "colour drift between stages": (
        lambda: health.same_colour(of_colour(resize(PICTURES, (64, 64))), of_colour(PICTURES)),
        lambda: health.same_colour(
            of_colour(PICTURES + torch.tensor([0.1, 0, 0])[:, None, None]), of_colour(PICTURES)
        ),
        "warning",
    ),
    "output departs from its low-res input": (
        lambda: health.follows_lowres(stats(PICTURES, SMALL)["lowres_gap"]),
        lambda: health.follows_lowres(stats(PICTURES, OTHER)["lowres_gap"]),
        "warning",
    ),
}


def outcomes() -> list[dict]:
    "A row for each planted fault."
    rows = []
    for name, (healthy, planted, level) in CASES.items():
        well, ill = healthy(), planted()
        rows.append(
            dict(
                fault=name,
                guard=ill.what,
                expected=level,
                planted=ill.level,
                healthy=well.level,
                seen=ill.why,
                beside=well.why,
            )
        )
    return rows


def main():
    torch.manual_seed(0)
    rows = outcomes()
    print(f"{'planted fault':<40} {'guard':<18} {'planted':<8} healthy")
    for r in rows:
        print(f"{r['fault']:<40} {r['guard']:<18} {r['planted']:<8} {r['healthy']}")
    caught, quiet = (
        sum(r["planted"] == r["expected"] for r in rows),
        sum(r["healthy"] == "ok" for r in rows),
    )
    print(
        f"triggered as planned {caught} of {len(rows)}, quiet on the healthy case {quiet} of {len(rows)}"
    )
    for path in map(Path, sys.argv[1:]):
        path.write_text(
            json.dumps(
                dict(
                    what="guards of imagen-nb doctor: planted faults and healthy cases",
                    command="python tests/guards.py",
                    triggered=caught,
                    quiet=quiet,
                    of=len(rows),
                    rows=rows,
                ),
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
