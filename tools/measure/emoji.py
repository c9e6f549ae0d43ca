"""What does a model of the emoji world draw, when asked for what? A card and grids.

    python tools/measure/emoji.py MODEL EMOJI_SET --out OUT/emoji-scores.json

MODEL is a saved model or a run, finished or not; EMOJI_SET is what `make_emoji` wrote. First samples only, one seed
each, none chosen. They are read by the shipped judge, which never saw a sample. Parts: *trained* captions; *held
out*, things in a style and gestures in a skin tone that training never saw; *words* that no training caption holds;
*renamed*, the same words as `imagen-nb sample` reads them, as the nearest name of the set; *no tone*, gestures asked
for without a skin tone. For words the card also says what the text encoder knows without any picture: is the caption
of the thing the nearest among the captions of all things? What training saw beyond EMOJI_SET, as the set that
`imagen-nb emoji --more-styles` makes, is given as --bank: there the nearest training picture is looked for. Pictures
are kept in --work, so that the command can be stopped and goes on. The set has no people, so that nothing can be said
of gender.
"""

import argparse
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from cards import RUNS, write_card
from judge_accuracy import accuracy, read_rows, share
from PIL import Image
from torch import Tensor

from imagen_nb.cascade import Imagen
from imagen_nb.lab.judge import Judge, Reading
from imagen_nb.pictures.emoji import emoji_words, with_article
from imagen_nb.pictures.pixels import resize, to_square
from imagen_nb.plots import save_picture, show_images
from imagen_nb.runs.setup import load_recipe, make_encoder, trained_stages
from imagen_nb.runs.words import mean_vectors, reworded
from imagen_nb.store.checkpoint import newest_checkpoint
from imagen_nb.text import TextEncoder

SHOWN = 40  # pictures in a grid


@dataclass
class Model:
    "A cascade, and what to call it."

    imagen: Imagen
    steps: list[int]  # training steps of each stage, if a run; else none


def load_model(name: str, encoder: str | None) -> Model:
    "A saved model, or what a run has learnt so far."
    run = Path(name)
    if not (run / "config.json").exists():
        return Model(Imagen.from_pretrained(name, encoder), [])
    recipe = load_recipe(run)
    stages = [stage for stage in trained_stages(recipe, run) if stage.is_trained]
    found = [newest_checkpoint(run / f"{stage.config.size}px") for stage in stages]
    steps = [step[1]["step"] for step in found if step]
    return Model(Imagen(make_encoder(encoder or recipe.encoder), stages), steps)


# ---------------------------------------------------------------- what is asked for


def captions_of(rows: list[dict]) -> list[str]:
    "Their captions."
    return [row["caption"] for row in rows]


