"A Dataset that holds pictures alone (or pictures and class numbers): a folder of pictures alone is accepted, so this must be."

import io
import os
import sys
import tempfile

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
import datasets
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned

b = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(b, "PNG")
pic, F = {"bytes": b.getvalue(), "path": None}, datasets.Features
tables = {
    "image": datasets.Dataset.from_dict({"image": [pic] * 4}, F(image=datasets.Image())),
    "image, label": datasets.Dataset.from_dict(
        {"image": [pic] * 4, "label": [0, 1, 0, 1]},
        F(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])),
    ),
}
bad = {}
for name, table in tables.items():
    try:
        load_captioned(table, 32)
    except Exception as e:
        bad[name] = f"{type(e).__name__}: {e}"
print("; ".join(f"{k}: {v}" for k, v in bad.items()) or "both read")
sys.exit(bool(bad))
