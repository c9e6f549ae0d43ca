"""`plan` against the fake GPU, into `data/runs/plan.json`: stages of the paper at full size, on one GPU and on several.

    python tools/measure/plan_memory.py

A GPU is that of `tests/fakegpu`: torch's own DDP and FSDP2 run on it, the other processes are not there, and an
allocation is counted and not made. Figures are those of the first process, which has the largest part.
"""

import json
import os
import subprocess
import sys

from cards import ROOT, RUNS, write_card

from imagen_nb.recipes import paper

WAYS = [  # pictures at once on a GPU, how the work is shared, and by how many
    (8, "ddp", 1), (8, "ddp", 8), (8, "fsdp", 8), (8, "fsdp", 64),
    (1, "fsdp", 64),  # hardly any activations: whole layers fill the GPU
]  # fmt: skip
CASES = {(k, *way): " ".join(map(str, ("full", k, *way))) for k in range(3) for way in WAYS}


def counted(*cases: str) -> dict:
    "What each case found, by its name."
    paths = map(str, (ROOT, ROOT / "tests", ROOT / "tools" / "measure"))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "fakegpu", *cases]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = dict(map(json.loads, run.stdout.splitlines()))
    if broken := {case: o["error"] for case, o in found.items() if "error" in o}:
        raise SystemExit("\n".join(map(": ".join, broken.items())))
    return found


def main():
    found, rows = counted(*CASES.values()), []
    for (k, batch, strategy, count), case in CASES.items():
        o = found[case]
        rows.append(
            dict(
                size=paper().stages[k].size,
                batch=batch,
                strategy=strategy,
                count=count,
                measured_gib=round(o["measured_gib"], 3),
                planned_gib=round(o["planned_gib"], 3),
                gap=round(o["planned_gib"] / o["measured_gib"] - 1, 4),
                is_exact=all(measured == planned for measured, planned in o["kept"].values()),
                kept_gib={name: round(o["kept"][name][0] / 2**30, 3) for name in o["kept"]},
            )
        )
    write_card(
        RUNS / "plan.json",
        "bytes of a GPU at the fullest moment of two training steps: counted on a fake GPU, and planned",
        "python tools/measure/plan_memory.py",
        largest_gap=max(abs(row["gap"]) for row in rows),
        are_exact=all(row["is_exact"] for row in rows),
        cases=rows,
    )


if __name__ == "__main__":
    main()
