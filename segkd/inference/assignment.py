"""The cheapest pairing of two sets, in which some may stay alone.

The Hungarian method with potentials (Kuhn 1955; Jonker & Volgenant, Computing 1987): rows are
added one by one along a shortest augmenting path, O(n²m).
"""

import numpy as np


def pairs(cost: np.ndarray, alone: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of the least total cost; a row without a partner costs ``alone``.

    Args:
        cost: (n, m), may hold infinity; pairs that cost ``alone`` or more are not formed.
        alone: cost of a row without a partner.

    Returns:
        The pairs, by row.
    """
    rows, columns = cost.shape
    if not rows or not columns:
        return []
    # One more column for each row, in which it stays alone
    allowed = np.where(cost < alone, cost, 2.0 * alone + 1.0)
    padded = np.concatenate([allowed, np.full((rows, rows), alone)], axis=1)
    owner = _owners(padded)
    found = [(row, column) for column, row in enumerate(owner[:columns]) if row >= 0]
    return sorted(pair for pair in found if cost[pair] < alone)


def _owners(cost: np.ndarray) -> list[int]:
    """Of each column the row that gets it, or -1; finite costs (n, m) with n <= m."""
    rows, columns = cost.shape
    of_row, of_column = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for start in range(rows):
        row, distance = start, np.full(columns, np.inf)
        before, done = np.full(columns, -1), np.zeros(columns, bool)
        last, reached, path = -1, [start], 0.0
        while True:
            open_ = ~done
            reduced = path + cost[row] - of_row[row] - of_column
            nearer = open_ & (reduced < distance)
            distance[nearer], before[nearer] = reduced[nearer], last
            last = int(np.argmin(np.where(open_, distance, np.inf)))
            path, done[last] = distance[last], True
            if owner[last] < 0:
                break
            row = int(owner[last])
            reached.append(row)
        closed = done & (owner >= 0)
        of_row[start] += path
        of_row[owner[closed]] += path - distance[closed]
        of_column[closed] -= path - distance[closed]
        while last >= 0:  # along the path, each column gets the row of the one before
            previous = int(before[last])
            owner[last] = start if previous < 0 else owner[previous]
            last = previous
    return owner.tolist()
