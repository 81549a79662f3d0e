"""What the networks of our own have in common: their strides, and that all of it learns."""

import pytest
import torch

from segkd.config.schema import ModelConfig
from segkd.models.build import build_network

_ENCODER = {"stage1": (16, 2), "stage2": (64, 4), "stage3": (128, 8)}
_SHAPES = {  # channels and stride of each tap
    "enet": _ENCODER | {"stage4": (128, 8), "head": (16, 2), "logits": (19, 1)},
    "erfnet": _ENCODER | {"stage4": (128, 8), "head": (16, 2), "logits": (19, 1)},
    "espnet": _ENCODER | {"head": (19, 2), "logits": (19, 1)},
    "espnetv2": {
        "stage1": (32, 2),
        "stage2": (64, 4),
        "stage3": (128, 8),
        "stage4": (256, 16),
        "head": (9, 2),
        "logits": (19, 2),
    },
}


@pytest.fixture(scope="module", params=list(_SHAPES))
def network(request):
    torch.manual_seed(0)
    return build_network(ModelConfig(arch=request.param), 19)


def test_shapes_of_all_taps(network):
    size = (48, 80)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    taps = network.tap_names()
    outputs = network(images, taps)
    expected = _SHAPES[network.config.arch]
    assert list(expected) == taps
    for tap, (channels, stride) in expected.items():
        shape = tuple(outputs.tap(tap).shape[1:])
        assert shape == (channels, *(side // stride for side in size)), tap
        info = network.tap_info([tap])[tap]
        assert (info.channels, info.stride) == (channels, stride), tap


def test_every_parameter_learns(network):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    network.train()(images).logits.square().mean().backward()
    still = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # A bias before a batch norm is taken away again by its mean; ENet has none.
    biases = {name for name, _ in network.named_parameters() if name.endswith(".bias")}
    assert still <= (biases if network.config.arch == "erfnet" else set())
