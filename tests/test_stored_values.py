"""Numbers are those of version 0.1: whatever is moved, renamed or merged, no loss changes.

``store_values.py`` computes them and says how the file is written. On the machine that wrote it,
float64 is compared to the last digit; elsewhere additions have another order, and what follows
several steps of a training differs more than one loss does.
"""

import json

import pytest
import store_values

STORED = json.loads(store_values.FILE.read_text(encoding="utf-8"))
SAME_MACHINE = STORED["machine"] == store_values.machine()
GROUPS = store_values.groups()
LOOSER = {  # in float32; steps of SAD, whose maps nearly tie, in float32; an attention in float32
    "run/cirkd_crd": 1e-3,
    "run/lanes": 2e-2,
    "method/fgd": 1e-6,
}


def tolerance(group: str) -> float:
    """Largest relative difference."""
    if SAME_MACHINE:
        return 0.0
    return LOOSER.get(group, 1e-9 if group.startswith("run/") else 1e-12)


def test_every_method_of_version_0_1_is_there():
    assert STORED["values"].keys() <= GROUPS.keys()
    assert sum(name.startswith("method/") for name in STORED["values"]) >= 29
    assert sum(len(values) for values in STORED["values"].values()) > 500


@pytest.mark.parametrize("group", STORED["values"])
def test_values_are_those_of_version_0_1(group):
    found, expected = GROUPS[group](), STORED["values"][group]
    assert found.keys() == expected.keys()
    differ = {
        key: f"{value!r}, stored: {expected[key]!r}"
        for key, value in found.items()
        if not same(value, expected[key], tolerance(group))
    }
    assert not differ


def same(found, expected, relative: float) -> bool:
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=relative, abs=relative * 1e-3)
    return found == expected
