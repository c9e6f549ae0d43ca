"""How much does the seed of the emoji base matter? Into `data/runs/emoji-seeds.json`.

    imagen-nb train emoji --data EMOJI_SET --stage 0 --seed K --steps 2250 --out RUN-K      for each seed
    python tools/measure/emoji.py RUN-K EMOJI_SET --stages 1 --no-memory --out K.json
    python tools/measure/emoji_seeds.py 1.json 2.json --seeds 1 2

The runs differ in their seed alone, and are shorter than the one that ships.
"""

import argparse
import json
from pathlib import Path

from cards import RUNS, write_card

from imagen_nb.recipes import emoji

KINDS = ("object", "top5", "style")


def shares(card: dict) -> dict:
    "Part -> kind -> share with its interval, at the base's size."
    return {
        part: {kind: about["32 px"][kind] for kind in KINDS if about["32 px"][kind]}
        for part, about in card["parts"].items()
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("cards", nargs="+", type=Path, help="that emoji.py wrote, a run each")
    p.add_argument("--seeds", nargs="+", required=True, help="of the runs, in the same order")
    args = p.parse_args()
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in args.cards]
    (steps,) = {tuple(card["trained_steps"]) for card in cards}
    write_card(
        RUNS / "emoji-seeds.json",
        "what bases of the emoji world draw that differ in their seed alone, read by the judge:"
        " shares with 95 % Wilson intervals",
        "python tools/measure/emoji_seeds.py CARDS --seeds " + " ".join(args.seeds),
        steps=steps[0],
        samples=steps[0] * emoji().training[0].batch,
        by_seed={s: shares(card) for s, card in zip(args.seeds, cards, strict=True)},
    )


if __name__ == "__main__":
    main()
