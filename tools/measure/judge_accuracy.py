"""How well does the judge read real renders that it was not trained on? `data/runs/judge.json`.

    python tools/measure/judge_accuracy.py EMOJI_SET --judge RUN/judge --other FOLDER --ship data/judge

*Unseen pairs* are renders of an object in a style that the judge never saw together. *New views* are renders that
it knows, drawn again from 256 px by another program than the one that varies pictures in training: moved by up to
2 of 32 pixels, .85 to 1.1 times as large, turned by up to 8 degrees, blurred as a sample is, through JPEG.
*Another drawer* is a fifth style that it was never shown: the gradient version of Fluent (npm
@iconify-json/fluent-emoji 1.2.7, MIT; FOLDER is the unpacked package).
"""

import argparse
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from cards import ROOT, RUNS, write_card
from PIL import Image, ImageFilter
from torch import Tensor

from imagen_nb.evaluation import wilson
from imagen_nb.lab.judge import Judge
from imagen_nb.pictures.emoji import Icons, draw_svg, slug
from imagen_nb.pictures.pixels import to_square

sys.path.insert(0, str(ROOT / "tools" / "make"))
from judge import is_unseen, read_rows


def new_view(picture: Image.Image, key: str, size: int) -> Tensor:
    "The same drawing seen a little differently, (3 size size) in [-1, 1]."
    rng, side = random.Random(f"judge view {key}"), picture.width
    zoom = 1 / rng.uniform(0.85, 1.1)
    x, y = (rng.uniform(-2, 2) * side / size for _ in range(2))
    turned = picture.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor="white")
    a = side * (1 - zoom) / 2
    moved = turned.transform(
        (side, side),
        Image.Transform.AFFINE,
        (zoom, 0, a + x, 0, zoom, a + y),
        Image.Resampling.BICUBIC,
        fillcolor="white",
    )
    soft = moved.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8) * side / size))
    small = Image.fromarray(
        ((to_square(soft, size) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    )
    small.save(file := io.BytesIO(), "JPEG", quality=rng.randint(60, 95))
    return to_square(Image.open(file).convert("RGB"), size)


def other_drawings(folder: Path, rows: list[dict], size: int) -> tuple[Tensor, list[dict]]:
    "Each object and tone, drawn in gradients."
    icons, found, images = Icons(folder), [], []
    for thing, tone in dict.fromkeys((row["object"], row["tone"]) for row in rows):
        svg = icons.svg(f"{slug(thing)}-{tone}" if tone else slug(thing))
        if svg is None:
            continue
        ground = Image.new("RGBA", (256, 256), "white")
        ground.alpha_composite(draw_svg(svg, 256))
        images.append(to_square(ground.convert("RGB"), size))
        found.append(dict(object=thing, tone=tone, style=None))
    return torch.stack(images), found


def share(marks: list[bool]) -> dict | None:
    "Right answers with their Wilson interval; None if nothing was asked."
    if not marks:
        return None
    low, high = wilson(sum(marks), len(marks))
    return dict(
        share=round(sum(marks) / len(marks), 4),
        low=round(low, 4),
        high=round(high, 4),
        n=len(marks),
    )


def accuracy(judge: Judge, images: Tensor, rows: list[dict]) -> dict:
    "Top-1 and top-5 among all objects, style, and tone where the object has tones."
    found, toned = judge.read(images), set(judge.world.toned)
    pairs = list(zip(rows, found))
    marks = dict(
        object=[r["object"] == f.object for r, f in pairs],
        top5=[r["object"] in f.top5 for r, f in pairs],
        style=[r["style"] == f.style for r, f in pairs if r["style"]],
        tone=[r["tone"] == f.tone for r, f in pairs if r["object"] in toned],
    )
    return {name: share(m) for name, m in marks.items()}


def pictures_of(data: Path, judge: Judge, n: int) -> Iterator[tuple[str, Tensor, list[dict]]]:
    "Kinds of real renders, and what is true of them."
    rows, size = read_rows(data), judge.config.size

    def picture(row):
        return Image.open(data / row["split"] / row["file_name"]).convert("RGB")

    def plain(some):
        return torch.stack([to_square(picture(row), size) for row in some])

    unseen = [row for row in rows if is_unseen(row)]
    known = [row for row in rows if not is_unseen(row)]
    some = random.Random("judge views").sample(known, min(n, len(known)))
    views = torch.stack([new_view(picture(row), row["file_name"], size) for row in some])
    is_held = torch.tensor([row["split"] == "test" for row in some])
    yield "unseen pairs", plain(unseen), unseen
    yield "known renders", plain(some), some
    yield "new views of known renders", views, some
    held = [row for row in some if row["split"] == "test"]
    yield "new views of renders that no diffusion model trained on", views[is_held], held


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `make_emoji` wrote")
    p.add_argument("--judge", help="folder of a judge; none: the shipped one")
    p.add_argument("--other", type=Path, help="unpacked package of another artist")
    p.add_argument("--views", type=int, default=1000, help="how many known renders are seen anew")
    p.add_argument("--out", type=Path, default=RUNS / "judge.json")
    p.add_argument(
        "--ship", type=Path, help="save the judge there, with these figures in its README"
    )
    args = p.parse_args()
    judge = Judge.from_pretrained(args.judge) if args.judge else Judge.shipped()
    found = {
        name: accuracy(judge, images, rows)
        for name, images, rows in pictures_of(args.data, judge, args.views)
    }
    if args.other:
        found["emoji of another artist"] = accuracy(
            judge, *other_drawings(args.other, read_rows(args.data), judge.config.size)
        )
    training = Path(args.judge).with_name("training.json") if args.judge else None
    known_how = json.loads(training.read_text()) if training and training.exists() else {}
    card = write_card(
        args.out,
        "accuracy of the judge on real renders, shares with 95 % Wilson intervals",
        "python tools/measure/judge_accuracy.py EMOJI_SET --judge RUN/judge --other FOLDER",
        objects=len(judge.world.objects),
        parameters=sum(q.numel() for q in judge.parameters()),
        chance=round(1 / len(judge.world.objects), 5),
        accuracy=found,
        training=known_how,
    )
    for name, marks in found.items():
        told = ", ".join(
            f"{k} {100 * m['share']:.1f} ({100 * m['low']:.1f}-{100 * m['high']:.1f}; {m['n']})"
            for k, m in marks.items()
            if m
        )
        print(f"{name}: {told}")
    if args.ship:
        judge.save_pretrained(args.ship, card=card)


if __name__ == "__main__":
    main()
