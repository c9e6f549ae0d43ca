"""What the English encoder makes of all that a thing of the emoji set is called, into `data/emoji-names.safetensors`.

    python tools/make/emoji_names.py PACKAGES

PACKAGES is the folder of npm's packages that `imagen-nb emoji SET` leaves beside SET. A thing is called by its name
and by its keywords, as training captions call it: a keyword with a word that is kept from every caption
(`emoji_words`) is left out here, too. The vector of a thing is the mean of theirs, stored in 8 bits; the keywords go
into `data/emoji-objects.json`. Prints how often the nearest vector is the right one for the words that no caption
uses, beside the names alone.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from imagen_nb.pictures.emoji import (
    emoji_objects,
    emoji_words,
    fetch_packages,
    kept_tags,
    read_emoji,
    with_article,
)
from imagen_nb.runs.words import mean_vectors
from imagen_nb.store.files import assets
from imagen_nb.text import TextEncoder


def vectors(encoder: TextEncoder, texts: list[str]) -> Tensor:  # (n d)
    "Of many texts, by parts."
    parts = [texts[k : k + 128] for k in range(0, len(texts), 128)]
    return torch.cat([mean_vectors(encoder, part) for part in parts])


def right(encoder: TextEncoder, names: Tensor) -> str:
    "How often the nearest name is the thing that a word stands for."
    words, things = zip(*emoji_words().items())
    found = (vectors(encoder, [with_article(word) for word in words]) @ names.T).argmax(1)
    count = sum(emoji_objects()[i] == thing for i, thing in zip(found.tolist(), things))
    return f"{count} of {len(words)}"


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("packages", type=Path, help="folder of npm's packages")
    p.add_argument("--out", type=Path, default=assets() / "emoji-names.safetensors")
    args = p.parse_args()
    encoder, things = TextEncoder.english(), emoji_objects()
    known = {e.label: e for e in read_emoji(fetch_packages(args.packages)) if not e.tone}
    called = [
        (i, text) for i, thing in enumerate(things) for text in (thing, *kept_tags(known[thing]))
    ]
    each = vectors(encoder, [with_article(text) for _, text in called])
    owner = torch.tensor([i for i, _ in called])
    names = normalize(torch.zeros(len(things), each.shape[1]).index_add(0, owner, each), dim=1)
    facts = assets() / "emoji-objects.json"
    keywords = {thing: kept_tags(known[thing]) for thing in things}
    held = json.loads(facts.read_text(encoding="utf-8")) | dict(keywords=keywords)
    facts.write_text(json.dumps(held, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    scale = names.abs().amax(1, keepdim=True) / 127
    save_file(dict(vectors=(names / scale).round().to(torch.int8), scale=scale), args.out)
    print(f"{len(things):,} things, {len(called):,} names and keywords: {args.out}")
    alone = vectors(encoder, [with_article(thing) for thing in things])
    print(
        f"words: nearest is right for {right(encoder, names)}; by names alone for {right(encoder, alone)}"
    )


if __name__ == "__main__":
    main()
