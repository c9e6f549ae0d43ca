"""Make a folder of captioned pictures of real things: `python tools/make/stamps.py FOLDER`.

Debian's package tuxpaint-stamps-default (GPL-2 or later) holds cut-outs for a children's paint program, most of them
photographs, each with a sentence in many languages. `apt-get download` fetches it, 161 MB, or --source names the file;
it is read, never installed. Each cut-out goes onto white paper, its English sentence into metadata.jsonl.
"""

import argparse
import collections
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

PACKAGE = "tuxpaint-stamps-default"
INSIDE = "usr/share/tuxpaint/stamps/"  # of the package
UNREAL = {"symbols", "cartoon"}  # folders of letters and coins, and of cartoons
MARGIN = 0.06  # of the paper's side, around a cut-out
LEAST = 64  # pixels of the longer side
NOTICE = """Pictures and sentences: {package}, file {file}, sha256 {digest},
stamps for Tux Paint, copyright 2002-2022 Bill Kendrick and contributors, GNU General Public License, version 2 or later
(on Debian: /usr/share/common-licenses/GPL-2). Changed: each cut-out was put onto white paper by tools/make/stamps.py.
"""


class Stamp(NamedTuple):
    "A cut-out as the package has it."

    name: str  # path without ending, as "animals/birds/puffin"
    caption: str  # what it shows, in English
    data: bytes  # of the picture's file
    ending: str  # ".png" or ".svg"


# ---------------------------------------------------------------- the package


def fetch(folder: Path) -> Path:
    "The package's file, by apt-get, which checks its signature."
    command = ["apt-get", "download", PACKAGE]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        why = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    except OSError as e:
        why = [str(e)]
    if found := sorted(folder.glob(f"{PACKAGE}_*.deb")):
        return found[-1]
    raise SystemExit(
        f"stamps: `{' '.join(command)}` brought no file ({why[0]}); fetch {PACKAGE}_*_all.deb of Debian"
        " elsewhere, and name it with --source"
    )


def files(deb: Path) -> Iterator[tuple[str, bytes]]:  # path in the package, content
    "What a .deb would install: an `ar` archive with a tar in it, read without unpacking either."
    with deb.open("rb") as f:
        is_ar = f.read(8) == b"!<arch>\n"
        while is_ar and (head := f.read(60)):
            name, length = head[:16].decode().strip().rstrip("/"), int(head[48:58])
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(f.read(length))) as tar:
                    for member in tar:
                        if (content := tar.extractfile(member)) is not None:
                            yield member.name.removeprefix("./"), content.read()
                return
            f.seek(length + length % 2, io.SEEK_CUR)
    raise SystemExit(f"stamps: {deb}, got no package of Debian, expected a .deb file")


def read_stamps(deb: Path) -> Iterator[Stamp]:
    "Every picture that has a sentence; of two files of one name the PNG."
    found: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
    for path, content in files(deb):
        place = PurePosixPath(path)
        if path.startswith(INSIDE) and place.suffix in (".txt", ".png", ".svg"):
            found[path.removeprefix(INSIDE).removesuffix(place.suffix)][place.suffix] = content
    for name, parts in sorted(found.items()):
        for ending in (".png", ".svg"):
            if ending in parts and (caption := english(parts.get(".txt", b""))):
                yield Stamp(name, caption, parts[ending], ending)
                break


def english(text: bytes) -> str:
    "The first line, which is English, without its full stop; other lines begin with a language."
    first = text.decode("utf-8-sig", errors="replace").partition("\n")[0]
    return " ".join(first.split()).removesuffix(".")


# ---------------------------------------------------------------- pictures


def cut_out(stamp: Stamp, size: int) -> Image.Image | None:
    "The cut-out alone, RGBA, at most size px; None: a drawing that nothing here can draw."
    data = stamp.data if stamp.ending == ".png" else drawn(stamp.data, size)
    if data is None:
        return None
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image


def drawn(svg: bytes, size: int) -> bytes | None:
    "A drawing as PNG, size px wide; None: resvg-py is not installed, or cannot read it."
    try:
        from resvg_py import svg_to_bytes

        text = svg.decode("utf-8", errors="replace")
        return bytes(svg_to_bytes(svg_string=text, width=size))
    except (ImportError, ValueError):
        return None


def on_paper(image: Image.Image) -> Image.Image:
    "White paper, square, with a margin: no later step cuts a part of the thing away."
    side = round(max(image.size) / (1 - 2 * MARGIN))
    paper = Image.new("RGBA", (side, side), "white")
    corner = (side - image.width) // 2, (side - image.height) // 2
    paper.alpha_composite(image, corner)
    return paper.convert("RGB")


def make_stamps(
    deb: Path,  # the package's file
    out: Path,  # a new folder
    size: int = 512,  # most pixels of a cut-out; smaller ones stay as they are
    everything: bool = False,  # letters, coins and cartoons, too
) -> collections.Counter:  # of what became of the stamps, by what was done
    "Write pictures, sentences and the licence."
    out.mkdir(parents=True)
    rows, counts = [], collections.Counter()
    for stamp in read_stamps(deb):
        if not everything and UNREAL & {*PurePosixPath(stamp.name).parts}:
            counts["letters, coins and cartoons left out"] += 1
        elif (image := cut_out(stamp, size)) is None:
            counts["drawings left out, which resvg-py is missing for or cannot read"] += 1
        elif max(image.size) < LEAST:
            counts[f"left out, under {LEAST} pixels"] += 1
        else:
            file = stamp.name.replace("/", "-") + ".png"
            on_paper(image).save(out / file)
            rows.append(dict(file_name=file, text=stamp.caption))
            counts["written"] += 1
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "metadata.jsonl").write_text(lines, encoding="utf-8")
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    notice = NOTICE.format(package=PACKAGE, file=deb.name, digest=digest)
    (out / "LICENSES.txt").write_text(notice, encoding="utf-8")
    return counts


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="a new folder")
    p.add_argument("--source", type=Path, help="the package's file (default: fetched by apt-get)")
    p.add_argument("--size", type=int, default=512, help="most pixels of a cut-out (default 512)")
    p.add_argument("--all", action="store_true", help="letters, coins and cartoons, too")
    args = p.parse_args()
    if args.folder.exists():
        p.error(f"{args.folder} is there already; expected a new folder")
    with tempfile.TemporaryDirectory() as part:
        deb = args.source or fetch(Path(part))
        counts = make_stamps(deb, args.folder, args.size, args.all)
    for what, n in counts.most_common():
        print(f"{args.folder}: {n} {what}")


if __name__ == "__main__":
    main()
