"""Sessions at a terminal that the site shows, recorded in docs/transcripts and compared by a test.

    python tools/site/transcripts.py            # say which differ from what is recorded
    python tools/site/transcripts.py --write    # record them anew

Each runs in one folder, in this order, so that a later one finds what an earlier one made. Numbers may differ
from machine to machine; words may not.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "transcripts"
SESSIONS = {
    "sample": 'imagen-nb sample "a 3d emoji of a strawberry"',
    "data": "imagen-nb data photos --no-timing",
    "train": "imagen-nb train emoji --data photos --init emoji --stage 0 --processes 1"
    " --set training.0.steps=4 --set training.0.batch=4 --set training.0.warmup=1 --out runs/photos",
    "doctor": "imagen-nb doctor runs/photos --draw 0",
    "export": "imagen-nb export runs/photos photos-so-far",
    "upscale": 'imagen-nb upscale small.png "a 3d emoji of a strawberry"',
    "embed": "imagen-nb embed captions.txt --out captions",
    "plan": "imagen-nb plan emoji --gpu 4090",
}


def record() -> Iterator[tuple[str, str]]:
    "Name and text of each session."
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(Path(folder))
        for name, command in SESSIONS.items():
            yield name, f"$ {command}\n{printed(command)}"


def prepare(folder: Path):
    "What the sessions find: photographs, a small picture, captions."
    from PIL import Image

    shutil.copytree(ROOT / "data" / "photos" / "train", folder / "photos")
    rows = (ROOT / "data" / "photos" / "metadata.jsonl").read_text().splitlines()
    lines = [row.replace("train/", "") for row in rows if '"train/' in row]
    (folder / "photos" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    Image.new("RGB", (32, 32), "gray").save(folder / "small.png")
    (folder / "captions.txt").write_text("a red circle\na blue square above a red circle\n")


def printed(command: str) -> str:
    "What a command writes to its standard output."
    import shlex

    from imagen_nb.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        main(shlex.split(command)[1:])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def words(text: str) -> list[str]:
    "A session without its numbers and the room they take."
    return re.sub(r"\d[\d.,:%]*", "0", text).split()


def main() -> int:
    "Compare, or record."
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    FOLDER.mkdir(exist_ok=True)
    differing = []
    for name, text in record():
        path = FOLDER / f"{name}.txt"
        if "--write" in sys.argv:
            path.write_text(text.rstrip() + "\n", encoding="utf-8")
        elif not path.exists() or words(path.read_text(encoding="utf-8")) != words(text):
            differing.append(name)
    print(f"{len(SESSIONS)} sessions, {len(differing)} differ: {', '.join(differing) or 'none'}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
