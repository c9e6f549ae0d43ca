"Run cards: one measurement, with all that is needed to make it again, as a file in `data/runs`."

import json
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "data" / "runs"


def read_card(name: str) -> dict:
    "The run card of that name."
    return json.loads((RUNS / f"{name}.json").read_text(encoding="utf-8"))


def device_name(device: str = "cpu") -> str:
    "Where it was measured, in words."
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str:
    "The commit of the checkout that measures; empty outside of git."
    git = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def write_card(
    path: Path,  # where to: usually `RUNS / "NAME.json"`
    what: str,  # what was measured, and in which unit
    command: str,  # what measures it again
    **found,  # the figures and their settings; `device`, if it was not the CPU
) -> dict:  # the card as it was written
    "Write a run card: one line for each of its parts, so that a change is seen in its part."
    card = dict(
        what=what,
        command=command,
        commit=commit(),
        device=device_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )
    card |= found
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in card.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1000:.1f} kB", flush=True)
    return card
