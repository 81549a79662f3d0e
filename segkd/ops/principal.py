"""Principal directions of feature maps: their first right singular vectors, in channel space.

With the valid positions of an image as the rows of X (N, C), they are the eigenvectors of XᵀX. A
few of them are found by power iteration on the C x C matrix, which is formed once; no full
decomposition is needed. Its first direction starts from the mean of the rows, which is close for
features behind a ReLU, and has a positive product with it: so its sign is determined, too.

The gradient of an exact decomposition has factors 1/(λ_i − λ_j) of all pairs of eigenvalues. It is
NaN as soon as two of them are equal, e.g. with two dead channels. Here it is that of one more step
v ← XᵀX v / λ from the direction found, with 1/λ instead of 1/(λ − λ_j): nearly the same where the
first singular value dominates, and always finite.
"""

import torch
from torch import Tensor

from segkd.ops.nodes import raised
from segkd.ops.precision import full_precision

STEPS = 20  # of power iteration; the error shrinks by (σ_2/σ_1)² in each
_LOST = 1e-5  # share of a column that is rounding after earlier directions were taken out


def principal_directions(
    maps: Tensor, mask: Tensor, number: int = 1, *, steps: int = STEPS
) -> Tensor:
    """The first right singular vectors of each image's features at valid positions.

    Half types are raised to float32, regardless of autocast and TF32 settings. A direction that
    the features do not have (fewer channels or positions, zero maps) is 0, without gradient.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        number: of directions per image.
        steps: of power iteration.

    Returns:
        (B, C, number), columns of length 1; the sign of all but the first is arbitrary.
    """
    columns = _scaled(raised(maps).masked_fill(~mask.unsqueeze(1), 0).flatten(2))
    with full_precision(maps.device):
        found = _iterated(columns.detach(), number, steps)
        return _differentiable(columns, found)


def group_directions(maps: Tensor, groups: Tensor, *, steps: int = STEPS // 2) -> Tensor:
    """The first right singular vector of each group of positions, as ``principal_directions``.

    Args:
        maps: (B, C, h, w), finite.
        groups: (B, G, N) bool, the positions of each group.
        steps: of power iteration.

    Returns:
        (B, G, C), rows of length 1 with a positive product with the group's mean.
    """
    columns = _scaled(raised(maps).flatten(2))
    parts = groups.to(columns.dtype)
    with full_precision(maps.device):
        fixed = columns.detach()
        with torch.no_grad():
            found = _unit(parts @ fixed.mT)
            for _ in range(steps):
                found = _unit(((found @ fixed) * parts) @ fixed.mT)
        product = ((found @ columns) * parts) @ columns.mT
        before = product.detach()
        eigenvalue = (found * before).sum(dim=2, keepdim=True)
        moved = (product - before) / eigenvalue.masked_fill(eigenvalue <= 0, 1)
        return found + moved - found * (found * moved).sum(dim=2, keepdim=True)


def _scaled(columns: Tensor) -> Tensor:
    """Columns (B, C, N) with a peak of 1 per image, so that squares neither overflow nor vanish."""
    peak = torch.linalg.vector_norm(columns.detach(), torch.inf, dim=(1, 2), keepdim=True)
    return columns / peak.masked_fill(peak == 0, 1)


def _unit(rows: Tensor) -> Tensor:
    """Rows (B, G, C) scaled to length 1; those of zeros stay."""
    length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    return rows / length.masked_fill(length == 0, 1)


@torch.no_grad()
def _iterated(columns: Tensor, number: int, steps: int) -> Tensor:
    """Directions (B, C, number) of columns (B, C, N), by power iteration."""
    channels, positions = columns.shape[1:]
    # With fewer positions than channels both products with X are cheaper than one with XᵀX.
    gram = columns @ columns.mT if positions > channels else None
    found = _orthonormal(_start(columns, number))
    for _ in range(steps):
        found = _orthonormal(columns @ (columns.mT @ found) if gram is None else gram @ found)
    return found


def _start(columns: Tensor, number: int) -> Tensor:
    """The mean of the rows, and cosines over the channels: (B, C, number)."""
    length = columns.shape[1]
    place = torch.arange(length, dtype=columns.dtype, device=columns.device) + 0.5
    waves = [(place * (torch.pi * wave / length)).cos() for wave in range(1, number)]
    others = [wave.expand(len(columns), -1) for wave in waves]
    return torch.stack([columns.mean(dim=2), *others], dim=2)


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram-Schmidt over the columns of (B, C, number); dependent ones become 0."""
    done: list[Tensor] = []
    for column in torch.split(columns, 1, dim=2):
        before = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        if done:
            basis = torch.cat(done, dim=2)
            column = column - basis @ (basis.mT @ column)
        length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        lost = length <= _LOST * before
        done.append((column / length.masked_fill(lost, 1)).masked_fill(lost, 0))
    return torch.cat(done, dim=2)


def _differentiable(columns: Tensor, found: Tensor) -> Tensor:
    """The directions found, with the gradient of one more step of power iteration.

    The value is not that of one more step: rounding towards the first direction would grow in the
    later ones. Nor do these follow the earlier directions, from which they are λ_i/λ_j too hasty.
    """
    product = columns @ (columns.mT @ found)
    fixed = product.detach()
    eigenvalue = (found * fixed).sum(dim=1, keepdim=True)
    moved = (product - fixed) / eigenvalue.masked_fill(eigenvalue <= 0, 1)  # 0, with a graph
    return found + moved - found @ (found.mT @ moved).triu()
