"""ENet's layers as they are exported: the same values, in other operators."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.config.schema import ModelConfig
from segkd.export.enet_layers import SplitPReLU, first_maxima
from segkd.export.layers import exportable
from segkd.models.build import build_network
from segkd.models.enet import unpool


@pytest.mark.parametrize("largest", [0.9, 1.0, 1.7])
def test_a_split_prelu_is_a_prelu(largest):
    layer = nn.PReLU(5).double()
    layer.weight.data = torch.linspace(-0.4, largest, 5, dtype=torch.float64)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    split = SplitPReLU(layer)
    assert split.within == (largest <= 1)
    assert torch.allclose(split(x), layer(x), atol=1e-12)


def test_a_mask_unpools_as_indices_do_also_where_values_are_equal():
    x = torch.randint(0, 3, (2, 4, 10, 12)).float()  # most windows have equal maxima
    value = torch.randn(2, 4, 5, 6)
    _, indices = F.max_pool2d(x, 2, return_indices=True)
    spread = F.interpolate(value, scale_factor=2.0, mode="nearest") * first_maxima(x)
    assert torch.equal(spread, unpool(value, indices))


@torch.no_grad()
@pytest.mark.parametrize("stages", [3, 4])
def test_the_exported_enet_is_enet(stages):
    torch.manual_seed(0)
    config = ModelConfig(arch="enet", options={"stages": stages})
    network = build_network(config, 5).double().eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.weight.uniform_(-0.2, 1.2)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    images[:, :, :24] = 255  # an overexposed sky: windows of equal values
    changed = exportable(copy.deepcopy(network))
    assert not [m for m in changed.modules() if isinstance(m, nn.PReLU)]
    expected, found = network(images).logits, changed(images).logits
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
