from itertools import product

import numpy as np

from segkd.inference.assignment import pairs


def cheapest(cost, alone):
    """The least total cost of all ways to give rows a column of their own, or none."""
    rows, columns = cost.shape
    totals = []
    for choice in product(range(-1, columns), repeat=rows):
        taken = [column for column in choice if column >= 0]
        if len(taken) == len(set(taken)):
            parts = [alone if c < 0 else cost[row, c] for row, c in enumerate(choice)]
            totals.append(sum(parts))
    return min(totals)


def test_no_pairing_is_cheaper():
    draw = np.random.default_rng(0)
    for _ in range(300):
        cost = draw.integers(0, 12, draw.integers(1, 5, 2)).astype(float)
        cost[draw.random(cost.shape) < 0.2] = np.inf
        alone = float(draw.integers(2, 10))
        found = pairs(cost, alone)
        rows, columns = {row for row, _ in found}, {column for _, column in found}
        assert len(rows) == len(columns) == len(found)
        total = sum(cost[pair] for pair in found) + alone * (len(cost) - len(found))
        assert total == cheapest(cost, alone)


def test_far_ones_stay_alone():
    assert pairs(np.array([[1.0, 9.0], [9.0, 9.0]]), alone=5.0) == [(0, 0)]
    assert pairs(np.zeros((0, 3)), alone=1.0) == pairs(np.zeros((3, 0)), alone=1.0) == []
