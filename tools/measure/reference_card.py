"""What is normal for `toy`: `data/runs/toy-reference.json`, and `toy-reference-moments.jpg` with its pictures.

    for seed in 0 1 2; do
        imagen-nb train toy --seed $seed --processes 1 --out OUT/seed$seed \\
            --set training.0.save_every=70 --set training.0.keep=20 \\
            --set training.1.save_every=13 --set training.1.keep=20 \\
            --set training.2.save_every=15 --set training.2.keep=20
    done
    python tools/measure/reference_card.py OUT/seed*

Each run keeps a checkpoint for every twentieth of its steps. Losses come from the logs; validation, text gain
and samples from the averaged weights at five moments. Measuring a moment takes seconds; what is measured is
kept in --work, so that the command can be stopped and goes on.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from cards import RUNS, device_name, write_card
from draw_moments import chosen
from draw_moments import main as draw_moments

from imagen_nb.data import ShapesWorld
from imagen_nb.engine.guards import loss_is_normal
from imagen_nb.evaluation import score_pictures, tally
from imagen_nb.plots import smooth
from imagen_nb.runs.drawings import picture_stats
from imagen_nb.runs.setup import load_recipe, make_encoder
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import checkpoints, load_directory
from imagen_nb.store.files import read_rows
from imagen_nb.training import validation_loss

SHARES = (0.05, 0.15, 0.3, 0.6, 1.0)  # of a stage's steps: the five moments
VALIDATED, DRAWN = 256, 48  # pictures for each moment, of valid and of test


class Encoded:
    "A text encoder, asked like a cache."

    def __init__(self, encoder):
        self.encoder = encoder

    def __getitem__(self, captions):
        return self.encoder(captions)


def measure(config, folder: Path, encoder, level: str) -> dict:
    "Validation, samples and what the oracle says of them, for one moment of one stage."
    stage = Stage(config)
    stage.network.load_state_dict(load_directory(folder)[0]["average"])
    stage.is_trained = True
    row = validation_loss(stage, ShapesWorld("valid", level=level), Encoded(encoder), n=VALIDATED)
    world, scenes = (
        ShapesWorld("test", level=level),
        list(range(DRAWN if config.lowres_size is None else DRAWN // 3)),
    )
    lowres = world.images(scenes, config.lowres_size) if config.lowres_size else None
    images = torch.cat(
        [
            stage.sample(
                encoder([world.caption(i) for i in part]),
                None if lowres is None else lowres[part],
                seeds=part,
            )
            for part in torch.tensor(scenes).split(16)
            for part in [part.tolist()]
        ]
    )
    truth = picture_stats(world.images(scenes, config.size))
    right = tally(score_pictures(world, scenes, images))["all"]
    return dict(
        step=int(folder.name.split("_")[1]),
        validation=row,
        samples=picture_stats(images, lowres),
        truth=truth,
        right=right,
    )


def measured(run: Path, work: Path) -> dict:
    "All moments of a run: stage -> rows."
    recipe = load_recipe(run)
    encoder, found = make_encoder(recipe.encoder), {}
    for config in recipe.stages:
        name = f"{config.size}px"
        for folder in chosen(checkpoints(run / name), SHARES):
            path = work / f"{run.name}-{name}-{folder.name}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(config, folder, encoder, recipe.level)))
            found.setdefault(name, []).append(json.loads(path.read_text()))
    return found


def band(values: list) -> list:
    "Mean, lowest and highest, of numbers or of lists of them."
    if isinstance(values[0], list):
        return [band(list(v)) for v in zip(*values)]
    return [float(f"{v:.4g}") for v in (sum(values) / len(values), min(values), max(values))]


def loss_band(logs: list) -> dict:
    "Smoothed training loss by step: geometric mean and the spread of its logarithm, which all steps share."
    n = min(map(len, logs))
    curves = [[math.log(v) for v in smooth([r["loss"] for r in rows[:n]])] for rows in logs]
    spread = (
        statistics.mean(statistics.variance(column) for column in zip(*curves)) ** 0.5
        if len(logs) > 1
        else 0.0
    )
    return dict(
        step=[r["step"] for r in logs[0][:n]],
        mean=[float(f"{math.exp(sum(c) / len(c)):.4g}") for c in zip(*curves)],
        spread=float(f"{spread:.3g}"),
        by_level=[
            [float(f"{sum(v) / len(v):.3g}") for v in zip(*(r["by_level"] for r in rows))]
            for rows in zip(*(log[:n:5] for log in logs))
        ],
    )


def left_out(logs: list) -> list:
    "Each run beside the band of the others: is a healthy run called ill?"
    found = [
        loss_is_normal(rows, loss_band(logs[:k] + logs[k + 1 :])) for k, rows in enumerate(logs)
    ]
    return [dict(level=o.level, seen=o.why) for o in found]


def moment(rows: list) -> dict:
    "The same moment of several runs: [mean, low, high] of each number, [low, high] of each run's text gain."
    row = dict(
        step=rows[0]["step"], right=[r["right"]["share"] for r in rows], drawn=rows[0]["right"]["n"]
    )
    row |= {k: band([r["validation"][k] for r in rows]) for k in ("loss", "shuffled", "trivial")}
    row["text_gain"] = [
        {k: float(f"{v:.3g}") for k, v in r["validation"]["text_gain"].items()} for r in rows
    ]
    for name in ("contrast", "saturated", "neighbours", "lowres_gap"):
        if rows[0]["samples"][name] is not None:
            row[name] = band([r["samples"][name] for r in rows])
    row["saturated_truth"] = band([r["truth"]["saturated"] for r in rows])
    row["colour"] = band(
        [max(abs(a - b) for a, b in zip(r["samples"]["mean"], r["truth"]["mean"])) for r in rows]
    )
    return row


def stage_card(name: str, runs: list, found: list) -> dict:
    "One stage: losses of all runs, moments of those that were measured to the end."
    config, logs = (
        json.loads((runs[0] / name / "config.json").read_text()),
        [read_rows(run / name / "log.jsonl")[0] for run in runs],
    )
    rows = [o[name] for o in found if name in o]
    rows = [o for o in rows if len(o) == max(map(len, rows))]
    return dict(
        config=config,
        steps=config["train"]["steps"],
        batch=config["train"]["batch"],
        loss=loss_band(logs),
        left_out=left_out(logs) if len(logs) > 2 else [],
        moments=[moment(list(same)) for same in zip(*rows)],
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="where measured moments are kept"
    )
    p.add_argument("--out", type=Path, default=RUNS / "toy-reference.json")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = [measured(run, args.work) for run in args.runs]
    scores = [json.loads(path.read_text()) for run in args.runs for path in run.glob("scores.json")]
    write_card(
        args.out,
        "toy: what is normal",
        "python tools/measure/reference_card.py OUT/seed*",
        device=f"{device_name()}; one for each run, beside other work",
        seeds=[load_recipe(run).training[0].seed for run in args.runs],
        validated=f"valid[0:{VALIDATED}], 8 noise levels in turn",
        captions="test[0:200]",
        drawn=f"test[0:{DRAWN}]; super-resolution test[0:{DRAWN // 3}], from true low-res pictures;"
        " seed of a picture: its number",
        stages={name: stage_card(name, args.runs, found) for name in found[0]},
        scores=[
            {size: s[size]["all"]["all"] for size in s if size != "seconds"}
            | dict(seconds=round(s["seconds"]))
            for s in scores
        ],
    )
    draw_moments(args.runs[0], args.out.with_name(f"{args.out.stem}-moments.jpg"), SHARES)


if __name__ == "__main__":
    main()
