"""From what a black box returns, probabilities or class ids, to Outputs."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.models.box_values import Returns, checked_values
from segkd.models.class_map import FLOOR, USUAL, LeftOver, counted, mapped, safe_log, unknown_to
from segkd.models.query_error import QueryError
from segkd.ops.resize import match_sizes
from segkd.ops.tail import spread_tail
from segkd.structures import Outputs

_SEEN = 1e-3  # a position with less probability for the classes of the data teaches nothing
_SLACK = 0.02  # of a sum of probabilities in half precision


def shares_of(
    found: Any,
    images: Tensor,
    num_classes: int,
    stride: int,
    *,
    returns: Returns = "auto",
    strict: bool = False,
    who: str = "a black-box teacher",
) -> Tensor:
    """What a black box returned as probabilities, averaged to one per ``stride`` x ``stride``.

    Args:
        found: what ``checked_values`` takes; class ids 255 and -1 mean that nothing is known.
        images: (B, 3, H, W) of the query.
        num_classes: K.
        stride: pixels of the images per position; coarser predictions stay as they are.
        returns: what it should be, see ``BlackBoxConfig``.
        strict: refuse probabilities whose sum is not 1; else they are divided by it.
        who: the box, for messages.

    Returns:
        (B, K, h', w') float32 on the device of the images, of sum 1, or 0 where nothing is known.

    Raises:
        QueryError: it is neither probabilities nor class ids.
    """
    values = checked_values(found, images, num_classes, returns, who)
    target = (-(-images.shape[2] // stride), -(-images.shape[3] // stride))
    if values.ndim == 3:
        shares = _of_labels(values, num_classes, target, who)
    else:
        shares = values
        if strict:
            _require_sum(values, who)
        if shares.shape[2] > target[0] or shares.shape[3] > target[1]:
            sides = [min(pair) for pair in zip(shares.shape[2:], target, strict=True)]
            shares = F.adaptive_avg_pool2d(shares, (sides[0], sides[1]))
    total = shares.sum(1, keepdim=True)
    return shares / total.clamp_min(FLOOR)


def outputs_of(
    listed: Tensor,
    tail: Tensor | None = None,
    known: Tensor | None = None,
    class_map: Tensor | None = None,
    left_over: LeftOver = USUAL,
    unknown: tuple[int, ...] | None = None,
) -> Outputs:
    """Log-probabilities of the data's classes.

    Args:
        listed: (B, K', h, w) probabilities of classes that are named; their sum may be 0.
        tail: (B, K', h, w) the rest of the probability, spread evenly over the others.
        known: (B, h, w) bool.
        class_map: (K, K') of ``class_map.class_matrix``; None: the classes are those of the data.
        left_over: what is done about classes without a counterpart.
        unknown: ids of the data's classes that the box cannot know; None: by ``class_map``.
    """
    if unknown is None:
        unknown = () if class_map is None else unknown_to(class_map)
    seen = None
    if class_map is not None:
        seen = counted(listed if tail is None else listed + tail, class_map, left_over)
        listed = mapped(listed, class_map)
        tail = None if tail is None else mapped(tail, class_map)
    whole = listed if tail is None else listed + tail
    total = whole.sum(1)
    for condition in (seen, total > _SEEN):
        if condition is not None:
            known = condition if known is None else known & condition
    assert known is not None  # of the second condition
    scale = total.unsqueeze(1).clamp_min(FLOOR)
    return Outputs(
        safe_log(whole / scale),
        kind="log_prob",
        known=None if bool(known.all()) else known,
        tail=None if tail is None else tail / scale,
        unknown=unknown,
    )


def _require_sum(values: Tensor, who: str) -> None:
    total = values.sum(1)
    if bool(((total - 1).abs() > _SLACK).any() and (total > 0).any()):
        raise QueryError(
            f"{who} returned numbers of sums {float(total.min()):.3g} to {float(total.max()):.3g} "
            "over the classes, no probabilities. If these are logits, set `returns: logits`"
        )


def _of_labels(labels: Tensor, num_classes: int, target: tuple[int, int], who: str) -> Tensor:
    """Shares of the classes in each cell: (B, K, *target), of sum 1 or less."""
    void = (labels == 255) | (labels == -1)
    wrong = ((labels < 0) | (labels >= num_classes)) & ~void
    if bool(wrong.any()):
        images = tuple(wrong.flatten(1).any(1).nonzero().flatten().tolist())
        raise QueryError(
            f"{who} returned class {int(labels[wrong][0])}; it has {num_classes} classes, 0 to "
            f"{num_classes - 1}, and 255 means that nothing is known",
            images,
        )
    batch, height, width = labels.shape
    h, w = min(height, target[0]), min(width, target[1])
    rows = torch.arange(height, device=labels.device) * h // height
    columns = torch.arange(width, device=labels.device) * w // width
    cell = (rows[:, None] * w + columns).flatten().expand(batch, -1)
    known = (labels >= 0) & (labels < num_classes)
    index = torch.where(known, labels, num_classes).flatten(1) * (h * w) + cell
    counts = torch.zeros(batch, (num_classes + 1) * h * w, device=labels.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))
    shares = counts.view(batch, num_classes + 1, h, w)
    # A cell of which most is unknown is so as well.
    few = 2 * shares[:, -1:] > shares.sum(1, keepdim=True)
    return shares[:, :-1].masked_fill(few, 0)


def with_tail(teacher: Outputs, student: Outputs) -> Outputs:
    """The outputs of a teacher, with its tail spread as the student's; others stay as they are.

    Args:
        teacher: with or without ``tail``.
        student: its logits are not given a gradient.
    """
    if teacher.tail is None:
        return teacher
    mine, theirs, tail = match_sizes(
        student.logits.detach(), teacher.logits.detach().exp(), teacher.tail
    )
    shares = spread_tail(theirs, tail, mine)
    return replace(teacher, logits=shares.clamp_min(FLOOR).log(), tail=None)
