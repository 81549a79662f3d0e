"""ENet: the paper's shapes and size, and an import without torchvision."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from segkd.config.schema import ModelConfig
from segkd.models.enet import ENet, unpool


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ENet(ModelConfig(arch="enet"), 19)


def test_size_is_the_papers(network):
    """The paper's table 3 gives 0.37 M parameters for its ENet on Cityscapes."""
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 0.35e6 < count < 0.375e6


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
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    network.zero_grad()
    assert still == []


def test_unpool_is_the_inverse_of_pooling():
    x = torch.randn(2, 3, 6, 10)
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(pooled, indices), F.max_unpool2d(pooled, indices, 2))


def test_imports_without_smp_and_torchvision():
    code = (
        "import sys, torch\n"
        "from segkd.config.schema import ModelConfig\n"
        "from segkd.models.build import build_network\n"
        "network = build_network(ModelConfig(arch='enet', aux_head={'tap': 'stage3'}), 4)\n"
        "network(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ['stage2:pre'])\n"
        "import segkd.models.teacher\n"
        "heavy = {'segmentation_models_pytorch', 'torchvision', 'timm', 'cv2', 'albumentations'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
