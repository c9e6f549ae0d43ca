"A sound parquet while the cache of `datasets` cannot be written (a read-only home, a full disk): must not be called damaged."

import io
import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
place = Path(tempfile.mkdtemp()) / "home"
place.write_text("a file where the cache should be")
os.environ["HF_HOME"] = str(place)
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned

b = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(b, "PNG")
file = Path(tempfile.mkdtemp()) / "data.parquet"
pq.write_table(
    pa.table({"image": [{"bytes": b.getvalue(), "path": None}] * 4, "text": list("abcd")}), file
)
try:
    print(len(load_captioned(file, 32)), "read")
    sys.exit(0)
except Exception as e:
    why = f"{type(e).__name__}: {e}"
print(why[:150])
sys.exit(
    "damaged" in why
    or not why.startswith(
        ("ValueError", "OSError", "NotADirectoryError", "PermissionError", "FileExistsError")
    )
)
