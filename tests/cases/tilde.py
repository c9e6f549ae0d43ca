"A quoted or `--out=~/x` tilde: must mean the home folder, never a new folder called `~` in the current one."

import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
home, here = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
os.environ["HOME"] = str(home)
os.chdir(here)
from PIL import Image

from imagen_nb.cli import main
from imagen_nb.pictures.captioned import load_captioned

(home / "photos").mkdir()
Image.new("RGB", (32, 32), "red").save(home / "photos/a.png")
(here / "c.txt").write_text("a red circle\n")
bad = []
try:
    load_captioned("~/photos", 32)
except ValueError:
    bad.append("load_captioned('~/photos') does not exist")
main(["embed", "c.txt", "--out=~/embedded"])
if (here / "~").exists():
    bad.append("a folder named ~ was made here")
print("; ".join(bad) or "home folder")
sys.exit(bool(bad))
