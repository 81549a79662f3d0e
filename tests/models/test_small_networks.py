"""What ENet and ERFNet, both our own, have in common: their strides, and that all of it learns."""

import pytest
import torch

from segkd.config.schema import ModelConfig
from segkd.models.build import build_network


@pytest.fixture(scope="module", params=["enet", "erfnet"])
def network(request):
    torch.manual_seed(0)
    return build_network(ModelConfig(arch=request.param), 19)


def test_shapes_of_all_taps(network):
    images = torch.randint(0, 256, (2, 3, 40, 72), dtype=torch.uint8)
    taps = network.tap_names()
    outputs = network(images, taps)
    shapes = {tap: tuple(outputs.tap(tap).shape[1:]) for tap in taps}
    assert shapes == {
        "stage1": (16, 20, 36),
        "stage2": (64, 10, 18),
        "stage3": (128, 5, 9),
        "stage4": (128, 5, 9),
        "head": (16, 20, 36),
        "logits": (19, 40, 72),
    }
    info = network.tap_info(taps)
    assert {tap: info[tap].channels for tap in taps} == {tap: shapes[tap][0] for tap in taps}
    assert [info[tap].stride for tap in taps] == [2, 4, 8, 8, 2, 1]


def test_every_parameter_learns(network):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    network.train()(images).logits.square().mean().backward()
    still = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # A bias before a batch norm is taken away again by its mean; ENet has none.
    biases = {name for name, _ in network.named_parameters() if name.endswith(".bias")}
    assert still <= (biases if network.config.arch == "erfnet" else set())
