"""Run a command, say how long it took, and fail if that is far above its budget.

    python tools/checks/timed.py NAME SECONDS -- COMMAND ...

The budget is for two quiet cores. Above 1.3 times of it the step fails; where the variable `BUDGET`
is `warn`, as on a slow or busy machine, it only warns. A command that fails gives its own status.
"""

import os
import subprocess
import sys
import time

SLACK = 1.3


def main(arguments: list[str]) -> int:
    "The command's exit status, or 1 if it took too long."
    if len(arguments) < 4 or arguments[2] != "--":
        sys.exit(f"timed: got {arguments}, expected NAME SECONDS -- COMMAND")
    name, budget, _, *command = arguments
    since = time.perf_counter()
    status = subprocess.run(command).returncode
    seconds, limit = time.perf_counter() - since, SLACK * float(budget)
    print(f"[{name}: {seconds:.0f} s of {budget} s]", flush=True)
    if status or seconds <= limit:
        return status
    print(
        f"timed: {name} took {seconds:.0f} s, more than {limit:.0f} s: make it faster or mark parts of it slow;"
        " on a slow or busy machine `make test BUDGET=warn`",
        file=sys.stderr,
    )
    return int(os.environ.get("BUDGET") != "warn")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
