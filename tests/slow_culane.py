"""The official CULane program restated, one scalar and one segment after another, and lanes."""

import itertools
import math

import numpy as np

from segkd.metrics.culane_paint import thick_lines

SIZE = (590, 1640)
LOWEST_INT = -(2**31)


def slow_curve(points):
    """Samples of a lane as the official spline has them; float32 where C++ has float."""
    points = [(np.float32(x), np.float32(y)) for x, y in points]
    n = len(points)
    if n == 2:
        return points
    rise = [[np.float64(points[i + 1][j] - points[i][j]) for i in range(n - 1)] for j in (0, 1)]
    h = [np.sqrt(rise[0][i] ** 2 + rise[1][i] ** 2) for i in range(n - 1)]
    axes = []
    for j in (0, 1):
        slope = [rise[j][i] / h[i] for i in range(n - 1)]
        upper, right = [h[1] / (2 * (h[0] + h[1]))], []
        right.append(6 * (slope[1] - slope[0]) / (2 * (h[0] + h[1])))
        for i in range(1, n - 2):
            pivot = 2 * (h[i] + h[i + 1]) - h[i] * upper[i - 1]
            upper.append(h[i + 1] / pivot)
            right.append((6 * (slope[i + 1] - slope[i]) - h[i] * right[i - 1]) / pivot)
        bend = [np.float64(0)] * n
        bend[n - 2] = right[n - 3]
        for i in range(n - 4, -1, -1):
            bend[i + 1] = right[i] - upper[i] * bend[i + 2]
        axes.append((slope, bend))
    samples = []
    for i in range(n - 1):
        for k in range(50):
            t, sample = h[i] / 50 * k, []
            for j, (slope, bend) in enumerate(axes):
                linear = slope[i] - (2 * h[i] * bend[i] + h[i] * bend[i + 1]) / 6
                cubic = (bend[i + 1] - bend[i]) / (6 * h[i])
                value = points[i][j] + linear * t + bend[i] / 2 * t**2 + cubic * t**3
                sample.append(np.float32(value))
            samples.append(tuple(sample))
    return [*samples, points[-1]]


def slow_int(value):
    """Half to even; what no int can hold is the lowest one, as on x86."""
    return round(float(value)) if LOWEST_INT <= value < -LOWEST_INT else LOWEST_INT


def slow_mask(points, size=SIZE, width=30):
    mask = np.zeros(size, np.uint8)
    if len(points) < 2:
        return mask
    with np.errstate(all="ignore"):
        path = [(slow_int(x), slow_int(y)) for x, y in slow_curve(points)]
    pairs = itertools.pairwise(path)
    lines = [pair for pair in pairs if pair[0] != pair[1] or len(set(path)) == 1]
    begin, end = np.array(lines, np.int64).transpose(1, 0, 2)
    return painted(begin, end, size, width)


def painted(begin, end, size, width):
    """Segments (n, 2), (n, 2) on one mask, each as OpenCV 4 paints it."""
    mask = np.zeros(size, np.uint8)
    runs = thick_lines(begin, end, np.array(size), width)
    rows = (runs.row, runs.left, runs.right)
    for row, left, right in set(zip(*(part.tolist() for part in rows), strict=True)):
        mask[row, left : right + 1] = 1
    return mask


def slow_match(weights):
    """The official search for a matching, with its flags and its order."""
    rows, columns = len(weights), len(weights[0])
    of_row, of_column = [-1] * rows, [-1] * columns
    right, left = [0.0] * columns, []
    for row in weights:
        highest = -1e5
        for weight in row:
            if highest < weight:
                highest = weight
        left.append(highest)

    def search(u):
        row_used[u] = True
        for v in range(columns):
            if not column_used[v] and abs(left[u] + right[v] - weights[u][v]) < 1e-2:
                column_used[v] = True
                if of_column[v] == -1 or search(of_column[v]):
                    of_column[v], of_row[u] = u, v
                    return True
        return False

    for u in range(rows):
        while True:
            row_used, column_used = [False] * rows, [False] * columns
            if search(u):
                break
            step = 1e10
            for i in range(rows):
                for j in range(columns):
                    slack = left[i] + right[j] - weights[i][j]
                    if row_used[i] and not column_used[j] and slack < step:
                        step = slack
            if step == 1e10:
                return of_row
            left = [a - step if used else a for a, used in zip(left, row_used, strict=True)]
            right = [b + step if used else b for b, used in zip(right, column_used, strict=True)]
    return of_row


def slow_ious(annotation, prediction):
    painted = [[slow_mask(lane) for lane in side] for side in (annotation, prediction)]
    rows = []
    for a in painted[0]:
        shared = [int((a & b).sum()) for b in painted[1]]
        unions = [int((a | b).sum()) for b in painted[1]]
        rows.append([s / u if u else math.nan for s, u in zip(shared, unions, strict=True)])
    return rows


def straight(x, slant=0.0, start=590, step=10, count=28):
    """A lane from the bottom up; ``slant`` in columns per row."""
    y = start - step * np.arange(count)
    return np.stack([x + slant * (start - y), y], 1).astype(float)


def road(rng):
    y = np.arange(600, 270, -rng.choice([8, 10, 20])) + rng.integers(-12, 12)
    x = rng.uniform(-100, 1740) + (600 - y) * rng.uniform(-2.2, 2.2)
    lane = np.stack([x + rng.uniform(-1, 1) * ((600 - y) / 30) ** 2, y], 1)
    return lane[(x > -40) & (x < 1680)]


def side(rng):
    n = rng.integers(3, 30)
    x = rng.choice([0, 1639]) + rng.uniform(-20, 20) + np.cumsum(rng.normal(0, 4, n))
    return np.stack([x, np.linspace(600, rng.uniform(0, 300), n)], 1)


def crossing_side(rng):
    y = np.arange(400, 300, -10.0) + rng.uniform(-200, 180)
    x = rng.choice([0, 1639]) + (np.arange(10) - 4.5) * 10 * rng.uniform(-1.8, 1.8)
    return np.stack([x + rng.uniform(-3, 3), y], 1)


def ceiling(rng):
    n = rng.integers(3, 30)
    x = rng.uniform(0, 1640) + np.cumsum(rng.normal(0, 10, n))
    return np.stack([x, np.linspace(rng.uniform(50, 300), rng.uniform(-30, 20), n)], 1)


def corner(rng):
    along = np.linspace(-60, 60, 12)
    x = rng.choice([0, 1639]) + along * rng.choice([-1, 1]) * rng.uniform(0.5, 2)
    return np.stack([x + rng.normal(0, 5), rng.choice([0, 589]) + along * rng.choice([-1, 1])], 1)


def loop(rng):
    n = rng.integers(3, 7)
    return rng.uniform([-50, -50], [1690, 640], (n, 2))


def level(rng):
    x = np.linspace(rng.uniform(-50, 300), rng.uniform(600, 1700), 12)
    return np.stack([x, rng.uniform(-20, 610) + np.cumsum(rng.normal(0, 3, 12))], 1)


def sparse(rng):
    n = rng.integers(3, 6)
    y = np.sort(rng.uniform(-100, 700, n))[::-1]
    return np.stack([rng.uniform(-100, 1740) + np.cumsum(rng.normal(0, 80, n)), y], 1)


def odd(rng):
    lane = rng.integers([-30, -30], [1670, 620], (rng.integers(1, 7), 2)).astype(float)
    if rng.random() < 0.3:
        lane[rng.integers(len(lane))] *= rng.choice([100.0, 1e4, 1e6, -1e5])
    return lane
