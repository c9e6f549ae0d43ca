"""The cell that lets a notebook run in a bare kernel, as Colab's: it installs what is missing.

    python tools/site/launch_cells.py [paths]      all notebooks, if none is named

It stands before the first cell that imports, is hidden on the site, and does nothing where everything is. Run it again
as often as you like. `build_docs.py` offers Colab for notebooks that have the cell, and for no others.
"""

import configparser
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ID = "launch"


def source(has_tests: bool = False, root: Path = ROOT) -> str:
    "The code of the cell; `expect_fail` of the tests in a lesson comes from fastcore."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    url = parser["DEFAULT"]["git_url"]
    needs = {"fastcore": "'fastcore<2'"} if has_tests else {}
    needs["imagen_nb"] = f"git+{url}"
    imports = "\n\n".join(f"    import {name}  # noqa: F401" for name in needs)
    start, end = ("(\n        ", "\n    )") if has_tests else ("(", ")")  # as ruff breaks the line
    return (
        f"#| hide\ntry:\n{imports}\n"
        "except ImportError:  # a bare kernel, as Colab's\n"
        f'    get_ipython().run_line_magic{start}"pip", "install -q {" ".join(needs.values())}"{end}'
    )


def add(path: Path) -> bool:
    "Put the cell into a notebook, or renew it; was anything to do?"
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    cells = [cell for cell in notebook["cells"] if cell["id"] != ID]
    place = next(
        i
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "code" and "default_exp" not in "".join(cell["source"])
    )
    cell = dict(cell_type="code", execution_count=None, id=ID, metadata={}, outputs=[])
    code = source(any("fastcore" in "".join(cell["source"]) for cell in cells))
    cells.insert(place, cell | dict(source=code.splitlines(keepends=True)))
    after = json.dumps(notebook | dict(cells=cells), ensure_ascii=False, indent=1) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def main(paths) -> int:
    "Each notebook in turn."
    for path in map(Path, paths or sorted((ROOT / "nbs").rglob("*.ipynb"))):
        if add(path):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
