"""What chapter 13 shows of the emoji cascade: scores over w, and what choosing the best of several buys.

    python tools/make/judge.py EMOJI_SET --out RUN --seed 2 --steps 280      the second judge, from scratch
    python tools/measure/evaluation.py EMOJI_SET --other RUN/judge           data/runs/evaluation.json

EMOJI_SET is what `imagen-nb emoji` wrote. Captions are of training pictures, drawn by lot. The shipped judge chooses
and scores; the second judge, of another seed, only scores. No picture was chosen by hand. Pictures are kept in --work,
so that the command can be stopped and goes on.
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from cards import RUNS, read_card, write_card
from judge_accuracy import accuracy, read_rows, share
from PIL import Image
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.evaluation import (
    bootstrap_mean,
    draw_levels,
    frechet_distance,
    jackknife,
    keep_best,
    kernel_distance,
    precision_recall,
)
from imagen_nb.lab.judge import Judge
from imagen_nb.pictures.pixels import to_square
from imagen_nb.plots import image_grid
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.identity import digest_tensors

CONFIG = dict(
    curve=dict(captions=128, real=1000, w=[1.0, 1.35, 2.0, 3.0, 4.0, 6.0, 10.0]),
    best=dict(captions=64, seeds=8, w=2.0),
    levels=dict(captions=64, aug_t=[0.0, 0.02, 0.05, 0.08, 0.11, 0.14, 0.17, 0.2], fixed=0.05),
    grid=dict(captions=6),
)


# ---------------------------------------------------------------- pictures


def kept(path: Path, make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    "Pictures and the CPU seconds that they took; what is there is not drawn again."
    if not path.exists():
        since = time.process_time()
        pixels = ((make() + 1) * 127.5).round().clamp(0, 255).byte()
        seconds = time.process_time() - since
        save_directory(path, {"pixels": {"images": pixels}}, dict(seconds=seconds))
        print(f"{path.name}: {seconds:.0f} s", flush=True)
    tensors, meta = load_directory(path)
    return tensors["pixels"]["images"].float() / 127.5 - 1, meta["seconds"]


def real_pictures(data: Path, rows: list[dict], size: int) -> Tensor:
    "Renders of the emoji set, (n 3 size size)."

    def picture(row):
        return Image.open(data / row["split"] / row["file_name"]).convert("RGB")

    return torch.stack([to_square(picture(row), size) for row in rows])


class Setting:
    "Model, judges, captions and reals."

    def __init__(self, args):
        self.work, self.imagen = args.work, Imagen.from_pretrained(args.model)
        self.judges = dict(shipped=Judge.shipped(), other=Judge.from_pretrained(args.other))
        rows = [row for row in read_rows(args.data) if row["split"] == "train"]
        self.asked = random.Random("evaluation captions").sample(rows, len(rows))
        self.captions = [row["text"][0] for row in self.asked]
        others = self.asked[-CONFIG["curve"]["real"] :]  # renders whose captions are not drawn
        self.real, _ = kept(args.work / "real", lambda: real_pictures(args.data, others, 32))

    def base(self, n: int, seed: int, w: float) -> tuple[Tensor, float]:
        "Pictures of the base for the first n captions; caption i has seed i + 1000 * seed."
        seeds, name = [i + 1000 * seed for i in range(n)], f"base-{n}-seed{seed}-w{w:g}"
        return kept(
            self.work / name,
            lambda: self.imagen.sample(self.captions[:n], seeds=seeds, stages=1, w=w),
        )

    def enlarged(self, lowres: Tensor, seed: int, levels: list[float]) -> tuple[Tensor, float]:
        "Candidates of the first enlarger from these pictures, one for each level, (k b 3 h w)."
        n, name = len(lowres), f"enlarged-{len(lowres)}-seed{seed}-{len(levels)}"
        seeds = [i + 1000 * seed for i in range(n)]
        return kept(
            self.work / name,
            lambda: draw_levels(
                self.imagen, self.captions[:n], seeds, levels, lowres=lowres, stages=2
            ),
        )

    def match(self, who: str, images: Tensor) -> Tensor:
        "100 times the cosine of each picture (k b 3 h w) and its caption, (k b)."
        k, b = images.shape[:2]
        scores = self.judges[who].score(images.flatten(0, 1), self.captions[:b] * k)
        return 100 * scores.reshape(k, b)


# ---------------------------------------------------------------- over w


def distance(measure: Callable, real: Tensor, drawn: Tensor, kept: Tensor) -> float:
    "Between the reals and some of the drawn."
    return measure(real, drawn[kept])


@torch.no_grad()
def curve(on: Setting) -> list[dict]:
    "Distance to the real renders and match with the caption, at each guidance weight."
    rows, judge, n = [], on.judges["shipped"], CONFIG["curve"]["captions"]
    real = torch.cat([judge.image_features(part) for part in on.real.split(256)])
    for w in CONFIG["curve"]["w"]:
        images, _ = on.base(n, 0, w)
        drawn = judge.image_features(images)
        precision, recall = precision_recall(real, drawn)
        rows.append(
            dict(
                w=w,
                frechet=jackknife(partial(distance, frechet_distance, real, drawn), n),
                kernel=kernel_distance(real, drawn),
                precision=precision,
                recall=recall,
                match={who: bootstrap_mean(on.match(who, images[None])[0]) for who in on.judges},
                object={who: right(on, who, images) for who in on.judges},
            )
        )
        print(f"w {w}: {rows[-1]['frechet']['mean']:.2f}", flush=True)
    return rows


def right(on: Setting, who: str, images: Tensor) -> dict | None:
    "Share of pictures in which a judge reads the thing that was asked for, among all things."
    found = on.judges[who].read(images)
    return share([r.object == row["object"] for r, row in zip(found, on.asked)])


# ---------------------------------------------------------------- the best of several


def procedure(on: Setting, images: Tensor, reference: Tensor, seconds: float) -> dict:
    "Scores of one picture for each caption (b 3 h w), gains over a reference, and CPU seconds a caption."
    out: dict = dict(seconds=round(seconds / len(images), 3))
    for who in on.judges:
        score, before = on.match(who, images[None])[0], on.match(who, reference[None])[0]
        out[who] = dict(
            match=bootstrap_mean(score),
            gain=bootstrap_mean(score - before),
            object=right(on, who, images),
        )
    return out


def best_of_n(on: Setting) -> dict:
    "The base draws each caption with several seeds; one judge chooses, both score."
    n, k, w = (CONFIG["best"][name] for name in ("captions", "seeds", "w"))
    drawn = [on.base(n, seed, w) for seed in range(k)]
    images, seconds = torch.stack([x for x, _ in drawn]), [s for _, s in drawn]
    out: dict = dict(one=procedure(on, images[0], images[0], seconds[0]))
    scores = {who: on.match(who, images) for who in on.judges}
    for who in on.judges:
        best = keep_best(images, scores[who])
        out[f"best by {who}"] = procedure(on, best, images[0], sum(seconds))
    gains = [
        {
            who: (scores[who].gather(0, scores["shipped"][:m].argmax(0)[None])[0] - scores[who][0])
            for who in on.judges
        }
        for m in range(1, k + 1)
    ]
    out["by candidates"] = [{who: bootstrap_mean(g[who]) for who in g} for g in gains]
    centered = {who: s - s.mean(0) for who, s in scores.items()}
    a, b = (centered[who].flatten() for who in on.judges)
    out["agreement within a caption"] = round(torch.corrcoef(torch.stack([a, b]))[0, 1].item(), 3)
    out["spread within a caption"] = {who: c.std().item() for who, c in centered.items()}
    return out


def best_level(on: Setting) -> dict:
    "The seed's own procedure: a candidate for each augmentation level of the enlarger, the best match is kept."
    n, levels, fixed = (CONFIG["levels"][name] for name in ("captions", "aug_t", "fixed"))
    w, n_base = CONFIG["best"]["w"], CONFIG["best"]["captions"]
    bases = [on.base(n_base, seed, w) for seed in range(CONFIG["best"]["seeds"])]
    base_seconds = bases[0][1] * n / n_base
    candidates, seconds = on.enlarged(bases[0][0][:n], 0, levels)
    each = seconds / len(levels)  # of one enlargement
    plain = candidates[levels.index(fixed)]
    best = keep_best(candidates, on.match("shipped", candidates))
    out = {"fixed level": procedure(on, plain, plain, base_seconds + each)}
    out["best of levels"] = procedure(on, best, plain, base_seconds + seconds)
    m = max(2, round((base_seconds + seconds) / (base_seconds + each)))
    other = [on.enlarged(b[0][:n], seed, [fixed])[0][0] for seed, b in enumerate(bases[:m])]
    several = torch.stack([plain, *other[1:]])
    chosen = keep_best(several, on.match("shipped", several))
    out[f"best of {m} seeds"] = procedure(on, chosen, plain, m * (base_seconds + each))
    picks = on.match("shipped", candidates).argmax(0).bincount(minlength=len(levels)).tolist()
    spread = {
        who: (s := on.match(who, candidates)).sub(s.mean(0)).std().item() for who in on.judges
    }
    return dict(procedures=out, picks=dict(zip(map(str, levels), picks)), spread=spread)


def grid(on: Setting, path: Path):
    "A row for each caption: eight candidates of the base, the worst match first, the best last."
    n, k = CONFIG["best"]["captions"], CONFIG["best"]["seeds"]
    images = torch.stack([on.base(n, seed, CONFIG["best"]["w"])[0] for seed in range(k)])
    shown = images[:, : CONFIG["grid"]["captions"]]
    order = on.match("shipped", shown).argsort(0)  # (k b)
    tiles = [shown[i, b] for b, column in enumerate(order.T.tolist()) for i in column]
    tiles = [t.repeat_interleave(2, 1).repeat_interleave(2, 2) for t in tiles]
    image_grid(tiles, k).save(path, quality=88)


# ---------------------------------------------------------------- all of it


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `imagen-nb emoji` wrote")
    p.add_argument("--other", required=True, help="folder of the second judge")
    p.add_argument("--model", default="emoji", help="folder of a model of the emoji world")
    p.add_argument("--work", type=Path, default=Path("evaluation-work"), help="where pictures are")
    p.add_argument("--out", type=Path, default=RUNS / "evaluation.json")
    args = p.parse_args()
    on = Setting(args)
    every = [row for row in read_rows(args.data) if row["split"] == "test"]
    held_out = real_pictures(args.data, every, 32)
    weights = [
        (f"{k} {name}", v)
        for k, o in enumerate(on.imagen.stages[:2])
        for name, v in sorted(o.network.state_dict().items())
    ]
    found = dict(curve=curve(on), best=best_of_n(on), levels=best_level(on))
    grid(on, args.out.with_name(f"{args.out.stem}-candidates.jpg"))
    write_card(
        args.out,
        "the emoji cascade, scored by two judges: 95 % intervals over captions",
        "python tools/measure/evaluation.py EMOJI_SET --other RUN/judge",
        config=CONFIG,
        weights=digest_tensors(weights),
        captions=on.captions[: CONFIG["grid"]["captions"]],
        real=len(on.real),
        judges={who: accuracy(judge, held_out, every) for who, judge in on.judges.items()},
        shipped_training=read_card("judge")["training"]["how"],
        **found,
    )


if __name__ == "__main__":
    main()
