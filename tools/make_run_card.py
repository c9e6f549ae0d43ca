"""Write `data/runs/toy.json` and its sample grid from finished runs: `python tools/make_run_card.py RUN [RUN ...]`."""
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def stage_card(folder: Path) -> dict:
    "Config, cost and loss curve of one stage."
    rows = [json.loads(o) for o in (folder/"log.jsonl").read_text().splitlines()]
    samples = [r["samples"] for r in rows]
    seconds = sum((b - a)/r["images_per_s"] for a, b, r in zip([0] + samples, samples, rows))
    keep = rows[::max(1, len(rows)//100)]
    return dict(config=json.loads((folder/"config.json").read_text()), steps=rows[-1]["step"], samples=samples[-1],
                training_seconds=round(seconds), skipped=rows[-1]["skipped"],
                loss=[[r["step"], round(r["loss"], 5)] for r in keep], by_level=rows[-1]["by_level"])


def run_card(folder: Path) -> dict:
    "One run: its stages and its scores."
    scores = json.loads((folder/"scores.json").read_text())
    seconds = scores.pop("seconds")
    stages = {p.name: stage_card(p) for p in sorted(folder.glob("*px"), key=lambda p: int(p.name[:-2]))}
    seed = next(iter(stages.values()))["config"]["train"]["seed"]
    return dict(seed=seed, seconds=round(seconds), stages=stages, scores=scores)


def main(folders: list[str]):
    runs = [run_card(Path(o)) for o in folders]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}"
    card = dict(what="make toy: ShapesWorld quick, 32 -> 128 -> 512", command="imagen-nb train toy --seed SEED", commit=commit, device=device,
                torch=torch.__version__, python=platform.python_version(), captions="test[0:200], seeds 0-199, one picture each", seeds=runs)
    out = ROOT/"data"/"runs"
    out.mkdir(parents=True, exist_ok=True)
    (out/"toy.json").write_text(json.dumps(card, indent=1) + "\n")
    grid = Image.open(Path(folders[0])/"samples.png").convert("RGB")
    grid.quantize(64).save(out/"toy-samples.png", optimize=True)
    print(f"{out/'toy.json'}: {(out/'toy.json').stat().st_size//1024} KiB, {out/'toy-samples.png'}: {(out/'toy-samples.png').stat().st_size//1024} KiB")


if __name__ == "__main__": main(sys.argv[1:])
