"What `accelerate launch` puts into the environment must not change what a run learns, or must be refused."

import os
import subprocess
import sys

code = (
    "from small import *; import json; o = folder(); s = trainer(fresh(), o, optimizer='adam', clip=1e9).fit(); "
    "print('END', weights(s).sum().item(), json.loads((o/'log.jsonl').read_text().splitlines()[-1])['grad_norm'])"
)


def run(**env):
    r = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.abspath(__file__)),
    )
    found = [line.split()[1:] for line in r.stdout.splitlines() if line.startswith("END")]
    return found[0] if found else None


plain, wrong = run(), []
for env in (
    dict(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4"),
    dict(ACCELERATE_MIXED_PRECISION="bf16"),
):
    other = run(**env)
    if other is not None and other != plain:
        wrong.append(
            f"{'='.join(*env.items())}: gradient norm {float(other[1]):.3f}, {float(plain[1]):.3f} without"
        )
print(("WRONG: " + "; ".join(wrong)) if wrong else "right: the environment changes nothing")
sys.exit(bool(wrong))
