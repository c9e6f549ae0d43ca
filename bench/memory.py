"""Memory of a training step on a CPU, ours and others: `python -m bench.memory --out data/runs/bench-memory.json`.

Each side has a process of its own, since a process never forgets its peak. Counted is what it takes beyond its imports:
weights, gradients, optimizer state and activations of two steps, at the sizes of `python -m bench`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.__main__ import Side, pairing, parse
from bench.rivals import Inputs
from tools.measure.cards import write_card

ROWS, SIDES = ("base", "base-diffusers", "sr"), ("ours", "theirs")
GIB = 2**20  # in the unit of Linux, KiB


def peak() -> float:
    "GiB that this process has held at most."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def measure(row: str, side: str) -> dict:
    "Two training steps of one side, in this process."
    args = parse([])
    torch.set_num_threads(1)
    *builds, spec = pairing(row, args)
    inputs = Inputs.random(
        spec["batch"], spec["size"], args.text_dim, args.length, spec["has_lowres"], args.device
    )
    before = peak()
    net = Side(builds[SIDES.index(side)](), args, "contiguous", False, True)
    for _ in range(2):
        net.step(inputs)
    told = dict(name=net.rival.name, parameters=net.parameters, batch=spec["batch"])
    return told | dict(gib=peak() - before)


def child(row: str, side: str) -> dict:
    "The same in a new process."
    command = [sys.executable, "-m", "bench.memory", row, side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(row: str, repeats: int) -> dict:
    "Both sides in turn, and the ratio of neighbours."
    pairs = [{side: child(row, side) for side in SIDES} for _ in range(repeats)]
    ratios = sorted(p["ours"]["gib"] / p["theirs"]["gib"] for p in pairs)
    found = {
        side: pairs[0][side] | dict(gib=round(statistics.median(p[side]["gib"] for p in pairs), 3))
        for side in SIDES
    }
    spread = dict(median=statistics.median(ratios), low=ratios[0], high=ratios[-1])
    print(f"{row}: ours / theirs {spread['median']:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
    return found | dict(ratio={k: round(v, 3) for k, v in spread.items()})


def main(argv: list[str]):
    if len(argv) == 2 and argv[0] in ROWS:
        print(json.dumps(measure(*argv)))
        return
    p = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, required=True, help="the run card")
    args = p.parse_args(argv)
    write_card(
        args.out,
        "GiB of two training steps on a CPU beyond imports, fp32, ours and others",
        f"python -m bench.memory --repeats {args.repeats}",
        repeats=args.repeats,
        rows={row: compare(row, args.repeats) for row in ROWS},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
