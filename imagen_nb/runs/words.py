"""Words of captions: which of them a text encoder knows, which encoder should read them, and what else they mean."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from imagen_nb.pictures.emoji import (
    beyond_emoji,
    emoji_keywords,
    emoji_objects,
    renamed,
    stem,
    unnamed,
)
from imagen_nb.store.files import assets
from imagen_nb.store.text_models import find_folder, load_tokenizer
from imagen_nb.text import TextEncoder

__all__ = [
    "ENGLISH",
    "MULTILINGUAL",
    "Reading",
    "beyond",
    "choose_encoder",
    "count_words",
    "mean_vectors",
    "nearest_names",
    "renamings",
    "reworded",
    "spelled",
]

ENGLISH = "english"  # the encoder that ships and has read real language
MULTILINGUAL = "google/mt5-base"  # a T5 of 101 languages; the hub has it
# Shares of running words that a tokenizer takes to pieces, counted in the same sentences in seventy languages
# (tools/measure/caption_words.py): the toy's none of ShapesWorld's and six tenths of English; the English one's a tenth
# of English, and four tenths or more of every other language in Latin letters
OWN, FOREIGN = 0.05, 0.25
FEW = 50  # words: with fewer a share says little, and Latin letters are taken for English. A rule of thumb
NEAR = 0.5  # likeness of a text to a name. Of 116 English words the right names are all nearer, seven phrases in
# French, German, Spanish and Italian are all farther from any name. A rule of thumb
LATIN = 0.95  # of the letters of English, or more. A Chinese one says as much as three: a caption in five is seen


class Reading(NamedTuple):
    "Who should read some captions."

    encoder: str  # a name to load it by; empty: the captions have no words
    why: str  # for people
    is_given: bool = False  # by the user


def count_words(captions: Iterable[str]) -> Counter[str]:
    "Runs of letters, and how often each occurs."
    return Counter(word for caption in captions for word in re.findall(r"[^\W\d_]+", caption))


def spelled(
    tokenizer,  # of `transformers`
    words: Iterable[str],
) -> list[str]:  # in their order
    "Words that a tokenizer takes to pieces, or does not know at all."
    unknown = tokenizer.unk_token
    pieces = ((word, tokenizer.tokenize(word)) for word in words)
    return [word for word, parts in pieces if len(parts) > 1 or unknown in parts]


def beyond(
    model: str,  # as the user named it
    tokenizer,  # of its encoder
    captions: list[str],
) -> Iterator[str]:  # a line for each kind of loss; nothing is known of a model that does not ship
    "What a shipped model was never shown."
    if model == "toy" and (strange := spelled(tokenizer, count_words(captions))):
        yield f"the toy encoder has never met, and only spells: {', '.join(strange)}"
    if model == "emoji":
        for caption in captions:
            if why := beyond_emoji(caption):
                yield f"emoji was never shown {why}; it draws one thing on white, by its English name: {caption[:60]!r}"


def mean_vectors(
    encoder: TextEncoder,
    texts: list[str],
) -> Tensor:  # (b d), of length 1
    "What a sentence encoder makes of a text: the mean over its words."
    tokens, mask = encoder(texts)  # padding is zero
    return normalize(tokens.float().sum(1) / mask.sum(1, keepdim=True), dim=1).cpu()


@cache
def _names() -> Tensor:  # (n d), of length 1, in the order of `emoji_objects`
    "The mean of all that training captions call a thing (`tools/make/emoji_names.py`)."
    held = load_file(assets() / "emoji-names.safetensors")
    return normalize(held["vectors"].float() * held["scale"].float(), dim=1)


def _stems(text: str) -> tuple[str, ...]:
    "*boxes* and *a box* alike."
    return tuple(stem(w) for w in re.findall(r"\w+", text.lower()) if w not in ("a", "an", "the"))


@cache
def _owners() -> dict[tuple[str, ...], list[int]]:
    "Places of the things that have this name, or else this keyword."
    names: dict[tuple[str, ...], list[int]] = {}
    keywords: dict[tuple[str, ...], list[int]] = {}
    for i, thing in enumerate(emoji_objects()):
        names.setdefault(_stems(thing), []).append(i)
        for word in set(map(_stems, emoji_keywords()[thing])):
            keywords.setdefault(word, []).append(i)
    return keywords | names


def nearest_names(
    encoder: TextEncoder,  # `TextEncoder.english()`
    texts: list[str],
) -> list[str | None]:  # a name of the emoji set for each; None if none is near
    "The thing whose names are most like a text, by the encoder alone; a keyword is one of its own things."
    likeness = (mean_vectors(encoder, texts) @ _names().T).tolist()
    names: list[str | None] = []
    for text, row in zip(texts, likeness):
        own = _owners().get(_stems(text), [])
        i = max(own or range(len(row)), key=row.__getitem__)
        names.append(emoji_objects()[i] if own or row[i] >= NEAR else None)
    return names


def renamings(
    model: str,  # as the user named it
    encoder: TextEncoder,  # the model's
    captions: list[str],
) -> dict[str, str | None]:  # for those without a name: what to draw; None: no name is near
    "Captions in words that the shipped model was trained on: *a kitty* becomes *a cat face*."
    if model != "emoji" or encoder.width != _names().shape[1]:
        return {}
    words = {caption: what for caption in captions if (what := unnamed(caption))}
    names = nearest_names(encoder, list(words.values())) if words else []
    return {caption: name and renamed(caption, name) for caption, name in zip(words, names)}


def reworded(
    model: str,  # as the user named it
    encoder: TextEncoder,  # the model's
    captions: list[str],
) -> list[str]:
    "Each caption as it is, or as `renamings` says."
    found = renamings(model, encoder, captions)
    return [found.get(caption) or caption for caption in captions]


def share_spelled(name: str, words: Counter[str]) -> float:  # 0 to 1
    "Share of running words that an encoder takes to pieces; its tokenizer alone is loaded."
    tokenizer = load_tokenizer(str(find_folder(name)[0] or name))
    return sum(words[word] for word in spelled(tokenizer, words)) / words.total()


def share_latin(words: Counter[str]) -> float:  # 0 to 1
    "Share of letters that are Latin, with their accents."
    n = sum(len(word) * count for word, count in words.items())
    return sum(sum(c < "\u0250" for c in word) * words[word] for word in words) / n


def choose_encoder(
    words: Counter[str],  # of all captions
) -> Reading:
    "The toy for its own small world, English for English, one of many languages for the rest."
    if not words:
        return Reading("", "no captions: the networks learn pictures without words")
    if share_spelled("toy", words) <= OWN:
        return Reading("toy", "words of ShapesWorld, which the toy encoder has read")
    if (share := share_latin(words)) < LATIN:
        why = f"{1 - share:.0%} of the letters are of a script that no encoder here has read"
        return Reading(MULTILINGUAL, why)
    if words.total() >= FEW and (share := share_spelled(ENGLISH, words)) > FOREIGN:
        why = f"{share:.0%} of the words are in pieces to the English encoder: another language?"
        return Reading(MULTILINGUAL, why)
    return Reading(ENGLISH, "English")
