"""Divergence between the similarities among nodes of images, with half of the products.

Where anchors and keys are the same nodes, the products of images i and j serve both orders: rows
are softmaxes for the anchors of i, columns for those of j. Nodes have length 1, so exp(a · b / T)
is finite without a maximum to subtract, and one exponential serves both orders as well. With r and
c the sums of rows and columns of E = exp(S Sᵀ / T), the gradient of both orders is one map,

    M_ab = E_s,ab (w_a / r_s,a + w_b / c_s,b) − E_t,ab (w_a / r_t,a + w_b / c_t,b),

times the nodes: M S_j for image i and Mᵀ S_i for image j. So there are four products for a pair of
images where ``similarity_kl`` has eight.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize
from segkd.ops.precision import tf32_products

# Similarities of two images that are kept between sums and gradient; those of larger images are
# computed twice. Blocks of rows fit the cache of a CPU and keep a device busy.
_KEPT = BlockSize(2**22, 2**25)
_BLOCK = BlockSize(2**18, 2**25)
_ROWS = 128
_FEWEST = 256  # nodes of an image: below, the overhead for each pair of images is larger
_LARGEST = 60.0  # exponent: e^60 times any number of nodes is finite in float32


def is_worthwhile(nodes: int, temperature: float) -> bool:
    """Whether ``symmetric_kl`` is safe and faster for so many nodes of an image."""
    return nodes >= _FEWEST and temperature * _LARGEST >= 1


def symmetric_kl(
    student: Tensor, teacher: Tensor, keep: Tensor, temperature: float, *, across: bool = True
) -> Tensor:
    """``similarity_kl`` of kept nodes to the kept nodes of each image, summed over both.

    The gradient reaches ``student``; there is no double backward. Half types are raised to float32,
    regardless of autocast.

    Args:
        student, teacher: nodes (B, N, C_s) and (B, N, C_t) of length 1 or 0, see ``unit``.
        keep: (B, N) bool, False for nodes that are neither anchors nor keys.
        temperature: T of both softmaxes, at least 1/60.
        across: relate all pairs of images; else each image to itself only.

    Returns:
        A scalar.
    """
    return _SymmetricKL.apply(student, teacher, keep, temperature, across)


class _SymmetricKL(torch.autograd.Function):
    """Computes the gradient together with the value and keeps only it."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, keep: Tensor, temperature: float, across: bool
    ) -> Tensor:
        ctx.type = student.dtype
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        factor = keep.to(dtype)
        # Nodes of length 0 add nothing to products with a map.
        student, teacher = (x.to(dtype) * factor.unsqueeze(2) for x in (student, teacher))
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        with tf32_products(student.device):
            pairs = _Pairs(student, teacher, factor, temperature, gradient)
            value = pairs.sum(across)
        if gradient is not None:
            gradient *= factor.unsqueeze(2)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        found = None if gradient is None else (gradient * upstream).to(ctx.type)
        return found, None, None, None, None


