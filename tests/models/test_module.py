"""The caller's own module as a network."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segkd.errors import ConfigError, SegKDError
from segkd.models.module import wrap


class Own(nn.Module):
    """A network whose logits are up-sampled at the end; ``answer`` packs them."""

    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU())
        self.head = nn.Conv2d(6, 5, 1)
        self.answer = answer

    def forward(self, x):
        return self.answer(nn.functional.interpolate(self.head(self.backbone(x)), x.shape[2:]))


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x,
        lambda x: {"out": x, "aux": x[:, :1]},
        lambda x: (x, x[:, :1]),
        lambda x: SimpleNamespace(logits=x),
    ],
)
def test_logits_are_found_in_what_a_module_answers(images, answer):
    assert wrap(Own(answer), 5)(images).logits.shape == (2, 5, 16, 24)


def test_logits_and_taps_by_path(images):
    network = wrap(
        Own(), 5, taps={"stage2": "backbone"}, logits="head", encoder="backbone", divisor=4
    )
    outputs = network(images, ["stage2", "stage2:pre", "logits"])
    assert outputs.logits.shape == (2, 5, 4, 6)
    assert torch.equal(outputs.features["stage2:pre"].relu(), outputs.features["stage2"])
    assert network.tap_names() == ["stage2", "logits"]
    assert network.tap_info(["stage2"])["stage2"].stride == 4
    assert network.group_of("module.backbone.0.weight") == "encoder"
    assert network.group_of("module.head.weight") == "decoder"
    with pytest.raises(SegKDError, match="multiples of 4"):
        network(images[..., 1:])


def test_wrong_paths_and_answers(images):
    with pytest.raises(ConfigError, match="Did you mean 'backbone'"):
        wrap(Own(), 5, taps={"stage2": "bakbone"})
    with pytest.raises(SegKDError, match=r"expected \(B, 7, h, w\)"):
        wrap(Own(), 7)(images)
    with pytest.raises(ConfigError, match="as `logits`"):
        wrap(Own(lambda x: "nothing"), 5)(images)


class Pair(nn.Module):
    def forward(self, x):
        return x, None


class Listed(nn.Module):
    """Layers in a list, which is never called, an activation of two names, and a tuple."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 5, 1)])
        self.act = self.act2 = nn.ReLU()
        self.pair = Pair()

    def forward(self, x):
        return self.heads[0](self.pair(self.act(self.layers[0](x)))[0])


def test_paths_that_give_no_value_are_refused(images):
    for path in ("layers", "heads"):
        with pytest.raises(ConfigError, match=rf"logits: .* does not run '{path}'"):
            wrap(Listed(), 5, logits=path)(images)
        with pytest.raises(ConfigError, match=r"tap 'stage2': .*is not called"):
            wrap(Listed(), 5, taps={"stage2": path}).tap_info(["stage2"])
    with pytest.raises(ConfigError, match=r"tap 'stage2' is a tuple; .* tensor \(B, C, h, w\)"):
        wrap(Listed(), 5, taps={"stage2": "pair"}).tap_info(["stage2"])


def test_a_module_of_two_names_is_tapped_by_either(images):
    network = wrap(Listed(), 5)
    one, two = (network(images, [tap]).tap(tap) for tap in ("module:act", "module:act2"))
    assert torch.equal(one, two)
