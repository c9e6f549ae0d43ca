"""Write `data/runs/NAME.json` and its sample grid from finished runs of one recipe.

python tools/measure/make_run_card.py NAME RUN [RUN ...] --command "what made them"
"""

import argparse
import json
from pathlib import Path

import torch
from cards import RUNS, device_name, write_card
from PIL import Image


def stage_card(folder: Path) -> dict:
    "Config, cost and loss curve of one stage."
    rows = [json.loads(o) for o in (folder / "log.jsonl").read_text().splitlines()]
    samples = [r["samples"] for r in rows]
    seconds = sum((b - a) / r["images_per_s"] for a, b, r in zip([0] + samples, samples, rows))
    keep = rows[:: max(1, len(rows) // 100)]
    return dict(
        config=json.loads((folder / "config.json").read_text()),
        steps=rows[-1]["step"],
        samples=samples[-1],
        training_seconds=round(seconds),
        skipped=rows[-1]["skipped"],
        loss=[[r["step"], round(r["loss"], 5)] for r in keep],
        by_level=rows[-1]["by_level"],
    )


def newest(folder: Path) -> Path:
    "Where a run's last pictures are: `tools/make/train_crowded.py` goes on in a folder of its own."
    return folder / "crowded" if (folder / "crowded").exists() else folder


def run_card(folder: Path) -> dict:
    "One run: its stages and, on drawn scenes, its scores."
    last = newest(folder)
    scores = (
        json.loads((last / "scores.json").read_text()) if (last / "scores.json").exists() else {}
    )
    seconds = scores.pop("seconds", None)
    parts = sorted(folder.glob("*px"), key=lambda p: int(p.name[:-2])) + sorted(
        (folder / "crowded").glob("*px")
    )
    stages = {p.relative_to(folder).as_posix(): stage_card(p) for p in parts}
    seed = next(iter(stages.values()))["config"]["train"]["seed"]
    return dict(seed=seed, seconds=seconds and round(seconds), stages=stages, scores=scores)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("name", help="of the card")
    p.add_argument(
        "runs",
        nargs="+",
        type=Path,
        help="directories of runs; the sample grid comes from the last",
    )
    p.add_argument("--command", required=True, help="what made them")
    p.add_argument("--note", default="", help="what a reader of the card must know")
    args = p.parse_args()
    seeds = [run_card(o) for o in args.runs]
    drawn = (
        dict(captions="test[0:200], seeds 0-199, one picture each") if seeds[0]["scores"] else {}
    )
    device = device_name("cuda" if torch.cuda.is_available() else "cpu")
    found = dict(device=device, note=args.note, seeds=seeds, **drawn)
    write_card(RUNS / f"{args.name}.json", args.name, args.command, **found)
    grid = Image.open(newest(args.runs[-1]) / "samples.png").convert("RGB")
    grid.save(RUNS / f"{args.name}-samples.jpg", quality=80, subsampling=0)


if __name__ == "__main__":
    main()
