"""Measure again what run cards and documents claim: `make prove`, or `python tools/checks/prove.py [STEP ...]`.

slow: the tests marked slow, with the whole matrix of samplers. soak: runs that are killed and files that are damaged,
a few of each. parity: our samplers beside diffusers'. faults: one wrong line after the other, in every module; each
must be caught. A step that fails does not stop the others. What each step said last, and how long it took, goes into
`data/runs/prove.json`; steps that were not asked for stay there as they were, each with its commit.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "data" / "runs" / "prove.json"
SOAK = "tests/test_soak.py"
PYTEST = ("-m", "pytest", "-q", "-m", "slow and not gpu and not net")
WRONG = ("FAILED", "ERROR", "MISSED")  # how a line begins that names what does not hold


def parity_holds(out: Path) -> bool:
    "Is every sampler as near to diffusers' as the card says it has to be?"
    card = json.loads((out / "proof-parity.json").read_text(encoding="utf-8"))
    print(
        f"largest difference of each sampler, goal {card['goal']:g}: {card['largest']}", flush=True
    )
    return max(card["largest"].values()) < card["goal"]


STEPS = {  # name -> what python is given, with {out} for an empty folder; what must hold of it
    "slow": ((*PYTEST, f"--ignore={SOAK}"), None),
    "soak": ((*PYTEST, SOAK), None),
    "parity": (("tools/measure/prove_samplers.py", "parity", "--out", "{out}"), parity_holds),
    "faults": (("tests/faults.py",), None),
}


def shown(command: list[str]) -> tuple[int, list[str]]:
    "Exit status and lines of a command, whose output is shown as it comes."
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = dict(os.environ, PYTHONPATH=path, PYTHONUNBUFFERED="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    return child.returncode, [line for line in lines if line]


def spent() -> float:
    "Seconds that cores have worked for commands that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prove(name: str) -> dict:
    "One step: its verdict, how long it took, what it counted in its last line, and what does not hold."
    from cards import commit

    words, holds = STEPS[name]
    since, worked, at = time.monotonic(), spent(), commit()
    with tempfile.TemporaryDirectory() as out:
        status, lines = shown([sys.executable, *(word.format(out=out) for word in words)])
        is_good = status == 0 and (holds is None or holds(Path(out)))
    counts = re.findall(r"(\d+) ([a-z]+)", lines[-1] if lines and holds is None else "")
    return dict(
        holds=is_good,
        seconds=round(time.monotonic() - since),
        core_seconds=round(spent() - worked),
        counts={what: int(n) for n, what in counts},
        wrong=[line for line in lines if line.startswith(WRONG)],
        commit=at,
    )


def main(names: list[str]) -> int:
    "All steps, or those that are named; a table of times and verdicts at the end, and a run card."
    if unknown := set(names) - STEPS.keys():
        sys.exit(f"prove: got {sorted(unknown)}, expected among {list(STEPS)}")
    sys.path.insert(0, str(ROOT / "tools" / "measure"))
    from cards import write_card

    steps = json.loads(CARD.read_text(encoding="utf-8"))["steps"] if CARD.exists() else {}
    asked = names or list(STEPS)
    for name in asked:
        print(f"---- {name}", flush=True)
        steps[name] = prove(name)
        what = "`make prove`: verdict, seconds and core seconds of each step, what it counted"
        write_card(CARD, what, "make prove", steps={k: steps[k] for k in STEPS if k in steps})
    for name in asked:
        verdict = "holds" if steps[name]["holds"] else "DOES NOT HOLD"
        print(f"{name:8s} {steps[name]['seconds']:7.0f} s  {verdict}")
    return int(not all(steps[name]["holds"] for name in asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
