"Caption files of another name (.caption, picture.jpg.txt, captions.csv): no caption at all is used; a warning must say so."

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned

silent = []
for layout in ("dot caption", "double ending", "captions.csv"):
    root = Path(tempfile.mkdtemp())
    for i in range(4):
        Image.new("RGB", (32, 32), "red").save(root / f"{i}.jpg")
        if layout == "dot caption":
            (root / f"{i}.caption").write_text("a red square")
        if layout == "double ending":
            (root / f"{i}.jpg.txt").write_text("a red square")
    if layout == "captions.csv":
        (root / "captions.csv").write_text(
            "file_name,text\n" + "".join(f"{i}.jpg,a red square\n" for i in range(4))
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            ds = load_captioned(root, 32)
        except ValueError:
            continue
    if not said and not any(ds.captions(i) for i in range(len(ds))):
        silent.append(layout)
print("no caption used and no warning:", ", ".join(silent) or "never")
sys.exit(bool(silent))
