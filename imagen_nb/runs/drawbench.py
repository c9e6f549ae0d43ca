"""`imagen-nb drawbench` draws prompts by category and scores them; `imagen-nb rate` asks people which is better."""

import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.drawbench import (
    CATEGORIES,
    Prompt,
    answers,
    by_category,
    by_kind,
    own_prompts,
    preferences,
)
from imagen_nb.lab.judge import Judge
from imagen_nb.lab.prompts import read_published
from imagen_nb.lab.rating import (
    LEAST,
    Pair,
    control_scores,
    decode,
    make_trials,
    picture_address,
    read_ratings,
    write_page,
)
from imagen_nb.plots import preference_bars, save_picture, show_images
from imagen_nb.runs.results import count_trained
from imagen_nb.store.card import table
from imagen_nb.store.config import counted
from imagen_nb.store.files import as_path, replace_text, writable_folder

__all__ = [
    "choose_prompts",
    "count_ratings",
    "drawbench",
    "make_rating",
    "rating_table",
    "score_table",
]

TOGETHER = 8  # pictures drawn at a time
SHOWN = 24  # in a grid


# ---------------------------------------------------------------- what is asked for


def choose_prompts(
    source: str,  # "own", "shapes", "emoji"; a file, or a dataset of the hub
) -> list[Prompt]:
    "Our suite, or one world of it, or prompts of others, which nobody here can score."
    if source in ("own", "shapes", "emoji"):
        return list(own_prompts(None if source == "own" else source))
    return [Prompt(category, "", text, ()) for category, text in read_published(source)]


def settle(folder: Path, request: dict) -> int:
    "Write down what is drawn here, or refuse a folder with other pictures; pictures of a prompt so far."
    path = folder / "request.json"
    if not path.exists():
        replace_text(path, json.dumps(request, ensure_ascii=False, indent=1))
        return request["n"]
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in request.keys() - {"n"}:
        if before.get(name) != request[name]:
            raise ValueError(
                f"drawbench: {folder} holds pictures with another {name}; choose another --out"
            )
    n = max(before["n"], request["n"])
    replace_text(path, json.dumps(request | dict(n=n), ensure_ascii=False, indent=1))
    return n


# ---------------------------------------------------------------- pictures


def file_of(folder: Path, k: int, i: int) -> Path:
    "Picture i of prompt k."
    return folder / "pictures" / f"{k:04d}-{i}.png"


def read_picture(path: Path) -> Tensor:
    "A picture that was kept, (3 h w) in [-1, 1]."
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def draw(imagen: Imagen, prompts: Sequence[Prompt], n: int, folder: Path, options: dict):
    "Draw what is not there yet. The seed of a picture is its number, whatever was drawn before."
    from tqdm.auto import tqdm

    (folder / "pictures").mkdir(exist_ok=True)
    every = [(k, i) for i in range(n) for k in range(len(prompts))]
    left = [one for one in every if not file_of(folder, *one).exists()]
    stages = max(count_trained(imagen), 1)
    with tqdm(
        total=len(every), initial=len(every) - len(left), desc="drawing", unit="picture"
    ) as bar:
        for start in range(0, len(left), TOGETHER):
            part = left[start : start + TOGETHER]
            texts, seeds = (
                [prompts[k].text for k, _ in part],
                [k + len(prompts) * i for k, i in part],
            )
            images = imagen.sample(texts, seeds=seeds, stages=stages, **options)
            for one, image in zip(part, images):
                save_picture(image, file_of(folder, *one))
                bar.update()


# ---------------------------------------------------------------- scores


def score_all(prompts: Sequence[Prompt], n: int, folder: Path) -> list[list[bool | None]]:
    "Answers of each picture, n of a prompt, prompt by prompt."
    judge = Judge.shipped() if any(p.world == "emoji" for p in prompts) else None
    out = []
    for k, prompt in enumerate(prompts):
        images = torch.stack([read_picture(file_of(folder, k, i)) for i in range(n)])
        out += answers([prompt] * n, images, judge)
    return out


def cell(found: dict) -> str:
    "A mean in per cent with its interval."
    if not found:
        return "–"
    mean, low, high = (100 * found[k] for k in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f}–{high:.1f})"


