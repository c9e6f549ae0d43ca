"""Measure again what run cards and documents claim: `make prove`, or `python tools/checks/prove.py [STEP ...]`.

slow: the tests marked slow, with the whole matrix of samplers. soak: runs that are killed and files that are damaged,
a few of each. parity: our samplers beside diffusers'. faults: a wrong line in every module, one after the other; each
must be caught. A step that fails does not stop the others.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOAK = "tests/test_soak.py"
PYTEST = ("-m", "pytest", "-q", "-m", "slow and not gpu and not net")


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


def prove(name: str) -> bool:
    "One step; its output is shown as it comes."
    words, holds = STEPS[name]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, *(word.format(out=out) for word in words)]
        env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        status = subprocess.run(command, cwd=ROOT, env=env).returncode
        return status == 0 and (holds is None or holds(Path(out)))


def main(names: list[str]) -> int:
    "All steps, or those that are named; a table of times and verdicts at the end."
    if unknown := set(names) - STEPS.keys():
        sys.exit(f"prove: got {sorted(unknown)}, expected among {list(STEPS)}")
    lines, good = [], True
    for name in names or STEPS:
        print(f"---- {name}", flush=True)
        since = time.monotonic()
        holds = prove(name)
        good &= holds
        verdict = "holds" if holds else "DOES NOT HOLD"
        lines.append(f"{name:8s} {time.monotonic() - since:7.0f} s  {verdict}")
    print("\n".join(["", *lines]))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
