"""Cross-entropy of up-sampled logits, without the up-sampled logits.

At full resolution, logits take 319 MB for two crops of Cityscapes (2.5 GB with ADE20K's 150
classes), three times over: themselves, their log-softmax, and its gradient. Here a band of rows
is up-sampled at a time, and its gradient is added to that of the small logits at once.

A band of rows of the output needs the same rows of the input and one more on either side. Where
the factor of rows is a whole number, all positions and weights of the interpolation are those of
the whole map; else the rows of a band are blended one by one. Results are the same up to rounding
and the order of sums.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.ops.bilinear import blend, neighbours

# Up-sampled elements per band: many rows, since one more on either side is up-sampled as well.
_BAND_CPU, _BAND_DEVICE = 2**22, 2**25


def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Σ over pixels of ``F.cross_entropy`` of the logits, up-sampled to the target.

    Up-sampling is bilinear with ``align_corners=False``; half types are raised to float32. With
    ``create_graph`` the gradient is computed by autograd from the whole map.

    Args:
        logits: (B, K, h, w), or log-probabilities.
        target: (B, H, W) int64; ``ignore_index`` does not count.
        ignore_index: the label of void pixels.
        weight: (K,), of classes; None: 1.
        label_smoothing: as of ``F.cross_entropy``.

    Returns:
        A scalar, float32 or wider.
    """
    options = weight, ignore_index, label_smoothing
    return _UpsampledCrossEntropy.apply(logits, target, *options)


@torch.no_grad()
def pixel_losses(logits: Tensor, target: Tensor, *, ignore_index: int) -> Tensor:
    """-log p of the label at each pixel; arguments as of ``upsampled_cross_entropy``.

    Returns:
        (B, H, W), 0 at void pixels.
    """
    found = logits.new_empty(target.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    for rows, band, larger in _bands(logits, target):
        values, part = larger(logits[:, :, band]), target[:, rows]
        found[:, rows] = F.cross_entropy(values, part, ignore_index=ignore_index, reduction="none")
    return found


def upsampled(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Logits at a size (H, W), bilinear, float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the value and keeps only it, at the small size."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        total = logits.new_zeros((), dtype=dtype)
        needed = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits, dtype=dtype) if needed else None
        options = weight, ignore_index, label_smoothing
        for rows, band, larger in _bands(logits, target):
            part = logits[:, :, band].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                loss = _sum(larger(part), target[:, rows], *options)
            total = total + loss.detach()
            if gradient is not None:
                gradient[:, :, band] += torch.autograd.grad(loss, part)[0]
        ctx.save_for_backward(gradient, logits, target, weight)
        ctx.options = ignore_index, label_smoothing
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient, logits, target, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # its own gradient is asked for as well
            whole = upsampled(logits, target.shape[1:])
            loss = _sum(whole, target, weight, *ctx.options)
            (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return (gradient * upstream).to(logits.dtype), None, None, None, None


def _bands(
    logits: Tensor, target: Tensor
) -> Iterator[tuple[slice, slice, Callable[[Tensor], Tensor]]]:
    """Rows of the target, rows of the logits that they need, and what up-samples the latter."""
    (height, width), small = target.shape[1:], logits.shape[2]
    budget = _BAND_CPU if logits.device.type == "cpu" else _BAND_DEVICE
    per_row = max(1, logits.shape[0] * logits.shape[1] * width)  # of the target
    if small and height % small == 0:
        yield from _whole_factor(height // small, small, width, max(1, budget // per_row))
        return
    # A row of a band is there several times: both rows that it lies between, and their gradients.
    length = max(1, budget // per_row // 4)
    for start in range(0, height, length):
        stop = min(start + length, height)
        upper, lower, share = neighbours(range(start, stop), small / height, small)
        first, last = int(upper[0]), int(lower[-1]) + 1
        larger = _Blended(width, (upper - first, lower - first), share)
        yield slice(start, stop), slice(first, last), larger


def _whole_factor(
    factor: int, height: int, width: int, length: int
) -> Iterator[tuple[slice, slice, Callable[[Tensor], Tensor]]]:
    """``_bands`` of ``height`` rows of logits, about ``length`` rows of the target at a time."""
    length, margin = max(1, length // factor), 0 if factor == 1 else 1
    for start in range(0, height, length):
        stop = min(start + length, height)
        first, last = max(0, start - margin), min(height, stop + margin)
        above, rows = (start - first) * factor, (stop - start) * factor
        larger = _Inner(((last - first) * factor, width), slice(above, above + rows))
        yield slice(start * factor, stop * factor), slice(first, last), larger


class _Inner:
    """Up-samples a band, and keeps the rows that do not depend on where it was cut.

    Args:
        size: (H, W) of the up-sampled band.
        kept: its rows that count.
    """

    def __init__(self, size: tuple[int, int], kept: slice) -> None:
        self.size, self.kept = size, kept

    def __call__(self, band: Tensor) -> Tensor:
        """(B, K, h, w) to (B, K, rows, W)."""
        return upsampled(band, self.size)[:, :, self.kept]


class _Blended:
    """Widens a band, and blends neighbouring rows of it.

    Args:
        width: W.
        rows: (n,) int64 twice, rows of the band between which each row of the target lies.
        share: (n,) weight of the second.
    """

    def __init__(self, width: int, rows: tuple[Tensor, Tensor], share: Tensor) -> None:
        self.width, self.rows, self.share = width, rows, share

    def __call__(self, band: Tensor) -> Tensor:
        """(B, K, h, w) to (B, K, n, W)."""
        wide = upsampled(band, (band.shape[2], self.width))
        return blend(wide, 2, *self.rows, self.share[:, None])


def _sum(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return F.cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
