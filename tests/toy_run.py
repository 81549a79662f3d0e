"""A network, a dataset and a configuration small enough to train in a blink."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import toys
from torch import nn

from segkd import registry
from segkd.config.schema import ModelConfig, RunConfig
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.runtime import Runtime

CLASSES = ("sky", "road", "car", "tree")


class ToyNet(Network):
    """Three strided convolutions and a classifier; ``options: {norm: false}`` is free of noise."""

    name = "toy"

    def __init__(self, config, num_classes, *, width=6, norm=True):
        super().__init__(config, num_classes)
        self.divisor = 8
        self.encoder = nn.ModuleList(
            _block(c_in, c_out, norm)
            for c_in, c_out in ((3, width), (width, 2 * width), (2 * width, 3 * width))
        )
        self.drop = nn.Dropout2d(0.1) if norm else nn.Identity()
        self.classifier = nn.Conv2d(3 * width, num_classes, 1)
        self.unused = nn.Linear(2, 2)

    def tap_names(self):
        return ["stage3", "stage4", "stage5", "head", "logits"]

    def compute(self, images, record):
        value = images
        for number, block in enumerate(self.encoder, start=3):
            value = block(value)
            record(f"stage{number}", value)
        value = self.drop(value)
        record("head", value)
        return self.classifier(value)


def _block(c_in, c_out, norm):
    layers = [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(c_out)] if norm else []), nn.ReLU())


class ToyData(Dataset):
    """Noisy quarters of four colours; index and split decide everything."""

    name = "toy"
    expected_tree = "nothing"
    classes = CLASSES
    palette = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142], [107, 142, 35]], np.uint8)

    class Config(DataConfig):
        images: int = 7
        void: bool = True

    def __len__(self):
        return self.config.images

    def read(self, index):
        draw = np.random.default_rng([index, self.split == "val"])
        label = np.kron(draw.permutation(4).reshape(2, 2), np.ones((16, 24), np.int64))
        noise = draw.normal(0, 20, (32, 48, 3))
        image = (self.palette[label] + noise).clip(0, 255).astype(np.uint8)
        if self.config.void:
            label[: 4 * (index % 3)] = 255
        return Sample(image, label.astype(np.uint8), f"{self.split}_{index}")


def register():
    """Makes toy network, data and methods known; called once by conftest.py."""
    registry.models.add(ToyNet)
    registry.datasets.add(ToyData)
    for method in toys.METHODS:
        registry.methods.add(method)


def toy_config(out, **changes):
    """A run on toys with one process and no workers."""
    plain = {
        "out": str(out),
        "steps": 6,
        "data": {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48]},
        "student": {"arch": "toy"},
        "optim": {"lr": 0.05},
        "eval": {"every": 0},
        "log": {"every": 2, "tensorboard": False},
        "runtime": {"device": "cpu", "threads": 1},
        "save_every": 3,
    }
    return RunConfig.model_validate(plain | changes, context={"own_parts": True})


def teacher_net(width=8, seed=1, normalize="auto", **options):
    """A random toy teacher."""
    torch.manual_seed(seed)
    config = ModelConfig(arch="toy", normalize=normalize, options={"width": width, **options})
    return build_network(config, len(CLASSES))


def loss_on(network, data):
    """Mean cross-entropy of a network on a toy set."""
    total = 0.0
    for index in range(len(data)):
        sample = data.read(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = network.eval()(image).logits
        label = torch.from_numpy(sample.label.astype(np.int64))[None]
        full = F.interpolate(logits, label.shape[1:], mode="bilinear")
        total += F.cross_entropy(full, label, ignore_index=255).item()
    return total / len(data)


@dataclass
class Share:
    """A runtime: one of several processes, whose sum is left out."""

    rank: int
    world: int
    device = torch.device("cpu")
    autocast = Runtime.single().autocast

    def all_reduce(self, tensor):
        return tensor
