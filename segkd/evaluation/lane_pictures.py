"""Sheets of images of a lane set: annotated lanes next to those that networks detect."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from segkd.data.base import Sample
from segkd.data.lane_base import LaneDataset
from segkd.data.transforms import resize_image
from segkd.errors import DataError
from segkd.inference.lane_maps import lane_maps
from segkd.inference.row_decode import decode_lanes
from segkd.ops.mode import eval_mode
from segkd.viz.lane_sheet import Slots, lane_sheet

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig


def lane_pictures(
    dataset: LaneDataset,
    indices: Sequence[int],
    networks: Mapping[str, nn.Module],
    config: "EvalConfig",
    title: str = "",
) -> np.ndarray:
    """Draws one row per image: annotated lanes, and those of each network.

    Args:
        dataset: the images; with ``data.on_error: skip`` those that can be read.
        indices: of the images.
        networks: by column title, on the CPU.
        config: options of lanes.
        title: above everything; may be empty.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        DataError: an image cannot be read.
    """
    samples = list(_readable(dataset, indices))
    columns: dict[str, list[Slots]] = {"annotated": [sample.lanes or () for sample in samples]}
    for name, network in networks.items():
        with eval_mode(network):
            columns[name] = [_found(network, dataset, sample, config) for sample in samples]
    images = [sample.image for sample in samples]
    names, palette = dataset.classes[1:], dataset.palette[1:]
    return lane_sheet(images, columns, palette, names, title=title)


def _readable(dataset: LaneDataset, indices: Sequence[int]) -> Iterator[Sample]:
    for index in indices:
        try:
            yield dataset.read(int(index))
        except DataError:
            if dataset.config.on_error != "skip":
                raise


def _found(network: nn.Module, dataset: LaneDataset, sample: Sample, config: "EvalConfig") -> Slots:
    """Lanes by slot in pixels of the sample's image, at CULane's rows or its network's."""
    cut_top, (height, width) = dataset.config.cut_top, sample.image.shape[:2]
    image = resize_image(sample.image, dataset.config.resize or (height, width))
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    maps = lane_maps(network, batch)
    size = height + cut_top, width
    (lanes,) = decode_lanes(maps, [size], config.lanes, cut_top=cut_top)
    lower = np.array([0, cut_top])
    return [None if lane is None else lane - lower for lane in lanes.points]
