"""Quantised networks: which layers, what stays float, names, sizes, and the way back."""

import copy

import pytest
import torch
from torch import nn
from toy_run import CLASSES, teacher_net

from segkd.config.quantize import QuantizeConfig
from segkd.config.schema import ExistHeadConfig, ModelConfig
from segkd.errors import CheckpointError, ConfigError
from segkd.models.build import build_network
from segkd.models.module import wrap
from segkd.models.quantizable import choose_layers
from segkd.models.quantization_facts import QuantizationFacts
from segkd.models.quantized import (
    bake_weights,
    baked_state,
    facts_of,
    input_grids,
    largest_levels,
    quantize_network,
    quantized_layers,
    restore_input_grids,
    stored_bytes,
    without_input_grids,
)
from segkd.ops.quantize import quantize

IMAGES = torch.randint(
    0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


class TwoPaths(nn.Module):
    """Two layers see the image, two make the logits; parameters stand in another order."""

    def __init__(self, classes=4):
        super().__init__()
        self.out_b = nn.Conv2d(8, classes, 1)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.in_a, self.in_b = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(3, 8, 5, 4, 2)
        self.gate = nn.Linear(8, 8)
        self.out_a = nn.Conv2d(8, classes, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        value = self.norm(self.in_a(images) + self.in_b(images))
        value = value * self.gate(value.mean((2, 3)))[:, :, None, None].sigmoid()
        value = self.up(self.inner(value))
        return self.out_a(value) + self.out_b(value)


def two_paths():
    torch.manual_seed(0)
    return wrap(TwoPaths(), 4).eval()


def test_first_and_last_are_found_by_what_they_compute():
    network = two_paths()
    path = next(name for name, part in network.named_modules() if isinstance(part, TwoPaths))
    layers = choose_layers(network, QuantizeConfig())
    assert set(layers.quantized) == {f"{path}.{name}" for name in ("inner.0", "up", "gate")}
    kept = {f"{path}.{name}": "first" for name in ("in_a", "in_b")}
    assert layers.kept == kept | {f"{path}.{name}": "last" for name in ("out_a", "out_b")}
    assert len(choose_layers(network, QuantizeConfig(first_and_last=True)).quantized) == 7
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_lane_branch_has_a_last_layer_as_well():
    network = build_network(ModelConfig(arch="toy", exist_head=ExistHeadConfig()), len(CLASSES))
    kept = choose_layers(network, QuantizeConfig()).kept
    last = {path for path, why in kept.items() if why == "last"}
    assert last == {"classifier", "exist_head.branch.attention", "exist_head.branch.evidence"}


def test_what_cannot_be_quantised_stays_float():
    class Odd(TwoPaths):
        def __init__(self):
            super().__init__()
            self.inner[0] = nn.utils.parametrizations.weight_norm(self.inner[0])
            self.tied = nn.Conv2d(8, 8, 1)
            self.tied.weight = self.middle.weight if hasattr(self, "middle") else self.tied.weight
            self.twin = nn.Conv2d(8, 8, 1)
            self.twin.weight = self.tied.weight
            self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)

        def forward(self, images):
            value = self.twin(self.tied(self.norm(self.in_a(images) + self.in_b(images))))
            value = self.up(self.inner(value))
            return self.out_a(value) + self.out_b(value)

    network = wrap(Odd(), 4).eval()
    kept = choose_layers(network, QuantizeConfig(first_and_last=True)).kept
    found = {path.rpartition("module.")[2]: why for path, why in kept.items()}
    assert found == {
        "inner.0": "its weight is computed from others",
        "tied": "shares its weight",
        "twin": "shares its weight",
        "up": "transposed, with groups",
        "gate": "not run as a layer",
    }


def test_a_network_without_an_inner_layer_is_told_what_to_type():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return self.only(images)

    with pytest.raises(ConfigError, match=r"only: first.*first_and_last=true"):
        quantize_network(wrap(Tiny(), 4).eval(), QuantizeConfig())


@pytest.mark.parametrize(
    "keys",
    [
        {"bits": 8, "first_and_last": True},
        {"bits": 3, "per": "tensor"},
        {"bits": 2, "per": "bucket", "bucket_size": 50, "grid": "range"},
    ],
)
def test_it_computes_with_quantised_weights_and_nothing_else_is(keys):
    plain = two_paths()
    config = QuantizeConfig(**keys)
    network = copy.deepcopy(plain)
    layers = quantize_network(network, config)
    by_hand = copy.deepcopy(plain)
    for path in layers.quantized:
        layer = by_hand.get_submodule(path)
        layer.weight.data = quantize(
            layer.weight.data,
            bits=config.bits,
            per=config.per,
            grid=config.grid,
            axis=1 if isinstance(layer, nn.ConvTranspose2d) else 0,
            bucket_size=config.bucket,
        )
    expected = by_hand(IMAGES).logits
    assert torch.equal(network(IMAGES).logits, expected)
    assert not torch.equal(plain(IMAGES).logits, expected)
    baked = baked_state(network)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(baked[name], value), name
    assert torch.equal(copy.deepcopy(network)(IMAGES).logits, expected), "a copy is quantised too"
    bake_weights(network)
    assert not quantized_layers(network) and torch.equal(network(IMAGES).logits, expected)
    assert [type(part) for part in network.modules()] == [type(part) for part in plain.modules()]


def test_state_dicts_are_those_of_the_plain_network():
    plain, other = two_paths(), two_paths()
    for value in other.state_dict().values():
        value.mul_(2)
    network = copy.deepcopy(plain)
    quantize_network(network, QuantizeConfig(bits=2, activations=8))
    assert network.state_dict().keys() == plain.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), "float values are what is trained"
    network.load_state_dict(other.state_dict())
    other.load_state_dict(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    bake_weights(network)
    network.load_state_dict(plain.state_dict())


def test_sizes_are_bits_scales_and_the_rest():
    network = two_paths()
    whole = sum(v.numel() * v.element_size() for v in network.state_dict().values())
    assert stored_bytes(network, None) == whole
    quantize_network(network, QuantizeConfig(bits=3))
    # inner.0: 8x8x3x3, up: 8x8x2x2, gate: 8x8; eight scales each
    weights = [576, 256, 64]
    expected = whole - sum(4 * n for n in weights) + sum(-(-n * 3 // 8) + 4 * 8 for n in weights)
    assert stored_bytes(network, facts_of(network)) == expected
    network = two_paths()
    keys = {"bits": 2, "per": "bucket", "bucket_size": 100, "grid": "range"}
    quantize_network(network, QuantizeConfig(**keys))
    buckets = [6, 3, 1]  # a smallest value and a step each
    expected = whole - sum(4 * n for n in weights)
    expected += sum(n // 4 + 8 * b for n, b in zip(weights, buckets, strict=True))
    assert stored_bytes(network, facts_of(network)) == expected


def test_largest_levels_of_channels():
    network = teacher_net().eval()
    quantize_network(network, QuantizeConfig(bits=4))
    found = largest_levels(network, facts_of(network))
    assert {level for levels in found.values() for level in levels} == {7}
    network = teacher_net().eval()
    network.encoder[1][0].weight.data[3] = 0.0
    network.encoder[1][0].weight.data[1] *= 0.5
    quantize_network(network, QuantizeConfig(bits=4, per="tensor"))
    levels = largest_levels(network, facts_of(network))["encoder.1.0"]
    assert max(levels) == 7 and levels[1] in (3, 4) and levels[3] == 0


# -- inputs ----------------------------------------------------------------------------------------


def test_ranges_follow_the_training_images_after_each_step():
    network = teacher_net(norm=False)
    quantize_network(network, QuantizeConfig(activations=8))
    grid = input_grids(network)["encoder.1.0"]
    network.train()
    before = network(IMAGES).logits
    assert not grid.known and torch.equal(network(IMAGES).logits, before), "no range yet"
    top = network.encoder[0](network.normalized(IMAGES)).max().item()
    grid.take(grid.seen.clone())
    assert grid.range.tolist() == pytest.approx([0.0, top]) and not grid.seen.any()
    assert not torch.equal(network(IMAGES).logits, before)
    grid.take(torch.tensor([1.0, 2 * top]))
    assert grid.range.tolist() == pytest.approx([-0.01, 1.01 * top])
    grid.take(torch.zeros(2))
    assert grid.range.tolist() == pytest.approx([-0.01, 1.01 * top]), "a step without images"
    network.eval()(IMAGES)
    assert grid.seen.tolist() == [0, 0]


def test_evaluation_moves_no_range():
    network = teacher_net(norm=False).eval()
    quantize_network(network, QuantizeConfig(activations=8))
    network(IMAGES)
    assert not any(grid.seen.any() for grid in input_grids(network).values())


def test_inputs_of_a_file_are_restored_and_removed():
    network = teacher_net().eval()
    plain = network(IMAGES).logits
    facts = QuantizationFacts(
        settings=QuantizeConfig(activations=3),
        layers=["encoder.1.0"],
        ranges={"encoder.1.0": (0.0, 1.0)},
    )
    restore_input_grids(network, facts, "best.pt")
    assert not torch.equal(network(IMAGES).logits, plain)
    value = network.encoder[0](network.normalized(IMAGES)).clamp(0, 1)
    value = (value * 7).round() / 7
    rest = network.encoder[2](network.encoder[1][1:](network.encoder[1][0](value)))
    torch.testing.assert_close(network(IMAGES).logits, network.classifier(rest))
    assert without_input_grids(network) and not without_input_grids(network)
    assert torch.equal(network(IMAGES).logits, plain)
    odd = facts.model_copy(update={"layers": ["encoder.9"]})
    with pytest.raises(CheckpointError, match=r"'encoder\.9' is said to be quantised"):
        restore_input_grids(network, odd, "best.pt")


def test_a_module_without_layers_is_refused_with_a_message():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3, 1, 1))

        def forward(self, x):
            return nn.functional.conv2d(x, self.weight)

    with pytest.raises(ConfigError, match=r"no layer of Product .*it has none"):
        quantize_network(wrap(Product(), 5), QuantizeConfig())
