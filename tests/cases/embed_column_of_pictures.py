"`imagen-nb embed FOLDER --column prompt`: the column asked for must be the one encoded, or the option be refused."

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
from PIL import Image

from imagen_nb.cli import main
from imagen_nb.engine.captions import EmbeddingCache

top = Path(tempfile.mkdtemp())
photos = top / "photos"
photos.mkdir()
for i in range(3):
    Image.new("RGB", (32, 32), "red").save(photos / f"{i}.png")
(photos / "metadata.jsonl").write_text(
    "".join(
        json.dumps({"file_name": f"{i}.png", "text": f"short {i}", "prompt_long": f"long {i}"})
        + "\n"
        for i in range(3)
    )
)
code = main(["embed", str(photos), "--column", "prompt_long", "--out", str(top / "out")])
if code:
    print("refused")
    sys.exit(0)
cache = EmbeddingCache.open(top / "out")
print(f"asked for prompt_long; encoded {'it' if 'long 0' in cache else 'text'}")
sys.exit("long 0" not in cache)
