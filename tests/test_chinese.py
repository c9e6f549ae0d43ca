"README, home page and tour in Chinese say what the English ones say, part by part."

import json
import re
from pathlib import Path

import build_docs
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PAIRS = {
    "README": ("README.md", "README.zh.md"),
    "home": ("nbs/index.ipynb", "docs/pages/zh.md"),
    "tour": ("nbs/00_tour.ipynb", "docs/pages/zh-tour.md"),
}


def parts(name: str) -> list[tuple[str, list]]:
    "Heading and what stands below it, in order: blocks of code, rows of tables, pictures, outputs, links."
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n\n".join(shown(cell) for cell in cells)
    sections = re.split(r"^(#+) .+$", re.sub(r"<!--.*?-->", "", text), flags=re.M)[1:]
    return [(level, things(body, name)) for level, body in zip(sections[::2], sections[1::2])]


def shown(cell: dict) -> str:
    "A cell as a page in another language asks for it."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    found = build_docs.directives(source)
    return "" if "hide" in found else f"{{{{cell X {found.get('label', cell['id'])}}}}}"


def things(body: str, name: str) -> list[str]:
    "What does not depend on the language."
    found = []
    for match in re.finditer(
        r"^```(\w+)\n(.*?)^```$|^(\|.*\|)$|!\[[^]]*\]\(([^)]+)\)|\{\{cell \S+ ([\w-]+)",
        body,
        re.M | re.S,
    ):
        language, code, row, picture, cell = match.groups()
        if code is not None:
            found.append(re.sub(r" *#.*", "", code))  # comments are translated
        elif row is not None:
            found.append(f"row of {row.count('|')}: {targets(row)}")
        else:
            found.append(picture or cell)
    return found


def targets(text: str) -> list[str]:
    "Names of the files that are linked to, but for the pages in Chinese."
    names = [Path(o).name for o in re.findall(r"\]\(([^)#]+)", text)]
    return [name for name in names if not name.startswith("zh")]


@pytest.mark.parametrize("name", PAIRS)
def test_sections_are_those_of_the_english_page(name):
    english, chinese = (parts(o) for o in PAIRS[name])
    assert [level for level, _ in chinese] == [level for level, _ in english]
    for k, ((_, ours), (_, theirs)) in enumerate(zip(chinese, english)):
        assert ours == theirs, f"{name}, section {k}"


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_written_in_chinese(name):
    text = (ROOT / PAIRS[name][1]).read_text(encoding="utf-8")
    prose = re.sub(
        r"```.*?```|`[^`]*`|\]\([^)]*\)|\{\{cell \S+ \S+|<!--.*?-->", "", text, flags=re.S
    )
    letters = len(re.findall(r"[A-Za-z]", prose))
    assert len(CHINESE.findall(prose)) > letters, letters
    for heading in re.findall(r"^##+ (.+)$", text, re.M):
        assert CHINESE.search(heading), heading


def test_a_cell_is_shown_in_the_words_of_its_page():
    site = build_docs.Site(ROOT)
    document = next(d for d in site.documents if d.page == "zh-tour")
    cells = build_docs.document_page(document, site)["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    alts = [c["metadata"]["mystnb"].get("image", {}).get("alt") for c in code]
    assert len(code) == 16 and sum(not c["outputs"] for c in code) == 1  # the panel's, for a kernel
    assert [bool(o and CHINESE.search(o)) for o in alts].count(True) == 9
    assert not any("{{" in c["source"] for c in cells)
    with pytest.raises(ValueError, match="got 'nothing', expected a label"):
        build_docs.borrowed("00_tour", "nothing", None, None, site)
