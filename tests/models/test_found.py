"""Stages and head of networks that name none: the right values, at any size of image."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.checkpoint import restore
from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.methods.base import TapInfo
from segkd.models.build import build_network
from segkd.models.module import wrap

IMAGES = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8)


def conv(before, channels, stride=1, **options):
    layer = nn.Conv2d(
        before, channels, 3, stride=stride, padding=options.get("dilation", 1), **options
    )
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Flat(nn.Module):
    """No encoder of its own; one ReLU for all; a decoder with a lateral layer; logits enlarged."""

    def __init__(self):
        super().__init__()
        widths = (3, 8, 12, 16, 20)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.relu = nn.ReLU()
        self.lateral, self.top = nn.Conv2d(12, 32, 1), nn.Conv2d(20, 32, 1)
        self.fuse, self.score = conv(32, 24), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        size, values = x.shape[2:], []
        for layer in self.layers:
            x = self.relu(layer(x))
            values.append(x)
        side = self.lateral(values[1])
        x = self.fuse(side + F.interpolate(self.top(x), side.shape[2:]))
        self.values = [*values, x]
        return F.interpolate(self.score(x), size)


class Dilated(nn.Module):
    """A stem to stride 8, wider and wider blocks there, a narrower context, and two classifiers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 2), conv(8, 12, 2), conv(12, 16, 2))
        self.middle = nn.Sequential(conv(16, 16), conv(16, 24))
        self.deep = nn.Sequential(conv(24, 48, dilation=2), conv(48, 48, dilation=4))
        self.context = conv(48, 20)
        self.side, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(20, 4, 1)

    def forward(self, x):
        stem = self.stem(x)
        deep = self.deep(self.middle(stem))
        return self.score(self.context(deep)) + self.side(stem)


def shapes(network):
    """(channels, stride) of every tap by name."""
    return {
        tap: (i.channels, i.stride) for tap, i in network.tap_info(network.known_taps()).items()
    }


def test_stages_and_head_of_a_flat_network():
    network = wrap(Flat(), 4).eval()
    assert shapes(network) == {
        "stage1": (8, 2),
        "stage2": (12, 4),
        "stage3": (16, 8),
        "stage4": (20, 16),
        "head": (24, 4),
        "logits": (4, 1),
    }
    taps = ["stage1", "stage2", "stage3", "stage4", "head"]
    outputs = network(IMAGES, taps)
    for tap, value in zip(taps, network.module.values, strict=True):
        assert torch.equal(outputs.tap(tap), value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_dilated_network_has_stages_as_its_channels_grow():
    network = wrap(Dilated(), 4)
    assert shapes(network) == {
        "stage1": (8, 2),
        "stage2": (12, 4),
        "stage3": (16, 8),
        "stage4": (24, 8),
        "stage5": (48, 8),
        "head": (20, 8),
        "logits": (4, 8),
    }
    assert network.tap_module("stage5") is network.module.deep
    assert network.norm_before("stage5") is network.module.deep[1][1]


def test_what_the_logits_are_not_made_from_does_not_count():
    class Sided(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv(3, 8, 2), conv(8, 12, 2))
            self.side, self.last = nn.Sequential(conv(12, 32, 2), conv(32, 32)), conv(12, 12)
            self.aux, self.score = nn.Conv2d(32, 4, 1), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            x = self.body(x)
            return {"out": self.score(self.last(x)), "aux": self.aux(self.side(x))}

    network = wrap(Sided(), 4)
    assert network.known_taps() == ["stage1", "stage2", "head", "logits"]
    assert network.tap_module("stage2") is network.tap_module("head") is network.module.last


def test_a_pooling_before_a_block_is_no_stage_of_its_own():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)
            self.blocks = nn.ModuleList(conv(a, b) for a, b in pairwise((3, 8, 12, 16)))
            self.score = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            for block in self.blocks:
                x = block(self.pool(x))
            return self.score(x)

    network = wrap(Pooled(), 4)
    assert network.known_taps() == ["stage1", "stage2", "stage3", "head", "logits"]
    for stage, block in zip(network.named_taps().stages, network.module.blocks, strict=True):
        assert network.tap_module(stage) is block


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        ("unet", "resnet18", {}),
        ("fpn", "mobilenet_v2", {}),
        ("pspnet", "resnet18", {}),
        ("deeplabv3plus", "resnet18", {"decoder_channels": 16}),
        ("pan", "resnet18", {}),
        ("segformer", "mit_b0", {}),
    ],
)
def test_they_are_those_that_an_architecture_of_smp_has(arch, encoder, options):
    """Found in the same network given as somebody's module, value for value."""
    import segmentation_models_pytorch as smp

    known = build_network(ModelConfig(arch=arch, encoder=encoder, options=options), 4).eval()
    module = smp.create_model(arch, encoder, None, classes=4, **options)
    restore(known, module.state_dict(), "smp's network")
    images = torch.randint(0, 256, (1, 3, 128, 192), dtype=torch.uint8)
    own, taps = wrap(module, 4).eval(), known.tap_names()
    assert own.known_taps() == taps
    with torch.no_grad():
        found, expected = own(images, taps), known(images, taps)
    for tap in set(taps) - {"logits"}:
        if (arch, tap) != ("fpn", "stage1"):  # smp cuts MobileNetV2 within its second block
            torch.testing.assert_close(found.tap(tap), expected.tap(tap), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "channels", "head"),
    [
        ("fcn_resnet50", (64, 256, 512, 1024, 2048), 512),
        ("deeplabv3_resnet50", (64, 256, 512, 1024, 2048), 256),
        ("deeplabv3_mobilenet_v3_large", (16, 24, 40, 160, 960), 256),
        ("lraspp_mobilenet_v3_large", (16, 24, 40, 160, 960), 128),
    ],
)
def test_networks_of_torchvision(name, channels, head):
    from torchvision.models import segmentation

    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    with torch.device("meta"):
        module = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=4, **options
        )
    network = wrap(module, 4).to("meta")
    assert network.known_taps() == [*(f"stage{k}" for k in range(1, 6)), "head", "logits"]
    info = network.tap_info(network.known_taps())
    assert tuple(info[f"stage{k}"].channels for k in range(1, 6)) == channels
    strides = (2, 4, 8, 8, 8) if "resnet" in name else (2, 4, 8, 16, 16)
    assert tuple(info[f"stage{k}"].stride for k in range(1, 6)) == strides
    assert info["head"].channels == head


