"What `datasets` hands people: a transform set, a DatasetDict, a streamed dataset. Read, or one ValueError that says what to give."

import io
import os
import sys
import tempfile

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
import datasets
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.streams import stream_captioned

b = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(b, "PNG")
pic = {"bytes": b.getvalue(), "path": None}
ds = datasets.Dataset.from_dict(
    {"image": [pic] * 4, "text": list("abcd")},
    datasets.Features(image=datasets.Image(), text=datasets.Value("string")),
)
tries = {
    "transform": lambda: load_captioned(
        ds.with_transform(lambda rows: {"pixels": [1] * len(rows["image"])}), 32
    )[0],
    "DatasetDict": lambda: load_captioned(datasets.DatasetDict(train=ds), 32)[0],
    "streamed to load": lambda: load_captioned(ds.to_iterable_dataset(), 32)[0],
    "streamed to stream": lambda: next(iter(stream_captioned(ds.to_iterable_dataset(), 32))),
}
bad = []
for name, go in tries.items():
    try:
        go()
    except ValueError:
        pass
    except Exception as e:
        bad.append(f"{name}: {type(e).__name__} {e}")
print("; ".join(bad) or "all read or refused in words")
sys.exit(bool(bad))
