"""What to do with some pictures: are they enough, who reads their captions, and the command to type next."""

import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from imagen_nb.pictures.captioned import WHERE
from imagen_nb.recipes import Recipe
from imagen_nb.runs.pace import pace
from imagen_nb.runs.words import ENGLISH, Reading
from imagen_nb.stage import StageConfig
from imagen_nb.store.checkpoint import load_meta
from imagen_nb.store.config import config_from_dict
from imagen_nb.store.files import is_hub_name
from imagen_nb.store.hub import find_model

__all__ = ["verdict"]

# Networks of the toy's size drew what was asked for after 39 epochs of 367 emoji and 86 of 779; data/runs/symbols.json
# has 800 symbols and 78 epochs
TRIED, EPOCHS = 367, 60
LEAST = 300  # steps of a base; the shortest of those runs
PAPER = 1_000_000  # pictures for the paper's networks: a rule of thumb
MODELS = {"toy": "toy", ENGLISH: "emoji", "": "toy"}  # encoder -> the model that ships with it


def verdict(
    source: str,  # as it was given
    pictures,  # that lie there
    captions: list[str],  # of theirs
    recipe: Recipe,  # that would be trained
    reading: Reading,  # by whom captions would be read
    options: dict,  # of `load_captioned`, as they were given
    is_timed: bool = True,  # by a few training samples; False: epochs alone
) -> Iterator[str]:
    "Enough pictures? Captions that say something? How long here? What to type next?"
    recipe, stages = plan(recipe, len(pictures), reading)
    yield f"pictures: {enough(len(pictures), recipe)}"
    yield f"captions: {repeated(captions)}"
    yield f"encoder: {reading.encoder or 'any'} ({reading.why}){fetched(reading.encoder)}"
    yield from pace(pictures, recipe, stages, is_timed)
    yield from next_commands(source, recipe, reading, options, pictures.caption(0))


def enough(n: int, recipe: Recipe) -> str:
    "Are these enough pictures for the networks of a recipe?"
    if recipe.name == "paper":
        word = "too few" if n < PAPER else "perhaps enough"
        return f"{n:,} are {word} for the paper's networks; a rule of thumb asks for {PAPER:,}, they had 860 million"
    if n < TRIED:
        return f"{n:,} are fewer than were ever tried ({TRIED}): networks will copy them, whatever the caption says"
    return f"{n:,} are enough for networks of this size, which learned {TRIED} and more, nearly by heart"


def fetched(encoder: str) -> str:
    "What an encoder costs that does not ship."
    return "; training fetches it from the hub" if is_hub_name(encoder) else ""


def repeated(captions: list[str]) -> str:
    "How many captions are said more than once, or where they are looked for."
    if not captions:
        return f"none; {WHERE}"
    counts = Counter(captions)
    told = f"{len(counts):,} different of {len(captions):,}"
    if len(counts) == len(captions):
        return told
    shared = sum(n for n in counts.values() if n > 1)
    (most, n), *_ = counts.most_common(1)
    return f"{told}; {shared:,} belong to more than one picture, {most[:60]!r} to {n:,}"


def plan(
    recipe: Recipe,
    n: int,  # pictures
    reading: Reading,
) -> tuple[Recipe, list[int]]:  # as it suits these pictures; the stages to train
    "From a model that ships if one reads with this encoder, and then the base alone; as many epochs as were tried."
    everything = list(range(len(recipe.stages)))
    if recipe.name == "paper":
        return recipe, everything
    base, *others = recipe.training
    steps = min(base.steps, max(LEAST, -(-EPOCHS * n // base.batch)))
    recipe = replace(recipe, training=(replace(base, steps=steps), *others))
    model = MODELS.get(reading.encoder)
    stages = stages_of(model) if model else ()
    if len(stages) == len(recipe.stages):
        return replace(recipe, init=model, stages=stages), [0]
    return recipe, everything


def stages_of(model: str) -> tuple[StageConfig, ...]:
    "Stages of a model that ships; none, if no model of that name does."
    with suppress(ValueError, OSError):
        return tuple(map(config_from_dict, load_meta(find_model(model)).get("stages", ())))
    return ()


def next_commands(
    source: str, recipe: Recipe, reading: Reading, options: dict, caption: str
) -> Iterator[str]:
    "What to type, literally."
    out = f"runs/{Path(source).resolve().stem}"
    train = ["imagen-nb", "train", recipe.name, "--data", source]
    for key in ("image_column", "caption_column", "min_size", "held_out"):
        if options.get(key):
            train += [f"--{key.replace('_', '-')}", str(options[key])]
    if reading.encoder:
        train += ["--encoder", reading.encoder]
    if recipe.init:
        train += ["--init", recipe.init, "--stage", "0"]
    if recipe.name != "paper":
        train += ["--set", f"training.0.steps={recipe.training[0].steps}"]
    yield f"next: {shlex.join([*train, '--out', out])}"
    yield f"then: {shlex.join(['imagen-nb', 'sample', caption, '--model', out])}"
