"""Row anchors: lanes by classification in rows of the image instead of pixels.

Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757. The
deepest feature of an encoder is reduced to a few channels, flattened, and two linear layers give
each lane a distribution over the cells of each row: the whole image is seen at once, and there is
no decoder. See ``ops.row_cells`` for the form of the logits. The defaults are the published values
for CULane at 288x800: 18 rows, 200 cells, 8 channels, 2048 hidden units.
"""

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.network import Network
from segkd.models.smp import bare_encoder, only_size, stage_levels
from segkd.models.taps import Record

_SPAN = (0.4229, 0.9992)  # y = 249 to 589 of 590: the rows of CULane's predictions


class RowAnchor(Network):
    """Classifies the rows of each lane; for images of one size only.

    ``encoder`` and ``weights`` are as for networks of segmentation-models-pytorch. Taps: the
    encoder's stages, ``head`` (the reduced feature before it is flattened), ``logits``
    (B, L+1, R, G), which are no map of the image: methods that compare logits of pixels refuse
    this network, those of features and ``ld`` do not. The task losses are ``row_cells``,
    ``row_similarity`` and ``row_shape``; an ``aux_head`` takes those of pixels.

    Options:
        size: height and width of the images.
        rows: number of rows R, evenly spaced.
        span: heights of the highest and the lowest row, as shares of the height of the images.
        cells: G, in which the width of a row is divided.
        channels: of the reduced feature.
        hidden: units between both linear layers.
    """

    name: ClassVar[str] = "row_anchor"
    has_encoder: ClassVar[bool] = True
    chooses_encoder: ClassVar[bool] = True
    any_size: ClassVar[str] = "build it for that size: student.options.size=[H, W]"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        size: tuple[int, int] = (288, 800),
        rows: int = 18,
        span: tuple[float, float] = _SPAN,
        cells: int = 200,
        channels: int = 8,
        hidden: int = 2048,
    ) -> None:
        super().__init__(config, num_classes)
        counts = {"rows": rows, "cells": cells, "channels": channels, "hidden": hidden}
        for key, value in counts.items():
            least = 2 if key in ("rows", "cells") else 1
            if type(value) is not int or value < least:
                raise ConfigError(f"options.{key}: got {value!r}, expected {least} or more")
        if num_classes < 2:
            raise ConfigError("arch 'row_anchor' finds lanes: the data has one class, so no lane")
        (height, width), (top, bottom) = _size(size), _span(span)
        self.encoder = bare_encoder(config)
        self.divisor = self.encoder.output_stride
        if min(height, width) <= 0 or height % self.divisor or width % self.divisor:
            raise ConfigError(
                f"options.size: got {list(size)}, expected multiples of {self.divisor}, the stride "
                f"of {config.encoder}"
            )
        only = only_size(self.encoder, config.options)
        if only is not None and only != (height, width):
            raise ConfigError(
                f"options.size: got {list(size)}, but {config.encoder} takes images of "
                f"{only[0]}x{only[1]} alone. Take an encoder for any size, such as resnet18"
            )
        self.fixed_size = height, width
        self.rows = tuple(float(share) for share in np.linspace(top, bottom, rows))
        self.cells = cells
        self._levels = stage_levels(self.encoder.out_channels)
        positions = (height // self.divisor) * (width // self.divisor)
        self.reduce = nn.Conv2d(self.encoder.out_channels[-1], channels, 1)
        self.classify = nn.Sequential(
            nn.Linear(channels * positions, hidden),
            nn.ReLU(),
            nn.Linear(hidden, (num_classes - 1) * rows * (cells + 1)),
        )
        for layer in self.classify:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        features = self.encoder(images)
        for stage, level in self._levels.items():
            record(stage, features[level])
        head = self.reduce(features[-1])
        record("head", head)
        shape = (-1, self.num_classes - 1, len(self.rows), self.cells + 1)
        logits = self.classify(head.flatten(1)).view(shape)
        lanes = logits[..., 1:] - logits[..., :1]  # the first is "not in this row"
        return F.pad(lanes, (0, 0, 0, 0, 1, 0))

    def tap_names(self) -> list[str]:
        return [*self._levels, "head", "logits"]

    @property
    def title(self) -> str:
        return f"{self.config.arch} with {self.config.encoder}"


def _size(value: object) -> tuple[int, int]:
    """``options.size``. Raises ConfigError if it is not two whole numbers."""
    sides = list(value) if isinstance(value, list | tuple) else []
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise ConfigError(f"options.size: got {value!r}, expected two numbers, e.g. [288, 800]")
    return sides[0], sides[1]


def _span(value: object) -> tuple[float, float]:
    """``options.span``. Raises ConfigError if it is not two ascending shares."""
    ends = list(value) if isinstance(value, list | tuple) else []
    if len(ends) == 2 and all(type(end) in (int, float) for end in ends):
        top, bottom = ends
        if 0 <= top < bottom <= 1:
            return float(top), float(bottom)
    raise ConfigError(
        f"options.span: got {value!r}, expected the shares of the height at which the highest and "
        f"the lowest row are, e.g. {list(_SPAN)}"
    )
