"""How much code and how much prose is in each notebook?

    python tools/checks/count_nbs.py [paths]

Lines are those of code cells that are neither blank nor a directive `#| ...`. The words are those of markdown.
`tests/test_notebooks.py` holds notebooks to limits of these numbers.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from run_nbs import find

EXPORT = re.compile(r"^\s*#\|\s*exports?\s*$", re.M)
CLASS = re.compile(r"^class ", re.M)


@dataclass(frozen=True)
class Count:
    "Lines of code and words of prose in one notebook."

    words: int  # of all markdown cells
    code: int  # lines of all code cells
    exported: int  # lines of exported cells
    longest: int  # lines of the longest exported cell without a class
    longest_class: int  # and of the longest with one

    @property
    def words_per_line(self) -> float:
        "Of prose, for each line of code."
        return self.words / max(1, self.code)


def lines(source: str) -> int:
    "Lines of a code cell."
    rows = (line.strip() for line in source.split("\n"))
    return sum(1 for row in rows if row and not row.startswith("#|"))


def count(path: Path) -> Count:
    "Count one notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(c["cell_type"], "".join(c["source"])) for c in cells]
    code = [s for kind, s in sources if kind == "code"]
    exported = [s for s in code if EXPORT.search(s)]
    classes = [lines(s) for s in exported if CLASS.search(s)]
    others = [lines(s) for s in exported if not CLASS.search(s)]
    return Count(
        words=sum(len(s.split()) for kind, s in sources if kind == "markdown"),
        code=sum(map(lines, code)),
        exported=sum(classes) + sum(others),
        longest=max(others, default=0),
        longest_class=max(classes, default=0),
    )


def main(paths) -> int:
    "A row for each notebook."
    print(
        "| notebook | exported lines | longest cell | longest class | words a line |\n"
        + "|---" * 5
        + "|"
    )
    for path in find(paths):
        c = count(path)
        cells = path.stem, c.exported, c.longest, c.longest_class, f"{c.words_per_line:.1f}"
        print("|", " | ".join(map(str, cells)), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
