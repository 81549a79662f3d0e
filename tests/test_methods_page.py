"""docs/methods.md and the measured costs say what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

from segkd import registry
from segkd.catalog import EXPENSIVE, method_costs, method_pulls, method_table
from segkd.commands.listing import listing
from segkd.explain import explain

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
NAMES = [name for name in registry.methods.names() if not name.startswith("toy_")]


def test_the_page_is_current():
    command = [sys.executable, "-m", "segkd", "list", "methods", "--markdown"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PAGE.parents[1])
    assert PAGE.read_text() == made.stdout, "run: segkd list methods --markdown > docs/methods.md"


def test_the_page_of_weights_is_current():
    page = PAGE.with_name("weights.md")
    made = listing("weights", None, as_json=False, markdown=True)
    assert page.read_text() == made + "\n", "run: segkd list weights --markdown > docs/weights.md"


def test_default_weights_pull_between_a_tenth_and_all_of_what_the_labels_do():
    pulls = method_pulls()
    assert set(NAMES) - {"ld"} <= pulls.keys(), "python benchmarks/weights.py --write"
    for name, found in pulls.items():
        least = 0.05 if name == "fsp" else 0.1  # products of features: the pairs differ by 18
        weight = registry.methods.get(name)().weight
        weighted = {pair: pull * weight for pair, pull in found.items()}
        assert all(least <= pull <= 1 for pull in weighted.values()), (name, weighted)


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
