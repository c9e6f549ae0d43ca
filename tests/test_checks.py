"What is refused at the border of a function, and how little of a lesson that takes."

import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from imagen_nb.store.checks import (
    alike,
    check,
    check_among,
    floats,
    per_sample,
    rises,
    told,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "checks"))
import count_checks


@pytest.mark.parametrize("name", count_checks.LESSONS)
def test_a_lesson_computes_and_hardly_checks(name):
    checks, code = count_checks.share((count_checks.LIB / f"{name}.py").read_text(encoding="utf-8"))
    assert 0 < checks <= 0.12 * code


def test_the_count_sees_each_kind_of_check():
    source = """
def f(x, y):
    # no code
    what = f"f: {x}"
    check(x > 0, what, x,
          "more")
    if y is None:
        raise ValueError(what)
    if y > 2:
        x = x + 1

    x, = alike("f", x=x)
    return x * y
"""
    assert count_checks.share(source) == (6, 10)


def test_a_tensor_is_looked_at_where_looking_is_free():
    check(torch.tensor([True, True]), "f: x", 1, "2")
    check(torch.ones(2, device="meta").bool(), "f: x", 1, "2")  # as on a GPU: not looked at
    with pytest.raises(ValueError, match="^f: x, got 1, expected 2$"):
        check(torch.tensor([True, False]), "f: x", 1, "2")
    with pytest.raises((RuntimeError, NotImplementedError)):
        check(torch.ones(2, device="meta").bool(), "f: x", 1, "2", wait=True)


def test_names_and_numbers():
    check_among("f: kind", None, (None, "a", "b"))
    with pytest.raises(ValueError, match="f: kind, got 'c', expected None, 'a' or 'b'"):
        check_among("f: kind", "c", (None, "a", "b"))
    for fine in (1, 0.5, torch.tensor(2.0), torch.ones(3), torch.ones(3).long()):
        per_sample("f: w", fine, 3)
    for bad in ("7", None, True, 1j, float("inf"), torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="(?s)f: w, got .*a finite number or one per sample"):
            per_sample("f: w", bad, 3)


def test_floats_are_at_least_float32():
    x = torch.tensor([0.5, 2.0])
    assert floats(x, "f: x") is x and floats(x.double(), "f: x").dtype == torch.float64
    assert floats(x.half(), "f: x").dtype == floats(x.long(), "f: x").dtype == torch.float32
    half, single = alike("f", a=x.bfloat16(), b=x)
    assert half.dtype == single.dtype == torch.float32
    assert_close(half, single)
    with pytest.raises(ValueError, match=r"f: got a \(2,\) float32 on cpu, b 1.0, expected floats"):
        alike("f", a=x, b=1.0)


def test_rising_numbers():
    assert rises(torch.tensor([1.0, 2, 4])).all()
    assert not rises(torch.tensor([1.0, 1])).all() and not rises(torch.tensor([1.0]))
    assert not rises([1.0, 2.0]) and not rises(torch.eye(2))
    assert told(torch.ones(2, 3)) == "(2, 3) float32 on cpu" and told("x") == "'x'"
