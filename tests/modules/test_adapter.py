import pytest
import torch
from torch import nn

from segkd.modules.adapter import channel_adapter


def test_equal_channels_need_no_parameters():
    assert isinstance(channel_adapter(8, 8), nn.Identity)
    assert channel_adapter(8, 8, always=True).weight.shape == (8, 8, 1, 1)


def test_variance_is_kept():
    torch.manual_seed(0)
    features = 3 * torch.randn(2, 64, 32, 32)
    ratio = channel_adapter(64, 512)(features).var() / features.var()
    assert ratio.item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("channels", [7, 48, 64])
def test_group_norm_fits_any_number_of_channels(channels):
    adapter = channel_adapter(5, channels, norm="group")
    assert adapter(torch.randn(2, 5, 4, 6)).shape == (2, channels, 4, 6)
    assert not any("running" in name for name in adapter.state_dict())
