"""Does a person name what the emoji cascade drew? Into `data/runs/emoji-reader.json`.

    python tools/measure/blind_reader.py EMOJI_SET OUT                     samples and renders, mixed, no captions
    python tools/measure/blind_reader.py EMOJI_SET OUT --named NAMES.json  the card

NAMES.json is a list of what a reader wrote for 00.png to 59.png, and beside each name whether it is the thing of the
caption or its kind: [["melon / green apple", true], ...]. The first name counts. No picture is chosen.
"""

import argparse
import json
import random
from pathlib import Path

from cards import RUNS, write_card
from judge_accuracy import read_rows, share
from PIL import Image

from imagen_nb.cascade import Imagen
from imagen_nb.pictures.pixels import to_square
from imagen_nb.plots import save_picture

SAMPLES, RENDERS, SIDE = 40, 20, 256


def lot(folder: Path) -> list[tuple[str, dict, int]]:
    "What is shown, in order: source, row, and seed of a sample."
    rng = random.Random("fresh reader")
    rows = [r for r in read_rows(folder) if r["split"] == "train" and not r["tone"]]
    picked = rng.sample(rows, SAMPLES + RENDERS)
    shown = [("sample" if i < SAMPLES else "render", row, i) for i, row in enumerate(picked)]
    rng.shuffle(shown)
    return shown


def draw(folder: Path, out: Path):
    "Every picture under its number."
    shown = lot(folder)
    asked = sorted((seed, row["text"][0]) for source, row, seed in shown if source == "sample")
    seeds, captions = zip(*asked)
    drawn = Imagen.from_pretrained("emoji").sample(list(captions), seeds=list(seeds))
    for k, (source, row, seed) in enumerate(shown):
        picture = drawn[seed] if source == "sample" else render(folder, row)
        save_picture(picture, out / f"{k:02d}.png")


def render(folder: Path, row: dict):
    "The true picture of a row, (3 h w)."
    path = folder / row["split"] / row["file_name"]
    return to_square(Image.open(path).convert("RGB"), SIDE)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `imagen-nb emoji` wrote")
    p.add_argument("out", type=Path, help="folder of the pictures")
    p.add_argument("--named", type=Path, help="what the reader wrote")
    args = p.parse_args()
    if args.named is None:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(args.data, args.out)
        return
    named = json.loads(args.named.read_text(encoding="utf-8"))
    pictures = [
        dict(source=source, caption=row["text"][0], object=row["object"], named=name, right=right)
        for (source, row, _), (name, right) in zip(lot(args.data), named, strict=True)
    ]
    write_card(
        RUNS / "emoji-reader.json",
        "what a reader who saw no caption called 40 first samples of 256 px and 20 real renders, mixed;"
        " right: the first name is the thing or its kind",
        "python tools/measure/blind_reader.py EMOJI_SET OUT --named NAMES.json",
        shares={
            source: share([o["right"] for o in pictures if o["source"] == source])
            for source in ("sample", "render")
        },
        pictures=pictures,
    )


if __name__ == "__main__":
    main()
