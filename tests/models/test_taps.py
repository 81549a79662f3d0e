"""Taps: the right values, under in-place operations too, and no trace of the probe."""

import copy

import pytest
import torch
from torch import nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.build import build_network
from segkd.models.module import wrap


class Residual(nn.Module):
    """conv, norm, in-place ReLU, conv, norm, sum with a normalised shortcut, the same ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.block = Residual()
        self.neck = nn.Identity()
        self.drop = nn.Dropout(0.5, inplace=True)
        self.classifier = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.classifier(self.drop(self.neck(self.block(self.stem(x)))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return wrap(Plain(), 3, taps={"stage1": "stem", "stage2": "block"}, normalize="none")


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)


def test_pre_activation_is_what_the_activation_was_fed(network, images):
    network.eval()
    values = network(images, ["stage2", "stage2:pre"]).features
    block = network.module.block
    x = network.module.stem(network.normalized(images))
    inner = block.norm1(block.conv1(x)).relu()
    expected = block.norm2(block.conv2(inner)) + block.shortcut(x)
    torch.testing.assert_close(values["stage2:pre"], expected)
    torch.testing.assert_close(values["stage2"], expected.relu())
    assert (values["stage2:pre"] < 0).any()


def test_norm_before_a_residual_sum_is_the_last_of_the_main_branch(network):
    block = network.module.block
    assert network.norm_before("stage2") is network.norm_before("stage2:pre") is block.norm2
    assert network.norm_before("module:module.block.norm1") is block.norm1
    assert network.norm_before("stage1") is None


def test_a_sum_without_activation_has_no_norm_before_it():
    class Linear(Residual):
        def forward(self, x):
            out = self.norm1(self.conv1(x))
            out += x
            return out

    network = wrap(nn.Sequential(nn.Conv2d(3, 4, 1), Linear(), nn.Conv2d(4, 3, 1)), 3)
    assert network.norm_before("module:module.1") is None


@pytest.mark.parametrize("training", [True, False])
def test_value_overwritten_in_place_is_kept(network, images, training):
    """The classic trap: a hook on BN before an in-place ReLU sees rectified values."""
    network.train(training)
    tap = "module:module.block.norm1"
    value = network(images, [tap]).features[tap]
    block = network.module.block
    expected = block.norm1(block.conv1(network.module.stem(network.normalized(images))))
    torch.testing.assert_close(value, expected)
    assert (value < 0).any()


def test_in_place_dropout_does_not_reach_a_tap(network, images):
    value = network.train()(images, ["stage2"]).features["stage2"]
    again = network(images, ["stage2"]).features["stage2"]
    torch.testing.assert_close(value, again)


def test_taps_change_neither_logits_nor_gradients(network, images):
    network.eval()
    taps = ["stage1", "stage2", "stage2:pre", "module:module.block.norm1"]
    gradients = []
    for chosen in ([], taps):
        network.zero_grad()
        network(images, chosen).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_gradient_flows_through_a_pre_activation_tap(network, images):
    network(images, ["stage2:pre"]).features["stage2:pre"].sum().backward()
    assert network.module.block.conv1.weight.grad.abs().sum() > 0


def test_tap_info_and_module(network):
    info = network.tap_info(["stage1", "logits", "module:module.block.shortcut"])
    assert {name: (i.channels, i.stride) for name, i in info.items()} == {
        "stage1": (4, 2),
        "logits": (3, 2),
        "module:module.block.shortcut": (4, 2),
    }
    assert network.tap_module("stage2") is network.module.block
    assert network.tap_module("module:module.block") is network.module.block
    assert network.tap_module("module:module.block.norm1") is network.module.block.norm1
    assert network.tap_module("logits") is network.module.classifier


def test_probe_leaves_no_trace(network):
    network.train()
    network.module.block.norm1.eval()
    modes = [module.training for module in network.modules()]
    state, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    network.tap_info(["stage2:pre", "logits"])
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_hooks_are_gone_after_a_failed_forward(network, images):
    network.tap_info(["stage2:pre"])
    network.module.classifier = nn.Conv2d(9, 3, 1)
    with pytest.raises(RuntimeError):
        network(images, ["stage2:pre"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_copy_and_frozen_network_tap_their_own_modules(network, images):
    network.tap_info(["stage2:pre"])
    twin = copy.deepcopy(network).requires_grad_(False)
    with torch.no_grad():
        twin.module.stem.weight.zero_()
        twin.module.stem.bias.zero_()
        mine = network.eval()(images, ["stage1"]).features["stage1"]
        theirs = twin.eval()(images, ["stage1"]).features["stage1"]
    assert theirs.abs().sum() == 0 < mine.abs().sum()
    fresh = wrap(twin.module, 3, taps={"stage2": "block"})
    assert fresh.norm_before("stage2") is twin.module.block.norm2


@pytest.mark.parametrize(
    ("tap", "hint"),
    [
        ("stage3", "Did you mean 'stage"),
        ("nothing", "Known: head, logits, stage1, stage2"),
        ("stage1:pre", "not the output of an activation"),
        ("module:module.bloc", "Did you mean 'block'"),
        ("module:module.block.unused", "does not run"),
    ],
)
def test_impossible_tap_says_what_to_type(network, images, tap, hint):
    network.module.block.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(ConfigError, match=hint):
        network(images, [tap])


def test_resnet_stage_before_its_in_place_relu():
    network = build_network(ModelConfig(arch="fpn", encoder="resnet18"), 3).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    taps = ["stage3", "stage3:pre", "module:encoder.bn1"]
    with torch.no_grad():
        outputs, plain = network(images, taps), network(images)
    before = outputs.features["stage3:pre"]
    assert (before < 0).any()
    torch.testing.assert_close(before.relu(), outputs.features["stage3"], rtol=0, atol=0)
    assert network.norm_before("stage3") is network.encoder.layer2[-1].bn2
    assert network.norm_before("stage1") is network.encoder.bn1
    assert (outputs.features["module:encoder.bn1"] < 0).any()
    assert torch.equal(outputs.logits, plain.logits)


def test_norm_of_a_fused_layer_of_timm():
    network = build_network(ModelConfig(arch="fpn", encoder="tu-efficientnet_lite0"), 3)
    norm = network.norm_before("module:encoder.model.bn1")
    assert norm is network.encoder.model.bn1
    assert network.tap_info(["module:encoder.model.bn1:pre"])
