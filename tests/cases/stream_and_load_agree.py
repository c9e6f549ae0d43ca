"Local tars that load_captioned reads whole, given to stream_captioned: captions in .json, .jpg and .png mixed, one .txt missing, capital endings."

import io
import json
import os
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"], os.environ["HF_HOME"] = tempfile.mkdtemp(), tempfile.mkdtemp()
from PIL import Image

from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.streams import stream_captioned

warnings.simplefilter("ignore")


def blob(kind):
    b = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(b, kind)
    return b.getvalue()


J, P = blob("JPEG"), blob("PNG")


def txt(i):
    return f"caption {i}".encode()


layouts = {
    "json": lambda i: [("jpg", J), ("json", json.dumps({"caption": f"caption {i}"}).encode())],
    "mixed": lambda i: [("png", P) if i % 2 else ("jpg", J), ("txt", txt(i))],
    "missing txt": lambda i: [("jpg", J)] + [("txt", txt(i))] * (i != 2),
    "capitals": lambda i: [("JPG", J), ("TXT", txt(i))],
}
bad = []
for name, members in layouts.items():
    file = Path(tempfile.mkdtemp()) / "00000.tar"
    with tarfile.open(file, "w") as t:
        for i in range(6):
            for end, data in members(i):
                info = tarfile.TarInfo(f"{i:05d}.{end}")
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    ds = load_captioned(file, 32)
    want = sorted((ds.captions(i) or [""])[0] for i in range(len(ds)))
    try:
        got = sorted(c for _, c in stream_captioned(file, 32))
    except Exception as e:
        got = None
        why = f"{type(e).__name__}"
    if got != want:
        bad.append(f"{name}: {why if got is None else 'other captions'}")
print("; ".join(bad) or "the same in both")
sys.exit(bool(bad))
