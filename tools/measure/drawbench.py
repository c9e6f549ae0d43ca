"""A run card and a grid of what `imagen-nb drawbench MODEL` has drawn and scored.

    imagen-nb drawbench toy --out DRAWN
    python tools/measure/drawbench.py DRAWN --out data/runs/drawbench-toy.json

The card holds the scores by category and by kind of atom. The grid shows the first prompts of each category, the first
picture of each, none chosen.
"""

import argparse
import json
from pathlib import Path

from cards import RUNS, write_card

from imagen_nb.drawbench import CATEGORIES, own_prompts
from imagen_nb.plots import show_images
from imagen_nb.runs.drawbench import file_of, read_picture

SHOWN = 2  # prompts of a category in the grid


def rounded(value):
    "Numbers with four decimals, at any depth."
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def world_of(asked: list[list[str]]) -> str:
    "Which part of our suite was asked for."
    for world in ("shapes", "emoji"):
        if asked == [[p.category, p.text] for p in own_prompts(world)]:
            return world
    return "own" if asked == [[p.category, p.text] for p in own_prompts()] else "other"


def grid(folder: Path, asked: list[list[str]], path: Path):
    "The first prompts of each category."
    own = [[k for k, (name, _) in enumerate(asked) if name == one][:SHOWN] for one in CATEGORIES]
    chosen = [k for ks in own for k in ks]
    images = [read_picture(file_of(folder, k, 0)) for k in chosen]
    show_images(images, ["\n".join(asked[k]) for k in chosen], 8, path, width=1.05)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="folder that `imagen-nb drawbench` has filled")
    p.add_argument("--out", type=Path, default=RUNS / "drawbench.json", help="the card")
    args = p.parse_args()
    request, scores = (
        json.loads((args.folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("request", "scores")
    )
    write_card(
        args.out,
        "scores of our DrawBench suite by category and by kind of atom: means over prompts, 95 % intervals",
        f"imagen-nb drawbench {request['model']} --n {scores['n']}",
        model=request["model"],
        options=request["options"],
        world=world_of(request["prompts"]),
        prompts=len(request["prompts"]),
        n=scores["n"],
        categories=rounded(scores["categories"]),
        kinds=rounded(scores["kinds"]),
    )
    grid(args.folder, request["prompts"], args.out.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
