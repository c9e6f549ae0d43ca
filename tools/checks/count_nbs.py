"""How much prose, code and practice is in each notebook?

    python tools/checks/count_nbs.py [paths]

Lines are those of code cells that are neither blank nor a directive `#| ...`. The words are those of markdown.
Figures are stored pictures and drawings, interactives are sliders that need no kernel, exercises are folded solutions.
`tests/test_notebooks.py` holds notebooks to limits of these numbers.
"""

import json
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from run_nbs import find

EXPORT = re.compile(r"^\s*#\|\s*exports?\s*$", re.M)
CLASS = re.compile(r"^class ", re.M)
FOLD = re.compile(r"^#\|\s*code-fold: true$(?!\n#\|\s*code-summary: \"(?!Solution))", re.M)
SOLUTION = re.compile(r"<summary>Solution")


@dataclass(frozen=True)
class Count:
    "What is in one notebook."

    words: int  # of all markdown cells
    code: int  # lines of all code cells
    exported: int  # lines of exported cells
    longest: int  # lines of the longest exported cell without a class
    longest_class: int  # and of the longest with one
    figures: int  # stored pictures and drawings
    interactives: int  # sliders
    exercises: int  # with a folded solution

    @property
    def words_per_line(self) -> float:
        "Of prose, for each line of code."
        return self.words / max(1, self.code)


def lines(source: str) -> int:
    "Lines of a code cell."
    rows = (line.strip() for line in source.split("\n"))
    return sum(1 for row in rows if row and not row.startswith("#|"))


def shown(cells: list) -> list[str]:
    "What each output shows: its kind of picture, or its HTML."
    outputs = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    pictures = ("image" if any(k.startswith("image/") for k in o) else "" for o in outputs)
    return [a or "".join(o.get("text/html", "")) for a, o in zip(pictures, outputs)]


def count(path: Path) -> Count:
    "Count one notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(c["cell_type"], "".join(c["source"])) for c in cells]
    code = [s for kind, s in sources if kind == "code"]
    exported = [s for s in code if EXPORT.search(s)]
    classes = [lines(s) for s in exported if CLASS.search(s)]
    others = [lines(s) for s in exported if not CLASS.search(s)]
    outputs, text = shown(cells), "\n".join(s for kind, s in sources if kind == "markdown")
    return Count(
        words=len(text.split()),
        code=sum(map(lines, code)),
        exported=sum(classes) + sum(others),
        longest=max(others, default=0),
        longest_class=max(classes, default=0),
        figures=sum(o == "image" or "<svg" in o for o in outputs),
        interactives=sum('class="nbslider"' in o for o in outputs),
        exercises=sum(bool(FOLD.search(s)) for s in code) + len(SOLUTION.findall(text)),
    )


def main(paths) -> int:
    "A row for each notebook."
    names = [f.name for f in fields(Count)]
    head = ["notebook", *(name.replace("_", " ") for name in names), "words a line"]
    print("|", " | ".join(head), "|\n" + "|---" * len(head) + "|")
    for path in find(paths):
        c = count(path)
        cells = path.stem, *(getattr(c, name) for name in names), f"{c.words_per_line:.1f}"
        print("|", " | ".join(map(str, cells)), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
