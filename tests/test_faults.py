"The list of planted faults fits the code of today; `python tests/faults.py` plants them."

from collections import Counter

import faults


def test_every_fault_can_be_planted_and_names_its_test():
    assert faults.stale() == []


def test_every_module_has_a_fault():
    assert faults.modules() <= {module for _, module, *_ in faults.FAULTS}


def test_no_fault_is_planted_twice():
    names = Counter(what for what, *_ in faults.FAULTS)
    assert len(names) == len(faults.FAULTS) >= 120
    for what, module, right, wrong, _ in faults.FAULTS:
        text = (faults.ROOT / faults.path_of(module)).read_text(encoding="utf-8")
        assert len(faults.loose(right).findall(text)) == 1, f"{what}: which of them?"
        assert right != wrong
