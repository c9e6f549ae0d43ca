"A torchvision built for another torch is installed (not ours, not needed): load the toy, or name torchvision in one line."

import os
import subprocess
import sys
import tempfile
from pathlib import Path

place = Path(tempfile.mkdtemp())
(place / "torchvision").mkdir()
(place / "torchvision" / "__init__.py").write_text(
    "raise RuntimeError('operator torchvision::nms does not exist')\n"
)
(place / "torchvision" / "transforms").mkdir()
(place / "torchvision" / "transforms" / "__init__.py").write_text("")
info = place / "torchvision-0.20.0.dist-info"
info.mkdir()
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n")
env = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
r = subprocess.run(
    [
        sys.executable,
        "-m",
        "imagen_nb.cli",
        "sample",
        "a red circle",
        "--steps",
        "1",
        "--out",
        str(place / "o"),
    ],
    env=env,
    capture_output=True,
    text=True,
)
ok = r.returncode == 0 or "Traceback" not in r.stderr and "torchvision" in r.stderr
print(
    f"{'right' if ok else 'WRONG'}: exit {r.returncode}, {len(r.stderr.splitlines())} lines, last: {(r.stderr.splitlines() or [''])[-1][:150]}"
)
sys.exit(not ok)
