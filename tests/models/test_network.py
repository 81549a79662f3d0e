"""Normalisation, size checks, auxiliary heads: what all networks share."""

import pytest
import torch

from segkd.config.schema import AuxHeadConfig, ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.models.enet import ENet


def enet(**keys):
    return ENet(ModelConfig(arch="enet", **keys), 4)


def images(height=32, width=48):
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("none", [0, 0, 0], [1, 1, 1]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]), [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]),
    ],
)
def test_normalisation(normalize, mean, std):
    raw = images()
    expected = (raw / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    network = enet(normalize=normalize)
    torch.testing.assert_close(network.normalized(raw), expected)
    torch.testing.assert_close(network.normalized(raw.float()), expected)
    assert {"_mean", "_scale"}.isdisjoint(network.state_dict())


def test_normalisation_with_wrong_numbers_is_refused():
    with pytest.raises(ConfigError, match="3 numbers"):
        enet(normalize=([0.5], [0.5]))


def test_wrong_sizes_name_the_nearest_good_one():
    with pytest.raises(SegKDError, match="nearest valid size is 32x48"):
        enet()(images(33, 46))
    with pytest.raises(SegKDError, match=r"\(B, 3, H, W\)"):
        enet()(images()[:, :1])


def test_aux_head_runs_only_in_training():
    network = enet()
    assert network.aux_weight is None
    network.add_aux_head(AuxHeadConfig(tap="stage3", weight=0.3))
    assert network.aux_weight == 0.3
    outputs = network.train()(images())
    assert outputs.aux["aux"].shape == (2, 4, 4, 6)
    assert not outputs.features, "the head's tap was not asked for"
    outputs.aux["aux"].sum().backward()
    assert network.encoder.initial.conv.weight.grad.abs().sum() > 0
    assert network.eval()(images()).aux == {}


def test_aux_head_on_an_unknown_tap():
    with pytest.raises(ConfigError, match=r"aux_head.tap: there is no tap 'stage7'"):
        enet().add_aux_head(AuxHeadConfig(tap="stage7"))


def test_groups_for_learning_rates():
    network = enet(aux_head=None)
    network.add_aux_head(AuxHeadConfig(tap="stage3"))
    groups = {name.split(".")[0]: network.group_of(name) for name, _ in network.named_parameters()}
    assert groups == {
        "encoder": "encoder",
        "decoder": "decoder",
        "classifier": "decoder",
        "aux_heads": "decoder",
    }