def score_table(scores: dict) -> str:
    "Scores by category, in Markdown."
    rows = [
        (name, own["asked"], cell(own["atoms"]), own["atoms"].get("n", 0), cell(own["all_right"]))
        + (own["all_right"].get("n", 0),)
        for name, own in scores["categories"].items()
    ]
    head = ("category", "prompts", "atoms right, %", "of prompts", "all right, %", "of prompts")
    return table(head, rows)


# ---------------------------------------------------------------- what is shown

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem }
:root { color-scheme: light dark }
.prompts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 48%; height: auto; margin: 1% }
.yes { color: #2a6fb0 } .no { color: #c2571a } .unread { opacity: .65 }
table { border-collapse: collapse } td, th { padding: .15rem .6rem; text-align: right } .wide { overflow-x: auto }
td:first-child, th:first-child { text-align: left } ul { margin: .2rem 0; padding-left: 1.1rem; font-size: .85rem }
"""


def told(prompt: Prompt, said: Sequence[Sequence[bool | None]]) -> Iterator[str]:
    "A line for each atom: in how many pictures it holds."
    for k, atom in enumerate(prompt.atoms):
        marks = [bool(row[k]) for row in said if row[k] is not None]
        name = html.escape(f"{atom.kind}: {atom.words}")
        kind = "unread" if not marks else "yes" if all(marks) else "no"
        what = f"{sum(marks)} of {len(marks)}" if marks else "not scored"
        yield f'<li class="{kind}">{name} – {what}</li>'


def report_page(
    model: str, prompts: Sequence[Prompt], said: list, n: int, folder: Path, scores: dict
):
    "One HTML file: the table, then every prompt with its pictures and its atoms."
    head, _, *rows = [line.strip("| ").split(" | ") for line in score_table(scores).splitlines()]
    lines = ["".join(f"<td>{html.escape(v)}</td>" for v in row) for row in rows]
    parts = [
        f"<h1>DrawBench: {html.escape(model)}</h1><p>{counted(len(prompts), 'prompt')}, pictures of each: {n}."
        " Atoms right is the mean over prompts; all right is counted where each atom can be read."
        " In brackets: 95 % intervals.</p>",
        f'<div class="wide"><table><tr>{"".join(f"<th>{html.escape(v)}</th>" for v in head)}</tr>'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>",
    ]
    for category in dict.fromkeys(p.category for p in prompts):
        parts.append(f'<h2>{html.escape(category)}</h2><div class="prompts">')
        for k, prompt in enumerate(prompts):
            if prompt.category == category:
                files = [file_of(folder, k, i) for i in range(n)]
                tags = (
                    f'<img alt="picture {i + 1}" src="{picture_address(read_picture(f), 128)}">'
                    for i, f in enumerate(files)
                )
                atoms = "".join(told(prompt, said[k * n : (k + 1) * n]))
                parts.append(
                    f"<figure>{''.join(tags)}<figcaption>{html.escape(prompt.text)}</figcaption>"
                    f"<ul>{atoms}</ul></figure>"
                )
        parts.append("</div>")
    top = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>DrawBench: {html.escape(model)}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    text = f"{top}{view}<style>{STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    replace_text(folder / "report.html", text)


def grids(prompts: Sequence[Prompt], folder: Path):
    "A grid for each category: the first picture of each prompt."
    for category in dict.fromkeys(p.category for p in prompts):
        own = [k for k, p in enumerate(prompts) if p.category == category][:SHOWN]
        images = [read_picture(file_of(folder, k, 0)) for k in own]
        name = "".join(c if c.isalnum() else "-" for c in category.lower()).strip("-")
        show_images(
            images, [prompts[k].text for k in own], 6, folder / f"grid-{name}.png", title=category
        )


# ---------------------------------------------------------------- the commands


def drawbench(
    imagen: Imagen,  # a trained cascade
    model: str,  # its name, for the report
    source: str,  # see `choose_prompts`
    out: str | Path,  # folder: pictures, grids, report.html, scores.json
    n: int = 2,  # pictures of each prompt; the paper shows people 8
    options: dict | None = None,  # of `Imagen.sample`
) -> dict:  # scores: categories, kinds
    "Draw every prompt, score it, show it. Started again, it draws what is missing."
    prompts, folder, options = choose_prompts(source), writable_folder(out), options or {}
    asked = [[p.category, p.text] for p in prompts]
    n = settle(folder, dict(model=model, options=options, prompts=asked, n=n))
    draw(imagen, prompts, n, folder, options)
    said = score_all(prompts, n, folder)
    each = [prompt for prompt in prompts for _ in range(n)]
    scores = dict(categories=by_category(each, said), kinds=by_kind(each, said), n=n)
    replace_text(folder / "scores.json", json.dumps(scores, indent=1))
    report_page(model, prompts, said, n, folder, scores)
    grids(prompts, folder)
    return scores


def drawn(folder: Path) -> dict:
    "What `drawbench` has drawn there."
    path = folder / "request.json"
    if not path.exists():
        raise ValueError(f"rate: {folder}, expected a folder that imagen-nb drawbench has filled")
    return json.loads(path.read_text(encoding="utf-8"))


def pairs_of(a: Path, b: Path, each: int | None) -> list[Pair]:
    "Every prompt that both have drawn; `each`: at most so many of a category."
    first, second = drawn(a), drawn(b)
    places = {tuple(prompt): k for k, prompt in enumerate(second["prompts"])}
    n, out, taken = min(first["n"], second["n"]), [], dict.fromkeys(CATEGORIES, 0)
    for k, (category, text) in enumerate(first["prompts"]):
        other = places.get((category, text))
        taken[category] = taken.get(category, 0) + (other is not None)
        if other is None or (each and taken[category] > each):
            continue
        sides = [
            torch.stack([read_picture(file_of(where, place, i)) for i in range(n)])
            for where, place in ((a, k), (b, other))
        ]
        out.append(Pair(f"{category}: {text}", category, text, *sides))
    if not out:
        raise ValueError(f"rate: {a} and {b} have no prompt in common, expected at least one")
    return out


def make_rating(
    a: str | Path,  # folder of `drawbench`: model A
    b: str | Path,  # of model B
    out: str | Path,  # folder for rating.html and key.json
    protocol: str = "drawbench",  # or "coco": B holds the originals
    each: int | None = None,  # prompts of a category, at most; None: all
    seed: int = 0,  # decides which set comes first
) -> list[Path]:  # the page for raters; the key, which they must not see
    "A page that asks people which pictures are better."
    folder = writable_folder(out)
    page, key = make_trials(pairs_of(as_path(a), as_path(b), each), protocol, seed=seed)
    write_page(page, folder / "rating.html")
    replace_text(folder / "key.json", json.dumps(key | dict(protocol=protocol), indent=1))
    return [folder / "rating.html", folder / "key.json"]


def count_ratings(
    out: str | Path,  # folder of `make_rating`
    paths: Sequence[str | Path],  # files that raters sent
    names: tuple[str, str] = ("A", "B"),  # of the models
) -> dict:  # question -> category -> mean, low, high, n, agreement
    "What people said: results.json and preferences.png in the folder."
    folder = as_path(out)
    key, ratings = (
        json.loads((folder / "key.json").read_text(encoding="utf-8")),
        read_ratings(paths),
    )
    controls = control_scores(ratings, key)
    least = (
        LEAST if key["protocol"] == "coco" else None
    )  # DrawBench leaves nobody out (paper, section 3)
    rows = decode(ratings, key, least)
    if not rows:
        raise ValueError(
            f"rate: {counted(len(ratings), 'file')}, got no ratings that count, expected some;"
            f" right controls of each rater: {controls}"
        )
    found = preferences(rows)
    replace_text(
        folder / "results.json", json.dumps(dict(controls=controls, results=found), indent=1)
    )
    save_picture(preference_bars(found, names), folder / "preferences.png")
    return found


def rating_table(found: dict) -> str:
    "Results in Markdown."
    rows = [
        (question, name, cell(own), own["n"], f"{own['agreement']:.2f}")
        for question, categories in found.items()
        for name, own in categories.items()
    ]
    return table(("question", "category", "A, %", "ratings", "agreement"), rows)
