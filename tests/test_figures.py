"Figures that notebooks state have a source, and a wrong one is noticed."

import copy
import json
from pathlib import Path

import figures
import pytest
from test_notebooks import EVERY, by_name

UNKNOWN_TODAY: dict[str, int] = {  # figures without a source: the Python that is needed
    "index": 1,
}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def wrong(figure: figures.Figure) -> str:
    "The same figure, a third too large, with as many places."
    number = figure.text.rstrip("%MBkG ").rstrip(",")
    places = len(number.replace(",", "").partition(".")[2])
    return f"{figures.value(number) * 1.37:.{places}f}" + figure.text[len(number) :]


def planted(notebook: dict, figure: figures.Figure) -> dict:
    "A copy in which this figure is wrong."
    new = copy.deepcopy(notebook)
    source = "".join(new["cells"][figure.cell]["source"])
    new["cells"][figure.cell]["source"] = source.replace(figure.text, wrong(figure), 1)
    return new


def is_caught(notebook: dict, figure: figures.Figure) -> bool:
    before = [f.text for f in figures.figures(notebook) if f.source is None]
    after = [f.text for f in figures.figures(planted(notebook, figure)) if f.source is None]
    return len(after) > len(before)


@pytest.mark.parametrize("path", EVERY, **by_name)
def test_every_figure_has_a_source(path):
    unknown = [f"{f.text}: {f.near}" for f in figures.figures(read(path)) if f.source is None]
    assert len(unknown) <= UNKNOWN_TODAY.get(path.stem, 0), unknown


@pytest.mark.parametrize("path", EVERY, **by_name)
def test_a_wrong_figure_is_caught(path):
    "In prose and captions, planted one at a time: most of them, and one in every notebook."
    notebook = read(path)
    stated = [f for f in figures.figures(notebook) if f.source in ("output", "code", "run card")]
    if not stated:
        return
    stated.sort(key=lambda f: -sum(c.isdigit() for c in f.text))
    assert any(is_caught(notebook, f) for f in stated[:4]), [f.text for f in stated[:4]]


def test_rounding_and_units():
    agrees = figures.agrees
    assert (
        agrees("0.72", "%", {0.0072})
        and agrees("72", "%", {0.719})
        and not agrees("72", "%", {0.71})
    )
    assert agrees("2,268", "M", {2268123456.0}) and agrees("2.3", "B", {2268.0})
    assert not agrees("2.3", "", {2268.0}) and agrees(".5", "", {0.45})


def test_what_is_no_figure():
    cell = {
        "cell_type": "markdown",
        "source": "In `net(37)` and $x=37.5$, 64 → 256 px, 3×3, chapter 08_unet, (2021): 12 of 64. But 37.5 is one.",
    }
    assert [f.text for f in figures.figures({"cells": [cell]})] == ["37.5"]


def test_the_paper_needs_its_section():
    def sources(text):
        return [
            f.source for f in figures.figures({"cells": [dict(cell_type="markdown", source=text)]})
        ]

    assert sources("The paper says 37.5 (section 4.1).") == ["paper"]
    assert sources("The paper says 37.5.") == [None]
