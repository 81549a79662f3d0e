"""ERFNet: the paper's shapes and size, and its parts computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from segkd.config.schema import ModelConfig
from segkd.models.build import build_network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(ModelConfig(arch="erfnet"), 20)


def test_size_is_the_papers(network):
    """About 2.1 M in the paper; here counted by hand from its table of layers."""

    def down(before, after):
        return 9 * before * (after - before) + (after - before) + 2 * after

    def up(before, after):
        return 9 * before * after + after + 2 * after

    def block(channels):
        return 4 * (3 * channels**2 + channels) + 2 * 2 * channels

    encoder = down(3, 16) + down(16, 64) + 5 * block(64) + down(64, 128) + 8 * block(128)
    decoder = up(128, 64) + 2 * block(64) + up(64, 16) + 2 * block(16)
    expected = encoder + decoder + 4 * 16 * 20 + 20
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert 2.05e6 < expected < 2.07e6


def convolved(x, conv, **options):
    return F.conv2d(x, conv.weight, conv.bias, **options)


def normed(x, norm):
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    return (x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def test_a_dilated_block_by_hand(network):
    """Only the second pair is dilated; the sum comes before the last ReLU."""
    block = network.eval().encoder.stage4[2]
    first, _, second, norm1, _, third, _, fourth, norm2, dropout = block.branch
    x = torch.randn(1, 128, 20, 24)
    y = convolved(convolved(x, first, padding=(1, 0)).relu(), second, padding=(0, 1))
    y = normed(y, norm1).relu()
    y = convolved(y, third, padding=(8, 0), dilation=(8, 1)).relu()
    y = normed(convolved(y, fourth, padding=(0, 8), dilation=(1, 8)), norm2)
    torch.testing.assert_close(block(x), (x + y).relu())
    assert dropout.p == 0.3


def test_dilations_and_dropout_of_all_blocks(network):
    def blocks(stage):
        return [(b.branch[5].dilation[0], b.branch[-1].p) for b in stage if hasattr(b, "branch")]

    deep = [(dilation, 0.3) for dilation in (2, 4, 8, 16)]
    assert blocks(network.encoder.stage2) == [(1, 0.03)] * 5
    assert blocks(network.encoder.stage3) == blocks(network.encoder.stage4) == deep
    assert blocks(network.decoder) == [(1, 0.0)] * 4
