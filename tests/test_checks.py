"What is refused at the border of a function, and how little of a lesson that takes."

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from imagen_nb.store.checks import (
    alike,
    as_device,
    as_plain,
    as_whole,
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
        assert per_sample("f: w", fine, 3) is fine
    assert type(per_sample("f: w", np.float32(2), 3)) is float
    for bad in ("7", None, True, 1j, float("inf"), torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="(?s)f: w, got .*a finite number or one per sample"):
            per_sample("f: w", bad, 3)


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), 3])
def test_a_whole_number_may_come_out_of_an_array(number):
    assert as_whole("f: n", number, 1, 3) == 3 and type(as_whole("f: n", number)) is int
    assert as_plain("3") == "3" and as_plain([3]) == [3] and as_plain(None) is None


@pytest.mark.parametrize("bad", [0, -1, 4, 3.0, np.float64(3), True, "3", None, [3], torch.ones(2)])
def test_nothing_else_is_a_whole_number(bad):
    with pytest.raises(ValueError, match="^f: n, got .*, expected 1 to 3, a whole number$"):
        as_whole("f: n", bad, 1, 3)


def test_a_device_is_one_of_this_machine():
    assert as_device("f: device", "cpu") == as_device("f: device", torch.device("cpu"))
    for bad in ("gpu", "CPU", "float16", torch.float16, None, 1.5, "cuda:99", torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="^f: device, got .*, expected a device of") as e:
            as_device("f: device", bad)
        assert "\n" not in str(e.value)


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
