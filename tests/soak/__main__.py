"Measure one thing or all, and write run cards: `python -m soak [NAME ...] [--quick] [--out FOLDER]`."

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("kills", "saves", "damage", "signals", "commands", "ranks")


def main():
    p = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    p.add_argument(
        "names", nargs="*", choices=[*NAMES, []], help=f"of {', '.join(NAMES)} (default all)"
    )
    p.add_argument("--quick", action="store_true", help="a few of each, in seconds")
    p.add_argument(
        "--out", type=Path, default=ROOT / "data" / "runs", help="where cards soak-NAME.json go"
    )
    args = p.parse_args()
    for name in args.names or NAMES:
        since = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            told = importlib.import_module(f"soak.{name}").measure(Path(folder), args.quick)
        write(args.out, name, told, args.quick, time.perf_counter() - since)


def write(out: Path, name: str, told: dict, quick: bool, seconds: float):
    "One card."
    import accelerate
    import safetensors

    from tools.measure.cards import write_card

    card = write_card(
        out / f"soak-{name}.json",
        importlib.import_module(f"soak.{name}").__doc__,
        f"python -m soak {name}{' --quick' * quick}",
        seconds=round(seconds),
        load=round(os.getloadavg()[1], 1),
        accelerate=accelerate.__version__,
        safetensors=safetensors.__version__,
        **told,
    )
    print(json.dumps(card, indent=1), flush=True)


if __name__ == "__main__":
    main()
