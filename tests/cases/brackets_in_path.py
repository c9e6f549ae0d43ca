"A sound parquet in a folder whose name has [brackets] (or ::) is not damaged."

import io
import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"], os.environ["HF_HOME"] = tempfile.mkdtemp(), tempfile.mkdtemp()
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.streams import stream_captioned

b = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(b, "PNG")
bad = []
for name in ("photos [2024]", "a::b"):
    file = Path(tempfile.mkdtemp()) / name / "data.parquet"
    file.parent.mkdir()
    pq.write_table(
        pa.table({"image": [{"bytes": b.getvalue(), "path": None}] * 4, "text": list("abcd")}), file
    )
    for kind, go in (
        ("load", lambda: len(load_captioned(file, 32))),
        ("stream", lambda: len(list(stream_captioned(file, 32)))),
    ):
        try:
            ok = go() == 4
        except Exception as e:
            ok = False
            why = f"{type(e).__name__}: {str(e)[:70]}"
        if not ok:
            bad.append(f"{kind} {name}: {why}")
print("; ".join(bad) or "all read")
sys.exit(bool(bad))
