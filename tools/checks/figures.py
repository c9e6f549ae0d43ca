"""Where does each figure come from that a notebook states?

    python tools/checks/figures.py [paths]            figures without a source
    python tools/checks/figures.py --all [paths]      all of them, with their source

A figure is a number in prose, a caption or an alt text. Its source is an assertion of its notebook, an output or a
line of code at most four cells away, a run card that the notebook opens, or the paper, if its sentence names the
section. The number must agree as it is rounded. Settings are no figures: numbers up to 20, powers of two, sizes like
3×3 or 64 → 256, and whatever stands in code spans and formulas. Figures that are spelled out are not seen, and a wrong
one that happens to stand nearby for another reason is not either: of figures made a third larger, two in three are.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from run_nbs import ROOT, find

NUMBER = re.compile(
    r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w]*[.]?\d)(?:\s?(%|M|B|k|kB|MB|GB)(?!\w))?|(?<![\w.])\.\d+"
)
NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+|^\*?\*?\d+\.\s|arXiv \S+"
    r"|\((?:19|20)\d\d\)|\b(?:19|20)\d\d\b"
    r"|\b(?:[sS]ections?|[cC]hapters?|Appendix|App\.|Figs?\.|Table|eq\.)"
    r"\s?[A-F]?\.?\d+(?:\.\d+)*(?:,? (?:and|to) \d+(?:\.\d+)*)?"
    r"|\b[A-F]\.\d+(?:\.\d+)*(?:-\d+)?"
    r"|\d+(?:\s?[×→:]\s?\d+)+|\d+\s?(?:px|pixels|pixel)\b|\d{4,}_\w+|\b\d\d_\w+",
    re.S | re.M,
)
SECTION = re.compile(
    r"\b(?:[sS]ections?|Appendix|App\.|Fig\.|Figure|Table|eq\.)\s?~?[A-F]?\.?\d|\b[A-F]\.\d|§"
)
NUMBERS_IN_TEXT = re.compile(r"(?<![\w.])-?\d[\d_,]*(?:\.\d+)?(?:e[+-]?\d+)?|(?<![\w.])\.\d+")
ASSERTED = re.compile(r"^\s*assert(?:_close)?\b[^\n]*(?:\n[ \t)][^\n]*)*", re.M)
NEAR = 4  # cells before and after a figure in which its output or code may stand
CARD = re.compile(r"[\"'/]([\w-]+)\.json")
SCALES = {
    "%": (1, 100),
    "M": (1, 1e-6),
    "B": (1, 1e-9, 1e-3),
    "k": (1, 1e-3),
    "kB": (1, 1e-3),
    "MB": (1, 1e-6),
}
LABELS = re.compile(r"^#\|\s*fig-(?:cap|alt):\s*(.*)$", re.M)


@dataclass(frozen=True)
class Figure:
    "One stated number."

    cell: int
    text: str  # as it stands there
    near: str  # its sentence
    source: str | None  # None: nobody knows


def value(text: str) -> float | None:
    "A number as Python writes it, or as prose does."
    try:
        return float(text.replace(",", "").replace("_", ""))
    except ValueError:
        return None


def numbers(text: str) -> set[float]:
    "Every number in a text."
    found = (value(m[0]) for m in NUMBERS_IN_TEXT.finditer(text))
    return {abs(v) for v in found if v is not None}


def leaves(card) -> Iterator[float]:
    "Every number in a run card."
    if isinstance(card, dict):
        card = list(card.values())
    if isinstance(card, list):
        for part in card:
            yield from leaves(part)
    elif isinstance(card, (int, float)) and not isinstance(card, bool):
        yield abs(card)


def is_setting(v: float, text: str) -> bool:
    "Small and round numbers describe what was done, not what came out."
    whole = v == int(v) and "." not in text and "%" not in text
    return whole and (v <= 20 or (int(v) & (int(v) - 1)) == 0 or v in (100, 1000))


def agrees(text: str, unit: str, among: set[float]) -> bool:
    "Is one of them this number, as it is rounded?"
    digits, wanted = text.replace(",", ""), value(text)
    assert wanted is not None
    places = len(digits.partition(".")[2])
    for s in among:
        for scale in SCALES.get(unit, (1,)):
            if abs(s * scale - wanted) <= 0.5000001 * 10.0**-places:
                return True
    return False


def sentences(text: str) -> Iterator[str]:
    "Sentences of a paragraph, rows of a table."
    for part in re.split(r"\n\s*\n|\n(?=\s*[|>-])", text):
        yield from re.split(r"(?<=[.?!])\s+(?=[A-Z*`$\[])", part)


def told(source: str, kind: str) -> str:
    "What a cell says in words."
    return source if kind == "markdown" else "\n\n".join(LABELS.findall(source))


def shown(cell: dict) -> str:
    "What a cell printed or displayed as text."
    outputs = cell.get("outputs", [])
    texts = (
        ["".join(o.get("text", "")), "".join(o.get("data", {}).get("text/plain", ""))]
        for o in outputs
    )
    return "\n".join(text for pair in texts for text in pair)


def sources(notebook: dict) -> dict[str, list[set[float]]]:
    "Where numbers come from, one set for each cell: its outputs, its code; asserted ones and run cards for all."
    cells = [("".join(c["source"]), c) for c in notebook["cells"]]
    code = [LABELS.sub("", s) if c["cell_type"] == "code" else "" for s, c in cells]
    asserted = numbers("\n".join(m[0] for s in code for m in ASSERTED.finditer(s)))
    names = sorted(set(CARD.findall("\n".join(code))))
    paths = [ROOT / "data" / "runs" / f"{name}.json" for name in names]
    cards = [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.exists()]
    return {
        "assertion": [asserted] * len(cells),
        "output": [numbers(shown(c)) for _, c in cells],
        "code": [numbers(s) for s in code],
        "run card": [{v for card in cards for v in leaves(card)}] * len(cells),
    }


def figures(notebook: dict) -> Iterator[Figure]:
    "Every figure of a notebook, in order."
    places = sources(notebook)
    for i, cell in enumerate(notebook["cells"]):
        near = slice(max(0, i - NEAR), i + NEAR + 1)
        at = {kind: set().union(*found[near]) for kind, found in places.items()}
        for sentence in sentences(told("".join(cell["source"]), cell["cell_type"])):
            for match in NUMBER.finditer(NOT_PROSE.sub(" … ", sentence)):
                text, unit = match[0].rstrip("%MBkG ").strip(), match[1] or ""
                v = value(text)
                if v is None or is_setting(v, match[0]):
                    continue
                where = next((k for k, among in at.items() if agrees(text, unit, among)), None)
                if where is None and SECTION.search(sentence):
                    where = "paper"
                yield Figure(i, match[0], " ".join(sentence.split())[:100], where)


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("paths", nargs="*")
    p.add_argument("--all", action="store_true", help="those with a source, too")
    args = p.parse_args(argv)
    unknown = 0
    for path in find(args.paths):
        for f in figures(json.loads(path.read_text(encoding="utf-8"))):
            unknown += f.source is None
            if args.all or f.source is None:
                print(f"{path.stem} cell {f.cell}: {f.text} ({f.source or 'unknown'}): {f.near}")
    print(f"{unknown} figures without a source")
    return int(unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
