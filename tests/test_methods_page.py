"""docs/methods.md and the measured costs say what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

from segkd import registry
from segkd.catalog import EXPENSIVE, method_costs, method_table
from segkd.explain import explain

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
NAMES = [name for name in registry.methods.names() if not name.startswith("toy_")]


def test_the_page_is_current():
    command = [sys.executable, "-m", "segkd", "list", "methods", "--markdown"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PAGE.parents[1])
    assert PAGE.read_text() == made.stdout, "run: segkd list methods --markdown > docs/methods.md"


def test_every_method_has_a_year_and_a_measured_cost():
    assert all(1989 < registry.methods.get(name).year < 2030 for name in NAMES)
    missing = set(NAMES) - method_costs().keys()
    assert not missing, f"python benchmarks/methods.py --write --methods {','.join(missing)}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expensive_says_so(name):
    dear = method_costs()[name]["ratio"] > EXPENSIVE
    assert ("EXPENSIVE" in explain(name)) == dear
    row = next(row for row in method_table() if row["method"] == f"`{name}`")
    assert ("**!**" in row["cost"]) == dear
