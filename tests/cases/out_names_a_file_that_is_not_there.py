"`imagen-nb data FOLDER --out overview` (no ending) or a folder: the path printed at the end must exist."

import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
import torch

from imagen_nb.plots import show_stages

root = Path(tempfile.mkdtemp())
(root / "folder").mkdir()
bad = []
for out in (root / "overview", root / "folder"):
    try:
        show_stages(["a"], [torch.zeros(1, 3, 8, 8)], out)
    except (OSError, ValueError):
        continue
    if not out.is_file():
        bad.append(f"--out {out.name} wrote {[p.name for p in root.iterdir() if p.is_file()]}")
print("; ".join(bad) or "written where it was said")
sys.exit(bool(bad))
