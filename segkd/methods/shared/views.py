"""Transformed views of each image in the batch, and maps of views turned back onto their images.

Each image is followed by its views, so that processes still hold contiguous parts of the batch.
Views count as images without labels: the task loss skips them, methods learn from the teacher. Only
mirroring and quarter turns are used, since they are undone without interpolation: a position of the
turned-back map is the same place of the scene as in the map of the image.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.ops.queued import queued
from segkd.structures import Batch

VIEW = "view"  # (n,) int64 in ``Batch.extra``: 0 for an image, then the number of the view
ViewKind = Literal["mirrored", "rotated"]
_NUMBER: dict[ViewKind, int] = {"mirrored": 1, "rotated": 3}


class ViewKeys(MethodConfig):
    """Keys of methods with views."""

    views: ViewKind = Field(
        "mirrored",
        description="mirrored: one view per image; rotated: three, by 90, 180 and 270 degrees, of "
        "square crops",
    )
    color: float = Field(
        0.4, ge=0, lt=1, description="change of a view's brightness, contrast and saturation"
    )


def with_views(batch: Batch, keys: ViewKeys, context: Context) -> Batch:
    """The batch in which each image is followed by its views.

    Where an image is invalid by ``context.mask``, its views are padding.

    Args:
        batch: B images.
        keys: kind of the views.
        context: its ``image_generators`` draw the colours.

    Raises:
        ConfigError: rotated views of images that are not square.
    """
    height, width = batch.images.shape[-2:]
    if keys.views == "rotated" and height != width:
        raise ConfigError(
            f"views: rotated turns images by 90 degrees, and these have {height}x{width} pixels. "
            "Set data.crop to a square, or views: mirrored"
        )
    count = _NUMBER[keys.views]
    visible = batch.valid if context.mask == "valid" else batch.not_padding

    def joined(values: Tensor, view: Callable[[int], Tensor]) -> Tensor:
        each = [values, *(view(number) for number in range(1, count + 1))]
        return torch.stack(each, dim=1).flatten(0, 1)

    factors = queued(_factors(keys.color, count, context), batch.images.device)
    labels, labelled = batch.labels, None
    if labels is not None:
        void = torch.full_like(labels, batch.ignore_index)
        labels = joined(labels, lambda number: void)
        known = batch.not_padding.new_ones(len(batch))
        known = known if batch.labelled is None else batch.labelled
        labelled = joined(known, lambda number: torch.zeros_like(known))
    numbers = batch.images.new_zeros(len(batch), dtype=torch.int64)
    extra = {name: joined(x, partial(_unknown, x)) for name, x in batch.extra.items()}
    return batch.replace(
        images=joined(
            batch.images,
            lambda number: _recolored(
                turned(batch.images, keys.views, number), factors[number - 1]
            ),
        ),
        labels=labels,
        labelled=labelled,
        not_padding=joined(batch.not_padding, lambda n: turned(visible, keys.views, n)),
        index=joined(batch.index, lambda number: batch.index),
        extra={**extra, VIEW: joined(numbers, lambda number: numbers + number)},
    )


def turned(maps: Tensor, kind: ViewKind, view: int) -> Tensor:
    """Maps (…, h, w) as a view sees them; a negative number of the view turns them back."""
    if kind == "mirrored":
        return maps.flip(-1)
    return torch.rot90(maps, view, (-2, -1))


def aligned(maps: Tensor, kind: ViewKind) -> list[Tensor]:
    """Images and their views apart, the views turned back onto the images.

    Args:
        maps: (n, …, h, w) of a batch of ``with_views``.
        kind: of the views.

    Returns:
        1 + V maps (B, …, h, w), first the images'.
    """
    each = maps.view(-1, 1 + _NUMBER[kind], *maps.shape[1:]).unbind(1)
    return [each[0], *(turned(x, kind, -v) for v, x in enumerate(each[1:], start=1))]


def of_images(context: Context, kind: ViewKind) -> Context:
    """The context of the images alone; what is padding in a view is padding in its image."""
    batch, every = context.batch, slice(None, None, 1 + _NUMBER[kind])
    images = batch.replace(
        images=batch.images[every],
        labels=None if batch.labels is None else batch.labels[every],
        not_padding=_seen_by_all(*aligned(batch.not_padding, kind)),
        index=batch.index[every],
        extra={name: value[every] for name, value in batch.extra.items()},
        labelled=None if batch.labelled is None else batch.labelled[every],
    )
    generators = context.image_generators[every]
    return dataclasses.replace(context, batch=images, image_generators=generators)


def _seen_by_all(image: Tensor, *views: Tensor) -> Tensor:
    """What is padding in no view, (B, h, w) bool.

    A view of nothing but padding does not count: a method that skips images without labels has
    made it so, as views are without labels.
    """
    for view in views:
        image = image & (view | ~view.flatten(1).any(1)[:, None, None])
    return image


def _unknown(values: Tensor, number: int) -> Tensor:
    """Annotations of a view: NaN, which stands for unknown; integers are the image's."""
    return torch.full_like(values, torch.nan) if values.is_floating_point() else values


def _factors(strength: float, count: int, context: Context) -> Tensor:
    """Brightness, contrast and saturation of each view: (V, B, 3) around 1."""
    draws = [torch.rand(count, 3, generator=each) for each in context.image_generators]
    return (1 + strength * (2 * torch.stack(draws, dim=1) - 1)).float()


def _recolored(images: Tensor, factors: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 with other brightness, contrast and saturation, (B, 3) around 1."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    values = (images.float() * brightness - 128) * contrast + 128
    grey = values.mean(dim=1, keepdim=True)
    return (grey + (values - grey) * saturation).clamp(0, 255).round().to(images.dtype)
