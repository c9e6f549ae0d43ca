"A folder of .tar.gz, .heic or images.zip: the error must name what lies there, as the report does."

import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
from imagen_nb.pictures.captioned import load_captioned

bad = []
for name in ("part-0.tar.gz", "images.zip", "IMG_1.HEIC", "a.jfif"):
    root = Path(tempfile.mkdtemp())
    (root / name).write_bytes(b"x" * 2000)
    try:
        load_captioned(root, 32)
    except ValueError as e:
        if Path(name).suffix.lower() not in str(e).lower():
            bad.append(f"{name}: {str(e)[-40:]}")
print("; ".join(bad) or "each named")
sys.exit(bool(bad))