class _Pairs:
    """Pairs of images i <= j, one after the other, in the same scratch memory.

    Args:
        student, teacher: nodes (B, N, C), 0 where they are not kept.
        keep: (B, N), 1 or 0.
        temperature: T.
        gradient: of the student's nodes, to which is added; None: not wanted.
    """

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        keep: Tensor,
        temperature: float,
        gradient: Tensor | None,
    ) -> None:
        self.nodes, self.keep = (student, teacher), keep
        self.temperature, self.gradient = temperature, gradient
        size, device = keep.shape[1], keep.device
        self.height = max(1, min(size, max(_ROWS, _BLOCK.on(device) // max(1, size))))
        self.keeps_maps = size * size <= _KEPT.on(device)
        self.maps = keep.new_empty(2, size if self.keeps_maps else self.height, size)
        self.scratch = keep.new_empty(self.height, size)

    def sum(self, across: bool) -> Tensor:
        value, images = self.keep.new_zeros(()), len(self.keep)
        for i in range(images):
            for j in range(i, images if across else i + 1):
                value = value + self._pair(i, j)
        return value

    def _pair(self, i: int, j: int) -> Tensor:
        """The value of both orders of two images, or of the one order of one; adds gradients."""
        sums = self.keep.new_zeros(2, 3, self.keep.shape[1])  # of rows and columns
        of_rows, of_columns = (sums[0], sums[0 if i == j else 1])
        for rows, columns, behind in self._blocks(i == j):
            maps = self._exponentials(i, j, rows, columns)
            skipped = behind.start - columns.start
            for row_sum, column_sum, part in zip(of_rows, of_columns, maps, strict=True):
                row_sum[rows].addmv_(part, self.keep[j, columns])
                column_sum[behind].addmv_(part[:, skipped:].T, self.keep[i, rows])
        value, row_factors = self._divergence(of_rows, self.keep[i])
        column_factors = row_factors
        if i != j:
            other, column_factors = self._divergence(of_columns, self.keep[j])
            value = value + other
        if self.gradient is not None:
            self._add_gradient(i, j, row_factors, column_factors)
        return value

    def _blocks(self, same: bool) -> Iterator[tuple[slice, slice, slice]]:
        """Rows, their columns, and those columns whose transposed products are not computed.

        Of an image with itself only blocks on the diagonal and to the right of it are.
        """
        size = self.keep.shape[1]
        for start in range(0, size, self.height):
            stop = min(start + self.height, size)
            first, behind = (start, stop) if same else (0, 0)
            yield slice(start, stop), slice(first, size), slice(behind, size)

    def _exponentials(
        self, i: int, j: int, rows: slice, columns: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E_s, E_t, and E_t times the difference of both exponents, of a block."""
        own, other = self._block(rows, columns)
        for nodes, part in zip(self.nodes, (own, other), strict=True):
            torch.mm(nodes[i, rows] / self.temperature, nodes[j, columns].T, out=part)
        difference = torch.sub(other, own, out=self._free(rows, columns))
        own.exp_()
        other.exp_()
        return own, other, difference.mul_(other)

    def _divergence(self, sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over anchors, and (2, N): weight over the sum of student and of teacher."""
        own, other, difference = sums
        without = other == 0  # an image without a key
        own, other = own.masked_fill(without, 1), other.masked_fill(without, 1)
        weight = weight.masked_fill(without, 0)
        value = weight.dot(difference / other + (own / other).log())
        return value, torch.stack((weight / own, weight / other))

    def _add_gradient(self, i: int, j: int, row_factors: Tensor, column_factors: Tensor) -> None:
        assert self.gradient is not None
        nodes = self.nodes[0]
        row_factors, column_factors = (x / self.temperature for x in (row_factors, column_factors))
        for rows, columns, behind in self._blocks(i == j):
            if not self.keeps_maps:
                self._exponentials(i, j, rows, columns)
            own, other = self._block(rows, columns)
            factor = self._free(rows, columns)
            torch.add(row_factors[0, rows, None], column_factors[0, columns], out=factor)
            own.mul_(factor)
            torch.add(row_factors[1, rows, None], column_factors[1, columns], out=factor)
            own.addcmul_(other, factor, value=-1)
            self.gradient[i, rows].addmm_(own, nodes[j, columns])
            transposed = own[:, behind.start - columns.start :].T
            self.gradient[j, behind].addmm_(transposed, nodes[i, rows])

    def _block(self, rows: slice, columns: slice) -> Tensor:
        """(2, rows, columns) of the maps of student and teacher."""
        if self.keeps_maps:
            return self.maps[:, rows, columns]
        return self.maps[:, : rows.stop - rows.start, columns]

    def _free(self, rows: slice, columns: slice) -> Tensor:
        return self.scratch[: rows.stop - rows.start, columns]
