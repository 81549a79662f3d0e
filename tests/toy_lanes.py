"""A lane set, and a network that reads slots off colours, so that it finds all lanes."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from segkd import registry
from segkd.config.schema import ModelConfig
from segkd.data.base import Sample
from segkd.data.lane_base import (
    LaneAnnotation,
    LaneDataConfig,
    LaneDataset,
    lane_classes,
    lane_palette,
)
from segkd.data.lane_masks import painted
from segkd.errors import DataError
from segkd.models.network import Network

SIZE = (118, 328)  # a fifth of CULane's
ROWS = np.arange(30.0, 118.0, 4.0)


class ToyLanes(LaneDataset):
    """Straight lanes painted in the colours of their slots; every third image lacks the first."""

    name = "toy_lanes"
    metric = "culane"
    expected_tree = "nothing"

    class Config(LaneDataConfig):
        images: int = 5
        lane_width: int = 5
        broken: int = -1
        unlabelled: bool = False

    def __init__(self, config, split="val"):
        super().__init__(config, split)
        self.classes = lane_classes(config.num_lanes)
        self.palette = lane_palette(config.num_lanes)
        half = config.images // 2
        self.categories = {"normal": list(range(half)), "night": list(range(half, config.images))}
        self.read_annotations = []

    def __len__(self):
        return self.config.images

    def slots(self, index):
        shift = 6.0 * index
        feet = np.linspace(20, 300, self.config.num_lanes) + shift
        lanes = []
        for slot, foot in enumerate(feet):
            x = foot + (165 - foot) * (SIZE[0] - 1 - ROWS) / 140
            lane = np.stack([x, ROWS], axis=1)[::-1]
            lanes.append(None if slot == 0 and index % 3 == 2 else lane)
        return lanes

    def read(self, index):
        if index == self.config.broken:
            raise DataError(f"image {index} is broken")
        label = painted(self.slots(index), SIZE, self.config.lane_width, curved=False)
        cut = self.config.cut_top
        image = self.palette[label][cut:]
        name = f"{index:05d}.jpg"
        if self.config.unlabelled:
            return Sample(image, None, name)
        lower = np.array([0, cut])
        lanes = tuple(None if lane is None else lane - lower for lane in self.slots(index))
        return Sample(image, label[cut:], name, lanes)

    def annotation(self, index):
        self.read_annotations.append(index)
        lanes = [lane for lane in self.slots(index) if lane is not None]
        if self.metric == "bdd100k":
            pixels = (painted(self.slots(index), SIZE, 2, curved=False) > 0).astype(np.uint8)
            return LaneAnnotation(lanes, SIZE, pixels=pixels)
        return LaneAnnotation(lanes, SIZE, ROWS if self.metric == "tusimple" else None)

    def entry(self, index):
        return Path("drive") / f"{index:05d}.jpg"


class ToyTusimple(ToyLanes):
    name = "toy_tusimple"
    metric = "tusimple"


class ToyBdd(ToyLanes):
    name = "toy_bdd"
    metric = "bdd100k"


class ByColour(Network):
    """Logits are nearness to the colours of background and slots; ``blind`` slots are not seen."""

    name = "by_colour"

    def __init__(self, config, num_classes, *, blind=(), exist=True):
        super().__init__(config, num_classes)
        self.blind, self.answers_exist = list(blind), exist
        colours = torch.from_numpy(lane_palette(num_classes - 1)).float()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
        self.register_buffer("colours", colours, persistent=False)

    def tap_names(self):
        return ["stage1", "stage2", "logits"]

    def compute(self, images, record):
        colours = images / self._scale + self._mean
        record("stage1", colours)
        record("stage2", F.avg_pool2d(colours, 2))
        distance = (colours.unsqueeze(1) - self.colours[:, :, None, None]).square().mean(2).sqrt()
        logits = -self.scale * distance
        for slot in self.blind:  # takes what it does not see for background
            logits[:, 0] = torch.maximum(logits[:, 0], logits[:, slot + 1])
            logits[:, slot + 1] = -30.0
        return logits

    def forward(self, images, taps=()):
        outputs = super().forward(images, taps)
        if isinstance(outputs, np.ndarray) or not self.answers_exist:
            return outputs
        seen = outputs.logits.softmax(1)[:, 1:].flatten(2).amax(2)
        outputs.exist = 20 * (seen - 0.5)
        return outputs


for entry in (ToyLanes, ToyTusimple, ToyBdd):
    registry.datasets.add(entry)
registry.models.add(ByColour)


def toy_set(kind=ToyLanes, **config):
    config = {"name": kind.name, "workers": 0, **config}
    return kind(kind.Config.model_validate(config))


def oracle(num_lanes=4, **options):
    """A network that finds all lanes."""
    config = ModelConfig(arch="by_colour", options=options)
    return ByColour(config, num_lanes + 1, **options).eval()


def save_student(out, kind=ToyLanes, lanes=4, options=None, rules=None, **data):
    """``best.pt`` of a network that finds all lanes of a set, and the set."""
    from toy_run import toy_config

    from segkd.engine.run_folder import RunFolder
    from segkd.evaluation.lane_result import CulaneResult
    from segkd.models.build import build_network

    dataset = toy_set(kind, num_lanes=lanes, **data)
    config = toy_config(out, data=dataset.config.model_dump(), eval={"lanes": rules or {}})
    network = build_network(ModelConfig(arch="by_colour", options=options or {}), lanes + 1)
    folder = RunFolder(config)
    folder.save_best(network, dataset, step=1, result=CulaneResult(images=1))
    return folder.best, dataset
