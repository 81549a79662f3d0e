"""What all methods share whose losses are functions of nodes: rkd, sp, cc, irg, crd."""

import pytest
import torch

from segkd import registry
from segkd.testing.cases import make_case


@pytest.mark.parametrize("kind", ["pixel", "grid", "image"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [("rkd", {}), ("sp", {}), ("cc", {}), ("irg", {"edges": "all"}), ("crd", {"queue": 8})],
)
def test_other_nodes_than_regions_teach_as_well(name, keys, kind):
    method = registry.methods.get(name)
    case = make_case(method, dtype=torch.float64, config=method.Config(nodes=kind, **keys))
    terms, doubled = case.terms(), case.images(torch.arange(4).repeat(2)).terms()
    sum(term.value for term in terms.values()).backward()
    assert all(case.student.tap(tap).grad.any() for tap in case.method.needs.student)
    for part, term in terms.items():
        # Relations of nodes have no natural number; irg's vertices are counted.
        assert (term.count is None) == (part != "vertex") and term.value > 0
        torch.testing.assert_close(doubled[part].value, term.value)
