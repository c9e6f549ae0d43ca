"""A look at pictures before training: `imagen-nb data`."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.emoji import beyond_emoji
from imagen_nb.plots import add_picture, show_stages
from imagen_nb.recipes import Recipe
from imagen_nb.store.files import picture_file
from imagen_nb.store.text_models import find_folder, is_shipped, load_tokenizer, loss_lines
from imagen_nb.text import token_numbers

__all__ = ["beyond", "look", "spelled"]

KEPT = 128  # tokens of a caption, by default
COUNTED = 10_000  # captions, at most


def look(
    source: str,  # folder, file or hub name
    recipe: Recipe,  # whose sizes and steps count
    out: str | Path,  # PNG file for the grid
    encoder: str | None = None,  # whose tokens are counted; None: the recipe's, if it ships
    **options,  # of `load_captioned`
):
    "Say what is in a source, what is left out and why, and draw what a network would receive."
    sizes, out = [stage.size for stage in recipe.stages], picture_file(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says it all
        pictures = load_captioned(source, sizes[-1], max_skipped=1, **options)
        print(pictures.report())
        if encoder or is_shipped(recipe.encoder):
            for line in words(encoder or recipe.encoder, pictures):
                print(line)
        for line in forecast(pictures, recipe):
            print(line)
        some = evenly(pictures, 8)
        captions = [pictures.caption(i) for i in some]
        grid = show_stages(captions, [pictures.images(some, size) for size in sizes])
        out = add_picture(grid, out)
    print(
        f"{out}: pictures as the stages of {recipe.name} receive them,"
        f" {', '.join(map(str, sizes))} px"
    )


def evenly(pictures, most: int) -> list[int]:
    "Indices from all over the data."
    return list(range(len(pictures)))[:: max(1, len(pictures) // most)][:most]


def words(name: str, pictures) -> Iterator[str]:
    "What an encoder makes of captions, the first ten thousand of them; its tokenizer alone is loaded."
    several = (pictures.captions(i) or [""] for i in range(min(COUNTED, len(pictures))))
    captions = list(dict.fromkeys(caption for some in several for caption in some))
    folder, label = find_folder(name)
    tokenizer = load_tokenizer(str(folder or name))
    most = min(KEPT, tokenizer.model_max_length)
    ids, cut, unknown = token_numbers(tokenizer, captions, most)
    yield f"tokens: at most {max(map(len, ids))} of {most}; {cut} captions are cut there"
    yield from loss_lines(0, unknown, most, label)
    if name == "toy" and (strange := spelled(tokenizer, captions)):
        yield (
            f"words the toy encoder has never met, and only spells: {len(strange)}, as {', '.join(strange[:5])}; \n"
            "  one that reads real language: imagen-nb train ... --encoder english"
        )


def spelled(tokenizer, captions: list[str]) -> list[str]:
    "Words that a tokenizer takes to pieces."
    words = dict.fromkeys(
        word for caption in captions for word in caption.replace(",", " ").split()
    )
    return [word for word in words if len(tokenizer.tokenize(word)) > 1]


def beyond(
    model: str,  # as the user named it
    tokenizer,  # of its encoder
    captions: list[str],
) -> Iterator[str]:  # a line for each kind of loss; nothing is known of a model that does not ship
    "What a shipped model was never shown."
    if model == "toy" and (strange := spelled(tokenizer, captions)):
        yield f"the toy encoder has never met, and only spells: {', '.join(strange)}"
    if model == "emoji":
        for caption in captions:
            if why := beyond_emoji(caption):
                yield f"emoji was never shown {why}; it draws one thing on white: {caption[:60]!r}"


def forecast(pictures, recipe, most: int = 32) -> Iterator[str]:
    "For each stage: epochs a recipe takes, pictures that are too small, and how long reading an epoch would take."
    sides, chosen = pictures.catalog.sizes(), evenly(pictures, most)
    for k, (stage, training) in enumerate(zip(recipe.stages, recipe.training)):
        since = time.perf_counter()
        for i in chosen:
            pictures.images([i], stage.size)
        seconds = (time.perf_counter() - since) / len(chosen) * len(pictures)
        epochs = training.steps * training.batch / len(pictures)
        yield (
            f"stage {k}, {stage.size} px: {training.steps:,} steps of {training.batch} are {epochs:,.1f} epochs;"
            f" {int((sides < stage.size).sum())} pictures are smaller and would be enlarged;"
            f" reading all once takes {clock(seconds)} on one core, by {len(chosen)} of them"
        )


def clock(seconds: float) -> str:
    "A time for people."
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
