"""Some dozens of the damaged data sets of `fuzz.py`; thousands are tried by hand."""

import pytest
from fuzz import KINDS, run


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_ends_in_a_traceback(kind):
    counts, faults = run(kind, 60)
    assert not faults, faults[0]
    assert sum(counts.values()) == 60
    assert counts["sentence"] + counts["skipped"] > 10 and counts["right"] + counts["other"] > 0