def asked_for(
    rows: list[dict], toned: tuple[str, ...], n: int, encoder: TextEncoder
) -> dict[str, list[dict]]:
    "At most n requests in each part: caption, object, style, tone, and the render if there is one."
    rng = random.Random("emoji captions")

    def some(split):
        of = [row | dict(caption=row["text"][0]) for row in rows if row["split"] == split]
        return rng.sample(of, min(n, len(of)))

    words = [
        dict(caption=f"a 3d emoji of {with_article(word)}", object=thing, style="3d", tone="")
        for word, thing in emoji_words().items()
    ]
    bare = [
        dict(caption=f"an emoji of {with_article(thing)}", object=thing, style=None, tone="")
        for _ in range(max(1, n // max(1, len(toned))))
        for thing in toned
    ]
    nearest = reworded("emoji", encoder, captions_of(words))
    renamed = [
        row | dict(caption=caption, word=word)
        for row, caption, word in zip(words, nearest, emoji_words())
    ]
    parts = {"trained": some("train"), "held out": some("test"), "words": words[:n]}
    if nearest != captions_of(words):  # another model's encoder searches no names
        parts["renamed"] = renamed[:n]
    return parts | {"no tone": bare[:n]}


# ---------------------------------------------------------------- drawing


def load_picture(path: Path) -> Tensor:
    "A picture that was kept, (3 h w)."
    picture = Image.open(path).convert("RGB")
    return to_square(picture, picture.width)


def draw(model: Model, asked: list[dict], folder: Path, stages: int, options: dict) -> dict:
    "Side -> pictures, one for each request; its number is its seed. What is kept is not drawn again."
    sizes = [stage.config.size for stage in model.imagen.stages[:stages]]

    def file(i, size):
        return folder / f"{i:04d}_{size}.png"

    left = [i for i in range(len(asked)) if not all(file(i, size).exists() for size in sizes)]
    for k in range(0, len(left), 16):
        some = left[k : k + 16]
        captions = [asked[i]["caption"] for i in some]
        found = model.imagen.sample(captions, seeds=some, stages=stages, return_all=True, **options)
        for size, images in zip(sizes, found):
            for i, image in zip(some, images):
                save_picture(image, file(i, size))
        print(
            f"{folder.name}: {len(asked) - len(left) + k + len(some)} of {len(asked)}", flush=True
        )
    return {
        size: torch.stack([load_picture(file(i, size)) for i in range(len(asked))])
        for size in sizes
    }


# ---------------------------------------------------------------- scores


def score(judge: Judge, asked: list[dict], images: Tensor) -> dict:
    "What the judge says, beside the same pictures held against other captions."
    shifted = asked[1:] + asked[:1]
    captions = [row["caption"] for row in asked]
    other = accuracy(judge, images, shifted)
    return accuracy(judge, images, asked) | dict(
        shuffled={name: other[name] for name in ("object", "style") if other[name]},
        cosine=round(judge.score(images, captions).mean().item(), 4),
        cosine_shuffled=round(judge.score(images, captions[1:] + captions[:1]).mean().item(), 4),
    )


def render_of(data: Path, row: dict, size: int) -> Tensor:
    "The render of a row of the set, (3 size size)."
    picture = Image.open(data / row["split"] / row["file_name"]).convert("RGB")
    return to_square(picture, size)


def is_memory(
    asked: list[dict], images: Tensor, true: Tensor, rows: list[dict], bank: Tensor
) -> dict:
    "Are samples nearer to a training picture than to the picture that was asked for? By pixels, at half size."

    def look(x):
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    size = bank.shape[-1]
    samples, training = look(resize(images, size)), look(bank)
    distance = torch.cdist(samples, training)
    near = distance.argmin(1).tolist()
    own = (samples - look(true)).norm(dim=1)
    return dict(
        nearest=near,
        same_object=share([rows[j]["object"] == row["object"] for j, row in zip(near, asked)]),
        same_render=share([rows[j]["text"] == row["text"] for j, row in zip(near, asked)]),
        nearer_to_asked=share((own <= distance.min(1).values + 1e-6).tolist()),
        distance_to_nearest=round(distance.min(1).values.median().item(), 3),
        distance_to_asked=round(own.median().item(), 3),
        render_to_nearest=round(torch.cdist(look(true), training).min(1).values.median().item(), 3),
    )


def by_style(asked: list[dict], found: list[Reading]) -> dict[str, dict | None]:
    "How often the thing is right, for each style that was asked for."
    right: dict[str, list[bool]] = {}
    for row, reading in zip(asked, found):
        right.setdefault(row["style"] or "any", []).append(reading.object == row["object"])
    return {style: share(marks) for style, marks in right.items()}


def tones(found: list[Reading]) -> dict[str, int]:
    "Skin tones that were read."
    return dict(Counter(f.tone or "none (yellow)" for f in found))


@torch.no_grad()
def nearest_names(encoder: TextEncoder, asked: list[dict], things: tuple[str, ...]) -> dict:
    "How often is the thing's own caption the nearest one, by the encoder's mean over words?"
    captions = [f"a 3d emoji of {with_article(thing)}" for thing in things]
    found = mean_vectors(encoder, [row["caption"] for row in asked])
    likeness = found @ mean_vectors(encoder, captions).T
    own = likeness[range(len(asked)), [things.index(row["object"]) for row in asked]]
    ahead = (likeness > own[:, None]).sum(1)  # captions that are nearer
    return dict(object=share((ahead < 1).tolist()), top5=share((ahead < 5).tolist()))


# ---------------------------------------------------------------- grids


def line(row: dict, found: Reading) -> str:
    "What stands under a picture: its caption, after the word that this replaces; the thing that was read, if another."
    word = f"{row['word']}: " if "word" in row else ""
    other = "" if found.object == row["object"] else f"\n[{found.object}]"
    return word + row["caption"] + other


def grid(path: Path, asked: list[dict], found: list[Reading], images: Tensor):
    "The first requests in their order."
    lines = list(map(line, asked[:SHOWN], found))
    show_images(large(images[:SHOWN]), lines, 10, path, width=1.0)


def large(images: Tensor) -> Tensor:
    "Pixels of small pictures stay square."
    k = max(1, 96 // images.shape[-1])
    return images.repeat_interleave(k, 2).repeat_interleave(k, 3)


def pairs(path: Path, asked: list[dict], triples: list[tuple[Tensor, Tensor, Tensor]]):
    "Sample, nearest training picture, the render that was asked for."
    names = ("nearest training picture", "the render asked for")
    lines = [text for row in asked for text in (row["caption"], *names)][: 3 * len(triples)]
    tiles = torch.stack([image for triple in triples for image in triple])
    show_images(large(tiles), lines, 9, path, width=1.0)


# ---------------------------------------------------------------- all of it


class Measured:
    "One model, measured part by part."

    def __init__(self, args):
        self.args, self.judge = (
            args,
            Judge.from_pretrained(args.judge) if args.judge else Judge.shipped(),
        )
        self.rows, self.seen = read_rows(args.data), args.bank or args.data
        self.training = [row for row in read_rows(self.seen) if row["split"] == "train"]
        self.model = load_model(args.model, args.encoder)
        self.stages = min(args.stages or 99, len(self.model.imagen.stages))
        options = dict(w=args.w, steps=args.steps)
        self.options = {name: v for name, v in options.items() if v is not None}
        step = "-".join(map(str, self.model.steps))
        self.work = args.work / f"{Path(args.model).name}-{step or 'saved'}"

    def bank(self) -> Tensor:
        "Training pictures at 32 px."
        return torch.stack([render_of(self.seen, row, 32) for row in self.training])

    def part(self, name: str, asked: list[dict], bank: Tensor | None) -> dict:
        "Draw, read, compare; grids beside the card."
        folder = self.work / name.replace(" ", "-")
        sides = draw(self.model, asked, folder, self.stages, self.options)
        about: dict = {f"{side} px": score(self.judge, asked, x) for side, x in sides.items()}
        side, images = list(sides.items())[-1]
        found = self.judge.read(images)
        about["by style"] = by_style(asked, found)
        stem = self.args.out.with_suffix("")
        grid(Path(f"{stem}-{folder.name}.png"), asked, found, images)
        if name == "words":
            things = self.judge.world.objects
            about["encoder alone"] = nearest_names(self.model.imagen.encoder, asked, things)
        if name == "no tone":
            about["tones"] = tones(found)
        if bank is not None and "file_name" in asked[0]:
            true = torch.stack([render_of(self.args.data, row, 32) for row in asked])
            about["real renders"] = accuracy(self.judge, true, asked)
            about["memory"] = told = is_memory(asked, images, true, self.training, bank)
            near = [bank[j] for j in told.pop("nearest")[:18]]
            own = zip(resize(images[:18], 32), near, true)
            pairs(Path(f"{stem}-{folder.name}-memory.png"), asked, list(own))
        return about

    def all(self) -> dict:
        "Every part."
        parts = asked_for(self.rows, self.judge.world.toned, self.args.n, self.model.imagen.encoder)
        bank = None if self.args.no_memory else self.bank()
        return {name: self.part(name, asked, bank) for name, asked in parts.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", help="folder of a model or of a run")
    p.add_argument("data", type=Path, help="folder that `make_emoji` wrote")
    p.add_argument("--encoder", help="folder of the text encoder; none: the one that is named")
    p.add_argument("--judge", help="folder of a judge; none: the shipped one")
    p.add_argument("--bank", type=Path, help="pictures of training, if more than DATA's")
    p.add_argument("--n", type=int, default=200, help="captions in a part, at most")
    p.add_argument("--stages", type=int, help="use the first so many; none: all that are trained")
    p.add_argument("--w", type=float, help="guidance weight; none: the model's own")
    p.add_argument("--steps", type=int, help="of the sampler; none: the model's own")
    p.add_argument("--no-memory", action="store_true", help="compare no training pictures")
    p.add_argument("--work", type=Path, default=Path("emoji-work"), help="where pictures are kept")
    p.add_argument("--out", type=Path, default=RUNS / "emoji-scores.json", help="the card")
    args = p.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = Measured(args)
    found = measured.all()
    write_card(
        args.out,
        "what the emoji model draws, read by the judge: shares with 95 % Wilson intervals",
        f"python tools/measure/emoji.py MODEL EMOJI_SET --n {args.n}"
        + " --bank MORE_STYLES" * bool(args.bank),
        trained_steps=measured.model.steps,
        options=measured.options,
        training_pictures=len(measured.training),
        chance=dict(object=round(1 / len(measured.judge.world.objects), 5), style=0.25),
        parts=found,
    )
    for name, about in found.items():
        for side, marks in about.items():
            if side.endswith("px"):
                shares = {
                    k: 100 * m["share"]
                    for k, m in marks.items()
                    if isinstance(m, dict) and "share" in m
                }
                told = ", ".join(f"{k} {v:.1f}" for k, v in shares.items())
                print(
                    f"{name}, {side}: {told}; shuffled {marks['shuffled']['object']['share']:.3f}"
                )


if __name__ == "__main__":
    main()
