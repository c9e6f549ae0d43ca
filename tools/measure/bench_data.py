"""Speed of reading pictures, into `data/runs/data-bench.json`: `python tools/measure/bench_data.py [--rows 1000000]`.

Ours and `datasets` with a Pillow transform take turns over the same JPEG files, in one thread, nothing kept in memory.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from cards import RUNS, read_card, write_card
from PIL import Image

from imagen_nb.pictures import captioned
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import Crop, to_square
from imagen_nb.store.keyed import permute

SETS = (
    (64, None, (800, 600), 96),
    (256, None, (800, 600), 96),
    (1024, 272, (1600, 1200), 32),
)  # size, crop, pictures' sides, how many
TURNS, BATCH = 5, 16


def photo(width: int, height: int, seed: int) -> Image.Image:
    "Noise with a spectrum like a photograph's: what a JPEG decoder has to do depends on it."
    g, out = np.random.default_rng(seed), np.zeros((height, width, 3))
    for k in range(1, 9):
        coarse = g.normal(size=(height // 2**k + 2, width // 2**k + 2, 3)).astype("float32")
        layers = [
            np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.BICUBIC))
            for c in range(3)
        ]
        out += np.stack(layers, -1) * 2**k
    return Image.fromarray(((out - out.mean()) / out.std() * 50 + 128).clip(0, 255).astype("uint8"))


def make_pictures(root: Path, sides: tuple[int, int], n: int):
    "A folder and a tar of the same JPEG files with captions."
    (root / "folder").mkdir(parents=True)
    for k in range(n):
        photo(*sides, k).save(root / "folder" / f"{k:04d}.jpg", quality=90)
        (root / "folder" / f"{k:04d}.txt").write_text(f"picture {k}")
    with tarfile.open(root / "all.tar", "w") as tar:
        for path in sorted((root / "folder").iterdir()):
            tar.add(path, path.name)


def theirs(source: str, root: Path, size: int, crop: int | None):
    "A function from indices to pictures: `datasets`, its map-style access, and a Pillow transform."
    import datasets

    kind, files = (
        ("imagefolder", str(root / "folder" / "*.jpg"))
        if source == "folder"
        else ("webdataset", str(root / "all.tar"))
    )
    table = datasets.load_dataset(kind, data_files=files, split="train")
    column = "image" if source == "folder" else "jpg"

    def transform(rows):
        out = []
        for k, picture in enumerate(rows[column]):
            w, h = picture.size
            side = min(w, h)
            left, top = (w - side) // 2, (h - side) // 2
            picture = (
                picture.convert("RGB")
                .crop((left, top, left + side, top + side))
                .resize((size, size), Image.BILINEAR)
            )
            if crop:
                picture = picture.crop((40 * k, 30 * k, 40 * k + crop, 30 * k + crop))
            out.append(
                torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(127.5).sub_(1)
            )
        return {"pixels": out}

    table = table.select_columns([column]).with_transform(transform)
    return lambda rows: torch.stack(table[rows]["pixels"])


def ours(source: str, root: Path, size: int, crop: int | None):
    ds = load_captioned(root / "folder" if source == "folder" else root / "all.tar", size)

    def read(rows):
        k = torch.arange(len(rows))
        return ds.images(rows, crop=Crop(30 * k, 40 * k, crop, crop) if crop else None)

    return read


def images_per_second(read, rows: list) -> float:
    start = time.perf_counter()
    for k in range(0, len(rows), BATCH):
        read(rows[k : k + BATCH])
    return len(rows) / (time.perf_counter() - start)


def summary(values: list, digits: int) -> dict:
    return dict(
        median=round(statistics.median(values), digits),
        low=round(min(values), digits),
        high=round(max(values), digits),
    )


def throughput(folder: Path) -> list[dict]:
    "Both sides, taking turns."
    captioned.KEPT, cards = 0, []  # every picture is read and decoded each time
    for size, crop, sides, n in SETS:
        root = folder / f"{sides[0]}"
        if not root.exists():
            make_pictures(root, sides, n)
        rows = [permute(i, n, 0) for i in range(n)]
        for source in ("folder", "tar"):
            a, b = ours(source, root, size, crop), theirs(source, root, size, crop)
            gap = ((a(rows[:BATCH]) - b(rows[:BATCH])).abs() * 127.5)[..., 4:-4, 4:-4].max().item()
            turns = [(images_per_second(a, rows), images_per_second(b, rows)) for _ in range(TURNS)]
            cards.append(
                dict(
                    source=f"JPEG {source}",
                    size=size,
                    crop=crop,
                    pictures=f"{n} of {sides[0]} x {sides[1]}",
                    ours=summary([x for x, _ in turns], 1),
                    datasets=summary([y for _, y in turns], 1),
                    ratio=summary([x / y for x, y in turns], 2),
                    largest_gap_in_levels=round(gap, 2),
                )
            )
            print(cards[-1], flush=True)
    return cards


def draft_parity(folder: Path) -> list[dict]:
    "What decoding at a reduced size (Pillow's `draft`) would change; it is not used."
    out = []
    for path in (folder / "800" / "folder" / "0000.jpg", folder / "1600" / "folder" / "0000.jpg"):
        whole = Image.open(path)
        drafted = Image.open(path)
        drafted.draft(
            "RGB", (whole.width * 256 // min(whole.size), whole.height * 256 // min(whole.size))
        )
        gap = (
            to_square(drafted.convert("RGB"), 64) - to_square(whole.convert("RGB"), 64)
        ).abs() * 127.5
        out.append(
            dict(
                picture=f"{whole.width} x {whole.height}",
                decoded_at=f"{drafted.width} x {drafted.height}",
                to=64,
                mean_levels=round(gap.mean().item(), 2),
                largest_levels=round(gap.max().item(), 2),
            )
        )
    return out


# ---------------------------------------------------------------- the catalog of many rows


def make_tars(folder: Path, rows: int, shard: int = 10_000):
    "Tiny pictures with captions of 60 characters, as tars in webdataset's layout."
    blob = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 90)).save(blob, "JPEG", quality=50)
    picture = blob.getvalue()
    pad = bytes(-len(picture) % 512)
    for first in range(0, rows, shard):
        with open(folder / f"{first // shard:05d}.tar", "wb") as f:
            for k in range(first, min(rows, first + shard)):
                text = f"caption {k:09d} of about sixty characters, as they are on the web".encode()
                f.write(header(f"{k:09d}.jpg", len(picture)) + picture + pad)
                f.write(header(f"{k:09d}.txt", len(text)) + text + bytes(-len(text) % 512))
            f.write(bytes(1024))


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


PASS = """
import json, sys, time, torch, tqdm.auto, PIL.JpegImagePlugin
from imagen_nb.pictures.captioned import load_captioned
def memory(what):
    return next(int(o.split()[1]) / 1024 for o in open("/proc/self/status") if o.startswith(what))
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
before, start = memory("VmRSS"), time.perf_counter()
ds = load_captioned(sys.argv[1], 64)
built, peak, start = time.perf_counter() - start, memory("VmHWM") - before, time.perf_counter()
again = load_captioned(sys.argv[1], 64)
opened, start = time.perf_counter() - start, time.perf_counter()
for k in range(20_000):
    ds.caption(k * 7919 % len(ds))
