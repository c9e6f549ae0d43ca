"""The README.md of a saved cascade: what it is, how it came about, what it scores, what it cannot do."""

from collections.abc import Iterable

from imagen_nb.store.text_models import SHIPPED, shipped_as

__all__ = ["model_card"]

HEAD = """\
---
license: apache-2.0
library_name: imagen_nb
pipeline_tag: text-to-image
tags:
- imagen
- diffusion
- text-to-image
---
"""

USE = """
## Use

```python
from imagen_nb.cascade import Imagen
imagen = Imagen.from_pretrained("{name}")
images = imagen.sample(["a caption"])  # (1 3 {size} {size}), values in [-1, 1]
```
"""

LIMITS = """
## Limits

- It draws what its training pictures and captions held, biases and gaps included;
  nothing was done to filter what it draws.
- Other sizes and other words than those of training give worse pictures; scores say nothing about them.
"""

NAMES = {
    "source": "digest of the source in bfloat16",
    "revision": "digest of the weights",
    "tokenizer": "digest of the tokenizer",
}

OWN_ENCODER = """
It is not part of these files. It is looked for under that name, and beside the model. If it lies elsewhere, say where:
`imagen-nb sample ... --encoder DIR`, or `Imagen.from_pretrained("{name}", encoder="DIR")`. Digests tell whether it is
the same.
"""

NO_ENCODER = "none was saved; captions come as a `TextEmbedding`"
UNTRAINED = "- The {} px model was never trained; it refuses to draw.\n"

LICENCE = """
## Licence

Apache-2.0, as imagen_nb itself, as far as whoever trained these weights has the right to give it:
terms of the training pictures come on top. The text encoder is not part of these files; it is loaded from where it is
published, or comes with imagen_nb, and has a licence of its own.
"""


def model_card(
    facts: dict,  # sizes; models, a dict each; encoder's identity; untrained sizes
    card: dict
    | None = None,  # a run card, as `tools/measure/make_run_card.py` writes it; of its first run
    name: str = "FOLDER",  # what `from_pretrained` is to be given
) -> str:  # Markdown with the hub's front matter
    "A model card from what is known: the models, and the run card if there is one."
    from imagen_nb import __version__

    sizes, models, encoder = facts["sizes"], facts["models"], facts["encoder"]
    told = ", ".join(f"{NAMES.get(k, k)} `{v}`" for k, v in (encoder or {}).items()) or NO_ENCODER
    parts = [
        HEAD,
        f"\n# Imagen cascade, {' → '.join(map(str, sizes))} px\n\nCaption in, picture out:"
        f" {len(sizes)} diffusion models in a row, saved by"
        f" [imagen_nb](https://github.com/imagen-nb/imagen_nb) {__version__}.\n",
        USE.format(name=name, size=sizes[-1]),
        "\n## Models\n\n" + table(tuple(models[0]), [tuple(o.values()) for o in models]),
        f"\nText encoder, frozen: {told}.\n",
        encoder_note(encoder, name) if encoder else "",
    ]
    if card:
        parts += training(card), scores(card)
    parts += [LIMITS, *map(UNTRAINED.format, facts["untrained"]), LICENCE]
    return "".join(parts)


def encoder_note(identity: dict, name: str) -> str:
    "Where the text encoder is to be had."
    if shipped := SHIPPED.get(shipped_as(identity.get("encoder"))):
        return f"\n{shipped.about}\n"
    return OWN_ENCODER.format(name=name)


def table(head: tuple, rows: Iterable[tuple]) -> str:
    "A table in Markdown."
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def training(card: dict) -> str:
    "How the weights came about, from the run card."
    runs = [(name, o["config"]["train"], o) for name, o in card["seeds"][0]["stages"].items()]
    rows = [
        (
            name,
            f"{o['steps']:,}",
            f"{o['samples']:,}",
            t["batch"],
            f"{t['optimizer']}, {t['lr']:g}",
            t["seed"],
            f"{o['training_seconds'] / 60:.0f}",
        )
        for name, t, o in runs
    ]
    head = ("part", "steps", "samples", "batch", "optimizer, learning rate", "seed", "minutes")
    return (
        f"\n## Training\n\n`{card['command']}` on {card['device']}; commit {card['commit']}, torch {card['torch']}.\n\n"
        + table(head, rows)
        + (f"\n{card['note']}\n" if card.get("note") else "")
    )


def scores(card: dict) -> str:
    "Right answers at each size, from the run card; nothing if it was not scored."
    found = card["seeds"][0].get("scores")
    if not found:
        return ""
    names = sorted(
        dict.fromkeys(name for o in found.values() for name in o["all"]), key="all".__eq__
    )  # the sum last

    def cell(o, name):
        return (
            f"{100 * o[name]['share']:.1f} ({100 * o[name]['low']:.1f}–{100 * o[name]['high']:.1f})"
            if name in o
            else "–"
        )

    rows = [
        ("everything" if name == "all" else name, *(cell(o["all"], name) for o in found.values()))
        for name in names
    ]
    sizes = [f"{size} px" for size in found]
    return (
        "\n## Scores\n\nRight in per cent (95 % interval), read back from the pictures by the oracle of"
        f" ShapesWorld; {card.get('captions', '')}.\n\n" + table(("attribute", *sizes), rows)
    )
