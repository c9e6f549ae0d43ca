"""How many words tokenizers take to pieces, by language, into `data/runs/caption-words.json`.

    python tools/measure/caption_words.py tuxpaint-stamps-default_*_all.deb

The same few hundred sentences in some seventy languages: those of Debian's stamps for Tux Paint (tools/make/stamps.py).
`imagen-nb data` chooses a text encoder by these shares.
"""

import argparse
import collections
import sys
from pathlib import Path

from cards import ROOT, RUNS, write_card

from imagen_nb.data import ShapesWorld
from imagen_nb.runs.words import count_words, share_latin, share_spelled

LEAST = 100  # sentences of a language


def sentences(deb: Path) -> dict[str, list[str]]:
    "What stamps show, letters and coins excepted, by language."
    sys.path.append(str(ROOT / "tools" / "make"))
    from stamps import INSIDE, english, files

    found = collections.defaultdict(list)
    for path, content in files(deb):
        if path.startswith(INSIDE) and path.endswith(".txt") and "/symbols/" not in path:
            found["en"].append(english(content))
            for line in content.decode("utf-8-sig", errors="replace").splitlines()[1:]:
                language, mark, text = line.partition(".utf8=")
                if mark and text.strip():
                    found[language].append(text)
    return {language: said for language, said in found.items() if len(said) >= LEAST}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("deb", type=Path, help="the package's file")
    p.add_argument("--encoder", default="english", help="the English one (default english)")
    p.add_argument("--out", type=Path, default=RUNS / "caption-words.json")
    args = p.parse_args()
    world = ShapesWorld("train", level="full")
    said = dict(shapesworld=[world.caption(i) for i in range(500)], **sentences(args.deb))
    rows = {}
    for language, captions in said.items():
        words = count_words(captions)
        rows[language] = dict(
            words=words.total(),
            latin=round(share_latin(words), 3),
            english=round(share_spelled(args.encoder, words), 3),
            toy=round(share_spelled("toy", words), 3),
        )
    rows = dict(sorted(rows.items(), key=lambda row: row[1]["english"]))
    write_card(
        args.out,
        "share of running words that a tokenizer takes to pieces or does not know, of Latin letters; by language",
        f"python tools/measure/caption_words.py {args.deb.name}",
        rows=rows,
    )


if __name__ == "__main__":
    main()
