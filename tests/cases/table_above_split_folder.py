"metadata.jsonl at the root, its file_name pointing into train/: the captions must be read, or their loss be said."

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned

root = Path(tempfile.mkdtemp())
(root / "train").mkdir()
for i in range(4):
    Image.new("RGB", (32, 32), "red").save(root / "train" / f"{i}.png")
(root / "metadata.jsonl").write_text(
    "".join(
        json.dumps({"file_name": f"train/{i}.png", "text": f"caption {i}"}) + "\n" for i in range(4)
    )
)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        ds = load_captioned(root, 32)
    except ValueError as e:
        print("refused:", str(e)[:100])
        sys.exit(0)
found = [c for i in range(len(ds)) for c in ds.captions(i)]
told = bool(said) or "jsonl" in ds.report()
print(f"{len(found)} of 4 captions read; the table is {'mentioned' if told else 'not mentioned'}")
sys.exit(not (len(found) == 4 or told))
