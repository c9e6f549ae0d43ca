"""Write `data/runs/NAME.json` and its sample grid from finished runs of one recipe: `python tools/measure/make_run_card.py NAME RUN [RUN ...]`."""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


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
    p = argparse.ArgumentParser(description=__doc__)
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
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    card = dict(
        what=args.name,
        command=args.command,
        note=args.note,
        commit=commit,
        device=device,
        torch=torch.__version__,
        python=platform.python_version(),
        seeds=[run_card(o) for o in args.runs],
    )
    if card["seeds"][0]["scores"]:
        card["captions"] = "test[0:200], seeds 0-199, one picture each"
    out = ROOT / "data" / "runs"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{args.name}.json").write_text(json.dumps(card, indent=1) + "\n")
    grid = Image.open(newest(args.runs[-1]) / "samples.png").convert("RGB")
    grid.save(out / f"{args.name}-samples.jpg", quality=80, subsampling=0)
    for path in (out / f"{args.name}.json", out / f"{args.name}-samples.jpg"):
        print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
