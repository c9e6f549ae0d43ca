"""A look at pictures before training, and what to do with them: `imagen-nb data`."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from imagen_nb.pictures.captioned import evenly, load_captioned
from imagen_nb.plots import add_picture, show_stages
from imagen_nb.recipes import Recipe, find_recipe
from imagen_nb.runs.pace import clock
from imagen_nb.runs.verdict import verdict
from imagen_nb.runs.words import ENGLISH, Reading, choose_encoder, count_words, spelled
from imagen_nb.store.config import counted
from imagen_nb.store.files import picture_file
from imagen_nb.store.text_models import find_folder, load_tokenizer, loss_lines
from imagen_nb.text import token_numbers

__all__ = ["look"]

KEPT = 128  # tokens of a caption, by default
COUNTED = 10_000  # pictures whose captions are read, at most


def look(
    source: str,  # folder, file or hub name
    recipe: str | None,  # whose sizes and steps count; None: the one that suits the captions
    out: str | Path,  # PNG file for the grid
    encoder: str | None = None,  # who would read the captions; None: who suits them
    is_timed: bool = True,  # time a few training samples
    **options,  # of `load_captioned`
):
    "Say what is in a source, what is left out and why, draw what a network would receive, and say what to do."
    out = picture_file(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says it all
        pictures = load_captioned(source, 64, max_skipped=1, **options)
        print(pictures.report())
        if len(pictures) > COUNTED:
            print(f"below, captions are of {counted(COUNTED, 'picture')} from all over")
        captions = captions_of(pictures)
        reading = who_reads(captions, encoder)
        wanted = find_recipe(recipe or ("toy" if reading.encoder in ("toy", "") else "emoji"))
        for lines in (read_by(reading, captions), forecast(pictures, wanted)):
            for line in lines:
                print(line)
        draw(pictures, wanted, out)
        print("verdict")
        for line in verdict(source, pictures, captions, wanted, reading, options, is_timed):
            print(f"  {line}")


def captions_of(pictures) -> list[str]:
    "Captions of ten thousand pictures from all over the data, as often as they occur."
    return [c for i in evenly(pictures, COUNTED) for c in pictures.captions(i) if c]


def who_reads(captions: list[str], encoder: str | None) -> Reading:
    "The encoder that was asked for, or the one that suits."
    suits = choose_encoder(count_words(captions))
    if encoder is None or encoder == suits.encoder:
        return suits._replace(is_given=encoder is not None)
    why = f"as you say; what would be chosen is {suits.encoder or 'any'} ({suits.why})"
    return Reading(encoder, why, is_given=True)


def draw(pictures, recipe: Recipe, out: Path):
    "A grid of what the stages would receive."
    some, sizes = evenly(pictures, 8), [stage.size for stage in recipe.stages]
    captions = [pictures.caption(i) for i in some]
    grid = show_stages(captions, [pictures.images(some, size) for size in sizes])
    print(
        f"{add_picture(grid, out)}: pictures as the stages of {recipe.name} receive them,"
        f" {', '.join(map(str, sizes))} px"
    )


def read_by(reading: Reading, captions: list[str]) -> Iterator[str]:
    "What an encoder makes of captions; its tokenizer alone is loaded, and none from the hub unasked."
    if (
        not reading.encoder
        or not captions
        or not (reading.is_given or reading.encoder in ("toy", ENGLISH))
    ):
        return
    folder, label = find_folder(reading.encoder)
    tokenizer = load_tokenizer(str(folder or reading.encoder))
    most = min(KEPT, tokenizer.model_max_length)
    ids, cut, unknown = token_numbers(tokenizer, list(dict.fromkeys(captions)), most)
    yield f"tokens: at most {max(map(len, ids))} of {most}; {counted(cut, 'caption is', 'captions are')} cut there"
    yield from loss_lines(0, unknown, most, label)
    words = count_words(captions)
    apart = spelled(tokenizer, words)
    told = f"words: {len(words):,} different; {len(words) - len(apart):,} are a token of {label}"
    if apart:
        told += f", {len(apart):,} are read in pieces, as {', '.join(apart[:5])}"
    yield told
    if apart and label == "t5-toy":
        yield "  the toy encoder has read about shapes alone: to it, words in pieces mean nothing"


def forecast(pictures, recipe: Recipe, most: int = 32) -> Iterator[str]:
    "For each stage: pictures that are too small, and how long reading an epoch would take."
    sides, chosen = pictures.sizes(), evenly(pictures, most)
    for k, stage in enumerate(recipe.stages):
        since = time.perf_counter()
        for i in chosen:
            pictures.images([i], stage.size)
        seconds = (time.perf_counter() - since) / len(chosen) * len(pictures)
        n = int((sides < stage.size).sum())
        small = counted(n, "picture is", "pictures are")
        yield (
            f"stage {k}, {stage.size} px: {small} smaller and would be enlarged;"
            f" reading all once takes {clock(seconds)} on one core, by {len(chosen)} of them"
        )
