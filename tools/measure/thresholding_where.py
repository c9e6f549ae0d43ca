"""Where does dynamic thresholding help? One card: drawn scenes on gray, emoji on white.

    python tools/measure/thresholding_where.py EMOJI_SET      data/runs/thresholding-where.json

The shipped bases draw the same captions and seeds under each rule and weight, so that rules are compared picture by
picture. Captions of drawn scenes are the first of the test split with a gray ground; captions of emoji are drawn by
lot. Scenes on black and white are in `run_experiments.py thresholding`. Pictures are kept in --work, so that the
command can be stopped and goes on.
"""

import argparse
import random
from functools import partial
from pathlib import Path

import torch
from cards import RUNS, write_card
from evaluation import distance, kept, real_pictures
from judge_accuracy import read_rows, share
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.evaluation import bootstrap_mean, frechet_distance, jackknife
from imagen_nb.lab import oracle
from imagen_nb.lab.judge import Judge
from imagen_nb.lab.measures import drawing_error, right_share
from imagen_nb.plots import show_images

RULES = (None, "static", "dynamic")
CONFIG = dict(
    gray=dict(captions=32, w=[5.0, 10.0, 15.0]),
    emoji=dict(captions=64, w=[5.0, 10.0, 15.0, 30.0], real=1000, lot="th"),
    grid=dict(captions=6, w=[5.0, 10.0]),
)


def drawn(args, imagen: Imagen, name: str, captions: list[str], seeds: list[int], w, rule):
    "Pictures of a base."
    return kept(
        args.work / f"{name}-{w:g}-{rule}",
        lambda: imagen.sample(captions, seeds=seeds, stages=1, w=w, threshold=rule),
    )[0]


def saturated(images: Tensor) -> Tensor:  # (b,)
    "Share of the values beyond 0.99 in size."
    return (images.abs() > 0.99).float().flatten(1).mean(1)


# ---------------------------------------------------------------- drawn scenes


def judged_scenes(world: ShapesWorld, chosen: list[int], images: Tensor) -> dict[str, Tensor]:
    "Share of the caption that is right, distance to the drawing that the picture claims to be, saturation."
    scenes = [world.scene(i) for i in chosen]
    right = [right_share(oracle.score(s, x)) for s, x in zip(scenes, images)]
    error = [drawing_error(world, x) for x in images]
    return dict(right=torch.tensor(right), error=torch.tensor(error), saturated=saturated(images))


def scenes(args) -> dict:
    "An arm for each weight and rule, and what the dynamic rule changes against the static one."
    imagen, world = Imagen.from_pretrained("toy"), ShapesWorld("test", level="full")
    how, arms, contrasts = CONFIG["gray"], [], []
    chosen = [i for i in range(1000) if world.scene(i).background == "gray"][: how["captions"]]
    captions = [world.caption(i) for i in chosen]
    true = judged_scenes(world, chosen, world.images(chosen, 32))
    for w in how["w"]:
        by_rule = {}
        for rule in RULES:
            images = drawn(args, imagen, "gray", captions, chosen, w, rule)
            by_rule[rule] = judged_scenes(world, chosen, images)
            means = {k: bootstrap_mean(v) for k, v in by_rule[rule].items()}
            arms.append(dict(w=w, rule=rule, **means))
        change = {k: v - by_rule["static"][k] for k, v in by_rule["dynamic"].items()}
        contrasts.append(dict(w=w, **{k: bootstrap_mean(v) for k, v in change.items()}))
    return dict(
        captions=captions[: CONFIG["grid"]["captions"]],
        truth={k: bootstrap_mean(v) for k, v in true.items()},
        arms=arms,
        dynamic_minus_static=contrasts,
    )


# ---------------------------------------------------------------- emoji


@torch.no_grad()
def emoji(args) -> tuple[dict, dict]:
    "Right objects, distance to real renders and saturation, for each weight and rule."
    how, judge, imagen = CONFIG["emoji"], Judge.shipped(), Imagen.from_pretrained("emoji")
    rows = [row for row in read_rows(args.data) if row["split"] == "train"]
    lot = random.Random(how["lot"]).sample(rows, how["captions"] + how["real"])
    asked, others = lot[: how["captions"]], lot[how["captions"] :]
    real, _ = kept(args.work / "real", lambda: real_pictures(args.data, others, 32))
    features = torch.cat([judge.image_features(part) for part in real.split(256)])
    captions, arms, shown = [row["text"][0] for row in asked], [], {}
    for w in how["w"]:
        for rule in RULES:
            images = drawn(args, imagen, "emoji", captions, list(range(len(asked))), w, rule)
            shown[w, rule] = images
            far = partial(distance, frechet_distance, features, judge.image_features(images))
            right = [r.object == row["object"] for r, row in zip(judge.read(images), asked)]
            arms.append(
                dict(
                    w=w,
                    rule=rule,
                    object=share(right),
                    frechet=jackknife(far, len(images)),
                    saturated=bootstrap_mean(saturated(images)),
                )
            )
    shown_captions = captions[: CONFIG["grid"]["captions"]]
    truth = dict(saturated=bootstrap_mean(saturated(real)))
    return dict(captions=shown_captions, truth=truth, arms=arms), shown


# ---------------------------------------------------------------- all of it


def grid(path: Path, shown: dict, captions: list[str]):
    "A row for each weight and rule, a column for each caption."
    arms = [(w, rule) for w in CONFIG["grid"]["w"] for rule in RULES]
    tiles = [shown[w, rule][k] for w, rule in arms for k in range(len(captions))]
    rows = [f"w = {w:g}, {rule or 'none'}" for w, rule in arms]
    show_images(
        torch.stack(tiles), None, len(captions), path, width=0.8, rows=rows, heads=captions, dpi=72
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `imagen-nb emoji` wrote")
    p.add_argument("--work", type=Path, default=Path("thresholding-work"), help="kept pictures")
    p.add_argument("--out", type=Path, default=RUNS / "thresholding-where.json")
    args = p.parse_args()
    gray, (emojis, shown) = scenes(args), emoji(args)
    grid(args.out.with_name(f"{args.out.stem}-emoji.jpg"), shown, emojis["captions"])
    write_card(
        args.out,
        "dynamic thresholding where most pixels are gray, and where they are at an end of the range",
        "python tools/measure/thresholding_where.py EMOJI_SET",
        config=CONFIG,
        gray=gray,
        emoji=emojis,
    )


if __name__ == "__main__":
    main()