captions = 20_000 / (time.perf_counter() - start)
size = ds.catalog.path.stat().st_size
print(json.dumps(dict(rows=len(ds), seconds=built, memory=peak, open_seconds=opened,
                      captions=captions, bytes=size, skipped=ds.skipped.total())))
"""


def catalog_card(source: Path) -> dict:
    "One pass in a process of its own."
    with tempfile.TemporaryDirectory() as cache:
        env = dict(os.environ, IMAGEN_NB_CACHE=cache, OMP_NUM_THREADS="1")
        done = subprocess.run(
            [sys.executable, "-c", PASS, str(source)],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
    o = json.loads(done.stdout.splitlines()[-1])
    return dict(
        rows=o["rows"],
        skipped=o["skipped"],
        rows_per_second=round(o["rows"] / o["seconds"]),
        seconds=round(o["seconds"], 1),
        megabytes=round(o["bytes"] / 1e6, 1),
        bytes_per_row=round(o["bytes"] / o["rows"], 1),
        memory_mb=round(o["memory"], 1),
        seconds_to_open_again=round(o["open_seconds"], 2),
        captions_per_second=round(o["captions"]),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument(
        "--tars", type=Path, help="folder for the tars of tiny pictures (default: temporary)"
    )
    p.add_argument(
        "--part", choices=("throughput", "catalog"), help="renew this part of the card alone"
    )
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    card = read_card("data-bench") if args.part else {}
    card |= dict(
        pillow=__import__("PIL").__version__,
        datasets=__import__("datasets").__version__,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["IMAGEN_NB_CACHE"], os.environ["HF_HUB_OFFLINE"] = str(folder / "catalogs"), "1"
        import datasets

        datasets.config.HF_DATASETS_CACHE = str(folder / "hf")
        if args.part != "catalog":
            card |= dict(
                throughput=throughput(folder),
                draft_not_used=draft_parity(folder),
            )
        if args.part != "throughput":
            tars = args.tars or folder / "tars"
            if not tars.exists():
                tars.mkdir()
                make_tars(tars, args.rows)
            card["catalog"] = dict(
                source="tar shards of 10 000 JPEG files of 16 x 16"
            ) | catalog_card(tars)
    what, command = "reading pictures, one thread", "python tools/measure/bench_data.py"
    measured = (
        "pillow",
        "datasets",
        "throughput",
        "order_is_the_same",
        "draft_not_used",
        "catalog",
    )
    card = {name: card[name] for name in measured if name in card}
    write_card(RUNS / "data-bench.json", what, command, **card)


if __name__ == "__main__":
    main()
