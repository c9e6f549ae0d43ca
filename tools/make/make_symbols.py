"""Make a folder of captioned pictures that ShapesWorld did not draw: `python tools/make/make_symbols.py FOLDER`.

Symbols of the font DejaVu Sans (it comes with matplotlib), printed in ink on grainy paper, with their Unicode names.
"""

import argparse
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SYMBOLS = "♞♜♛♝♣♥♠☂☃☎☼☾★☁♨⚓⚔⚖⚙⚡✂✈✉✎❄❀☯☮☠☺⌂⚛♪♫⌘➜☘⚑☕♿"
INKS = dict(
    red=(190, 30, 45),
    blue=(35, 60, 160),
    green=(20, 110, 60),
    black=(30, 28, 30),
    orange=(225, 110, 15),
    purple=(105, 40, 130),
)
PAPERS = dict(
    white=(248, 246, 240), yellow=(245, 222, 120), pink=(245, 190, 200), gray=(170, 170, 168)
)
ARRANGEMENTS = ("in {ink} ink on {paper} paper", "printed {ink} on {paper}")


def name(symbol: str) -> str:
    "Its Unicode name without the words that only typographers need."
    words = unicodedata.name(symbol).lower().split()
    return " ".join(
        o for o in words if o not in ("black", "white", "suit", "sign", "of", "symbol", "heavy")
    )


def paper(rng: np.random.Generator, colour: tuple, size: int) -> np.ndarray:
    "A sheet (size size 3): its colour, light from one side, grain and fibres."
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 14 * (x * np.cos(angle) + y * np.sin(angle))
    coarse = Image.fromarray(
        rng.normal(128, 40, (size // 8, size // 8)).clip(0, 255).astype("uint8")
    ).resize((size, size), Image.BICUBIC)
    grain = rng.normal(0, 3, (size, size)) + (np.asarray(coarse, dtype=float) - 128) * 0.08
    return np.array(colour, dtype=float) + (light + grain)[..., None]


def picture(seed: int, symbol: str, ink: str, sheet: str, size: int) -> Image.Image:
    "One print: turned a little, never quite in the middle, the ink a little uneven."
    import matplotlib

    rng = np.random.default_rng(seed)
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
    left, top, right, bottom = font.getbbox(symbol)
    font = font.font_variant(
        size=int(size * size * rng.uniform(0.62, 0.72) / max(right - left, bottom - top))
    )
    left, top, right, bottom = font.getbbox(symbol)
    mask = Image.new("L", (size, size))
    shift = rng.uniform(-0.06, 0.06, 2) * size
    corner = (size - left - right) / 2 + shift[0], (size - top - bottom) / 2 + shift[1]
    ImageDraw.Draw(mask).text(corner, symbol, 255, font)
    mask = mask.rotate(rng.uniform(-12, 12), Image.BICUBIC).filter(
        ImageFilter.GaussianBlur(size / 500)
    )
    blots = Image.fromarray(rng.uniform(190, 255, (size // 16, size // 16)).astype("uint8")).resize(
        (size, size), Image.BICUBIC
    )
    alpha = (
        np.asarray(mask, dtype=float)[..., None]
        / 255
        * np.asarray(blots, dtype=float)[..., None]
        / 255
    )
    pixels = (
        paper(rng, PAPERS[sheet], size) * (1 - alpha) + np.array(INKS[ink], dtype=float) * alpha
    )
    return Image.fromarray(pixels.round().clip(0, 255).astype("uint8"))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--n", type=int, default=800, help="pictures (default 800)")
    p.add_argument("--size", type=int, default=512, help="side in pixels (default 512)")
    args = p.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(0), []
    for i in range(args.n):
        symbol, ink, sheet = (
            SYMBOLS[i % len(SYMBOLS)],
            rng.choice(list(INKS)),
            rng.choice(list(PAPERS)),
        )
        caption = f"{name(symbol)} {rng.choice(ARRANGEMENTS).format(ink=ink, paper=sheet)}"
        picture(i, symbol, ink, sheet, args.size).save(args.folder / f"{i:04d}.jpg", quality=90)
        rows.append(dict(file_name=f"{i:04d}.jpg", text=caption))
    (args.folder / "metadata.jsonl").write_text(
        "".join(json.dumps(o) + "\n" for o in rows), encoding="utf-8"
    )
    captions = {o["text"] for o in rows}
    print(f"{args.folder}: {args.n} pictures of {len(SYMBOLS)} symbols, {len(captions)} captions")


if __name__ == "__main__":
    main()
