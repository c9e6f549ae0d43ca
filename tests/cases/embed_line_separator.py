"`imagen-nb embed` reads .jsonl and .txt by other rules than the loader: U+2028 inside a string, a null caption, UTF-16."

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["IMAGEN_NB_CACHE"] = tempfile.mkdtemp()
from imagen_nb.cli import main

top = Path(tempfile.mkdtemp())
bad = []
(top / "sep.jsonl").write_text(
    json.dumps({"text": "red\u2028circle"}, ensure_ascii=False) + "\n", encoding="utf-8"
)
(top / "null.jsonl").write_text('{"text": null}\n{"text": "a"}\n')
(top / "list.jsonl").write_text('{"text": ["a", "b"]}\n')
(top / "wide.csv").write_text("caption\na red circle\n", encoding="utf-16")
for file in sorted(top.glob("*.*")):
    if main(["embed", str(file), "--out", str(top / f"out-{file.stem}")]):
        bad.append(file.name)
(top / "nel.txt").write_text("red\x85circle\n", encoding="utf-8")
from imagen_nb.runs.embed import read_captions

if len(read_captions(str(top / "nel.txt"), None)) != 1:
    bad.append("nel.txt cut in two")
print("refused or cut:", ", ".join(bad) or "none")
sys.exit(bool(bad))
