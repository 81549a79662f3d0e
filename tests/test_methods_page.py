"""docs/methods.md and the measured costs say what the code says."""

import re
from pathlib import Path

import pytest

from segkd import registry
from segkd.catalog import EXPENSIVE, method_costs, method_pulls, method_table
from segkd.commands.listing import listing
from segkd.explain import explain

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
NAMES = [method.name for method in registry.methods if method.paper]  # others are somebody's own


def test_the_page_is_current():
    made = listing("methods", None, as_json=False, markdown=True)
    page, _, _ = made.partition("\n\n## Without a paper")  # toys are below
    assert PAGE.read_text() == page.rstrip() + "\n", (
        "run: segkd list methods --markdown > docs/methods.md"
    )


def test_the_page_of_weights_is_current():
    page = PAGE.with_name("weights.md")
    made = listing("weights", None, as_json=False, markdown=True)
    assert page.read_text() == made + "\n", "run: segkd list weights --markdown > docs/weights.md"


def test_the_page_of_checks_is_current():
    made = listing("checks", None, as_json=False, markdown=True)
    assert PAGE.with_name("checks.md").read_text() == made + "\n", (
        "run: segkd list checks --markdown > docs/checks.md"
    )


def test_a_method_without_a_paper_is_yours_and_its_cost_is_not_known(monkeypatch):
    class Own(registry.methods.get("kd")):
        """A variant of somebody's own."""

        name, paper, year, published, conversions = "own_kd", "", None, "", {}

    monkeypatch.setitem(registry.methods._entries(), "own_kd", Own)
    row = next(row for row in method_table() if row["method"] == "`own_kd`")
    assert row["paper"] == "yours" and row["cost"] == row["train M"] == row["peak MiB"] == "?"
    page = listing("methods", None, as_json=False, markdown=True)
    published, own = page.split("\n\n## Without a paper\n\n")
    assert "own_kd" in own and "own_kd" not in published
    assert re.search(
        r"own_kd +response +yours", listing("methods", None, as_json=False, markdown=False)
    )
    assert "not measured" in explain("own_kd") and "Published" not in explain("own_kd")


def test_default_weights_pull_between_a_tenth_and_all_of_what_the_labels_do():
    pulls = method_pulls()
    assert set(NAMES) - {"ld"} <= pulls.keys(), "python benchmarks/weights.py --write"
    for name, found in pulls.items():
        # The pairs of these differ by a factor of 12 to 18.
        least = {"fsp": 0.05, "kd_svd": 0.05, "freekd": 0.08}.get(name, 0.1)
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
