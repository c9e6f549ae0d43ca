"`make prove` says what held, how long it took and what did not hold; a card keeps what was not asked for."

import json

import prove
import pytest


@pytest.fixture
def card(tmp_path, monkeypatch):
    "Three steps that take no time, and a card of their own."
    said = "print('MISSED  a fault'); print('3 caught, 1 missed'); raise SystemExit(1)"
    steps = dict(good=(("-c", "print('2 passed in 0.1s')"), None), bad=(("-c", said), None))
    steps["empty"] = (("-c", "open('{out}/x', 'w')"), lambda out: not (out / "x").exists())
    monkeypatch.setattr(prove, "STEPS", steps)
    monkeypatch.setattr(prove, "CARD", tmp_path / "prove.json")
    return tmp_path / "prove.json"


def test_a_step_is_told_by_its_last_line(card):
    assert prove.main([]) == 1
    steps = json.loads(card.read_text())["steps"]
    assert list(steps) == ["good", "bad", "empty"]
    assert [steps[k]["holds"] for k in steps] == [True, False, False]
    assert [steps[k]["counts"] for k in steps] == [dict(passed=2), dict(caught=3, missed=1), {}]
    assert steps["bad"]["wrong"] == ["MISSED  a fault"] and steps["good"]["wrong"] == []


def test_what_was_not_asked_for_stays(card, monkeypatch):
    prove.main([])
    before = json.loads(card.read_text())["steps"]
    monkeypatch.setitem(prove.STEPS, "bad", (("-c", "print('4 caught, 0 missed')"), None))
    assert prove.main(["bad"]) == 0
    after = json.loads(card.read_text())["steps"]
    assert after["bad"]["counts"] == dict(caught=4, missed=0)
    assert {k: after[k] for k in ("good", "empty")} == {k: before[k] for k in ("good", "empty")}


def test_a_step_that_nobody_knows_is_refused(card):
    with pytest.raises(SystemExit, match="got .'everything'., expected among"):
        prove.main(["everything"])
    assert not card.exists()
