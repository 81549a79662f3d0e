"""What pixels of one class have in common: the mean of their predictions, or a partner for each."""

from collections.abc import Callable

import torch
from torch import Tensor

from segkd.ops.target import target_map


@torch.no_grad()
def class_predictions(
    log_prob: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor]:
    """The mean prediction of each class, and how far its pixels are from it.

    Args:
        log_prob: log-probabilities (B, K, h, w).
        labels: (B, h, w) int64; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid.
        all_sum: adds a tensor over processes.

    Returns:
        (K, K) log of the mean probabilities, a row per class of the label, and (K,) the mean of
        KL(a pixel's prediction ‖ the mean prediction). Float64; uniform and 0 for absent classes.
    """
    classes = log_prob.shape[1]
    sums = torch.zeros(classes, classes + 2, dtype=torch.float64, device=log_prob.device)
    for rows, own_labels, valid in zip(log_prob, labels, mask, strict=True):
        # Products in float64: small, and neither autocast nor TF32 can round them.
        members = target_map(own_labels[None].masked_fill(~valid, -1), classes)[0]
        rows = rows.flatten(1).double().masked_fill(~valid.flatten(), 0)
        seen = rows.exp()
        entropy = (seen * rows).masked_fill(seen == 0, 0).sum(0, keepdim=True)
        columns = torch.cat([seen, entropy, torch.ones_like(entropy)])
        sums += members.flatten(1).double() @ columns.T
    sums = all_sum(sums)
    mean, entropy, count = sums.split([classes, 1, 1], dim=1)
    absent, count = count == 0, count.clamp(min=1)
    mean = (mean / count).masked_fill(absent, 1 / classes)
    spread = (entropy / count - torch.xlogy(mean, mean).sum(1, keepdim=True)).clamp(min=0)
    low = torch.finfo(torch.float32).tiny
    return mean.clamp(min=low).log(), spread.masked_fill(absent, 0).squeeze(1)


def random_partners(
    labels: Tensor, images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Matches each of M pixels with another of its class, one to one and at random.

    Pixels of a class are lined up image by image, in random order within each, and each takes the
    one that follows after as many as the largest image has. So a partner is from another image,
    unless one image has more than half of the class. A pixel that is alone in its class is its
    own partner.

    Args:
        labels: (M,) int64, from 0.
        images: (M,) int64, from 0: the image of each pixel.
        generator: of the CPU.

    Returns:
        (M,) int64: the position of each pixel's partner.
    """
    if not len(labels):
        return labels
    shuffle = torch.randperm(len(labels), generator=generator).to(labels.device)
    turn = torch.randperm(int(images.max()) + 1, generator=generator).to(labels.device)
    group = labels * len(turn) + turn[images]  # a number per class and image
    order = shuffle[group[shuffle].argsort(stable=True)]
    counts = group.bincount(minlength=(int(labels.max()) + 1) * len(turn)).unflatten(
        0, (-1, len(turn))
    )
    total, largest = counts.sum(1), counts.amax(1)
    step = torch.where(largest < total, largest, total // 2)
    start = total.cumsum(0) - total
    lined_up = labels[order]
    place = torch.arange(len(labels), device=labels.device) - start[lined_up]
    following = start[lined_up] + (place + step[lined_up]) % total[lined_up]
    return torch.empty_like(order).scatter_(0, order, order[following])
