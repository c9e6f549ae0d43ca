"The claims page: thirteen rows, none empty, and verdicts that follow the run cards."

import copy
import json
from pathlib import Path

import claims
import facts
import pytest
from claims import CLAIMS, Difference, Found, judged, section

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> dict:
    return facts.read_card(ROOT, name)


@pytest.fixture(scope="module")
def rows():
    return judged(read)


def test_thirteen_rows_and_none_is_empty(rows):
    assert len(rows) == 13 == len({claim.name for claim, _ in rows})
    for claim, found in rows:
        assert found.difference is not None and found.seeds >= 1 and found.cost, claim.name
        assert claim.finding.endswith(".") and (ROOT / "docs/pages" / claim.page).exists()


def test_most_rows_are_decided(rows):
    decided = [claim.name for claim, found in rows if found.verdict in ("agrees", "differs")]
    assert len(decided) >= 8, decided


def test_every_row_is_a_section_of_the_page():
    text = facts.fill((ROOT / "docs/pages/claims.md").read_text(encoding="utf-8"), ROOT)
    for k, claim in enumerate(CLAIMS, 1):
        part = text.partition(f"## {k}. {claim.name}\n")[2].partition("\n## ")[0]
        assert "could not have been seen" in part and "run card" in part and claim.place in part


@pytest.mark.parametrize(
    "interval, seeds, margin, verdict",
    [
        ((2, 1, 3), 2, None, "agrees"),
        ((2, -1, 5), 2, None, "undecided"),
        ((-2, -3, -1), 2, None, "differs"),
        ((2, 1, 3), 1, None, "undecided"),
        ((0.1, -0.2, 0.4), 2, 0.5, "agrees"),
        ((0.1, -0.9, 1.1), 2, 0.5, "undecided"),
        ((2, 1, 3), 2, 0.5, "differs"),
    ],
)
def test_the_rule(interval, seeds, margin, verdict):
    assert Found("", Difference(*interval), seeds, margin=margin).verdict == verdict
    assert Found("", None, seeds).verdict == "not testable here"


def test_differences_of_intervals():
    a, b = dict(share=0.6, low=0.5, high=0.7), dict(share=0.3, low=0.2, high=0.45)
    d = Difference.between(a, b, "share", 100)
    assert d.mean == pytest.approx(30) and d.low == pytest.approx(30 - 100 * (0.01 + 0.0225) ** 0.5)
    assert d.high == pytest.approx(30 + 100 * (0.01 + 0.01) ** 0.5)
    assert (d - d).low == pytest.approx(-(((d.mean - d.low) ** 2 + (d.high - d.mean) ** 2) ** 0.5))
    turned = Difference.of(dict(mean=1.0, low=0.5, high=2.0), -1)
    assert (turned.mean, turned.low, turned.high) == (-1.0, -2.0, -0.5)
    pair = Difference.of_pairs([1.0, 2.0])
    assert pair.high == pytest.approx(1.5 + 12.706 * 0.5)


def swapped(card: dict, a: str, b: str) -> dict:
    "A card whose two arms stand under each other's names."
    card = copy.deepcopy(card)
    card["arms"][a], card["arms"][b] = card["arms"][b], card["arms"][a]
    return card


def test_a_card_that_says_the_opposite_turns_the_verdict():
    card = read("experiment-text_encoder")
    assert claims.text_kind(card).verdict == "agrees"
    assert claims.text_kind(swapped(card, "english", "judge")).verdict == "differs"
    card = read("enlargers-learn")
    assert claims.efficient(card).verdict == "agrees"
    other = json.loads(json.dumps(card).replace("classic", "x").replace("efficient", "classic"))
    other = json.loads(json.dumps(other).replace('"x"', '"efficient"'))
    assert claims.efficient(other).verdict == "differs"


def test_one_seed_decides_nothing():
    card = copy.deepcopy(read("experiment-text_encoder"))
    for arm in card["arms"].values():
        arm["seeds"] = 1
    assert claims.text_kind(card).verdict == "undecided"
    claim = next(c for c in CLAIMS if c.look is claims.text_kind)
    assert "**Here**: **undecided**." in section(2, claim, claims.text_kind(card))