def test_what_the_caller_names_wins():
    flat = Flat()
    network = wrap(flat, 4, taps={"stage2": "layers.3"})
    assert network.known_taps() == ["stage2", "head", "logits"]
    assert network.tap_module("stage2") is flat.layers[3]
    network = wrap(flat, 4, taps={"head": "top", "neck": "fuse"})
    assert network.known_taps() == [
        *(f"stage{k}" for k in range(1, 5)),
        "neck",
        "head",
        "logits",
    ]
    assert network.tap_module("head") is flat.top


def test_paths_are_those_of_the_callers_module():
    flat = Flat()
    network = wrap(flat, 4)
    network.eval()
    for tap in ("module:layers.1", "module:module.layers.1"):
        assert network.tap_module(tap) is flat.layers[1]
        assert network(IMAGES, [tap]).tap(tap).shape == (2, 12, 24, 40)
        assert "module.layers.1" in network.hooked_paths([tap])
    with pytest.raises(ConfigError, match="Did you mean 'layers'"):
        network.tap_info(["module:layer.1"])
    inside = nn.Sequential()
    inside.module = flat  # as DataParallel has it
    assert wrap(inside, 4).tap_module("module:module.layers.1") is flat.layers[1]
    with pytest.raises(ConfigError, match="no submodule 'layers'"):
        wrap(inside, 4).tap_info(["module:layers.1"])


def test_a_network_that_fails_on_the_small_image_says_which_size_to_give():
    class Fixed(Flat):
        def forward(self, x):
            return super().forward(x.view(-1, 3, 160, 160))

    with pytest.raises(ConfigError, match=r"fails on the 128x128 image .* divisor=…"):
        wrap(Fixed(), 4).known_taps()
    assert "stage4" in wrap(Fixed(), 4, divisor=160).known_taps()


def test_what_has_no_stages_has_a_head_at_most():
    assert wrap(nn.Conv2d(3, 4, 1), 4).known_taps() == ["head", "logits"]
    assert wrap(nn.Conv2d(3, 4, 1), 4).tap_info(["head"])["head"] == TapInfo(3, 1)
    with pytest.raises(ConfigError, match="there is no tap 'stage1'"):
        wrap(nn.Conv2d(3, 4, 1), 4).tap_info(["stage1"])


def test_gradients_flow_through_what_is_found():
    network = wrap(Flat(), 4)
    network(IMAGES, ["stage3"]).tap("stage3").sum().backward()
    layers = network.module.layers
    assert layers[2].weight.grad.any() and layers[3].weight.grad is None
    network(IMAGES, ["head"]).tap("head").sum().backward()
    assert layers[3].weight.grad.any() and network.module.score.weight.grad is None


def test_a_tap_that_training_does_not_compute_is_named():
    class Changing(Flat):
        def forward(self, x):
            return self.score(x.new_ones(1, 24, 4, 4)) if self.training else super().forward(x)

    network = wrap(Changing(), 4).eval()
    assert network(IMAGES, ["stage3"]).tap("stage3").shape == (2, 16, 12, 20)
    with pytest.raises(SegKDError, match=r"'module.relu' did not run in this .*\(training mode\)"):
        network.train()(IMAGES, ["stage3"])
