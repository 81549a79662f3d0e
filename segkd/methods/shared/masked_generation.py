"""Generation of the teacher's features from the student's, most of which are hidden (MGD)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segkd.modules.adapter import start_gain
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes

_WIDEST = 512


def generated_pair(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    keep: Tensor | None,
    generate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Generated and true features at their common size, and the mask of valid positions.

    Args:
        student: features (B, C, h, w), aligned to the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are zero before ``generate``.
        keep: (B, h, w) bool, False where positions are hidden from ``generate``; None: all are
            kept.
        generate: the generator, (B, C, h, w) -> (B, C, h, w).

    Returns:
        (B, C, h, w) twice, float32 or wider, and (B, h, w) bool.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask)
    seen = mask if keep is None else mask & keep
    generated = generate(student.masked_fill(~seen.unsqueeze(1), 0))
    return generated.to(teacher.dtype), teacher, mask


def random_keep(
    generators: Sequence[torch.Generator], size: tuple[int, int], masked: float
) -> Tensor:
    """A random mask (B, h, w) bool, False with probability ``masked``.

    Args:
        generators: CPU generators, one per image.
        size: (h, w).
        masked: share of positions that are False, on average.
    """
    if not generators:
        return torch.zeros((0, *size), dtype=torch.bool)
    return torch.stack([torch.rand(size, generator=draw) >= masked for draw in generators])


def feature_generator(channels: int, width: int = 0) -> nn.Sequential:
    """A 3x3 convolution, ReLU, and a 3x3 convolution that starts near zero (``channel_adapter``).

    Args:
        channels: of the maps, before and after.
        width: channels in between; 0: as many, at most 512.
    """
    width = width or min(channels, _WIDEST)
    first = nn.Conv2d(channels, width, kernel_size=3, padding=1)
    last = nn.Conv2d(width, channels, kernel_size=3, padding=1)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= start_gain()
        nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(), last)
