"""What is baked into an exported network, and pooling that can be exported."""

import pytest
import torch
import torch.nn.functional as F
from exported import images
from torch import nn
from toy_run import teacher_net

from segkd.errors import ConfigError, SegKDError
from segkd.export.bundle import Bundle
from segkd.export.layers import Clip, MatrixPool, averaging, exportable
from segkd.ops.resize import good_size


@pytest.fixture
def network():
    return teacher_net().eval()


def by_hand(network, batch):
    """ImageNet's normalisation written out, then the bare network."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (batch.float() / 255 - mean) / std


@torch.no_grad()
def test_each_level_bakes_one_thing_more(network):
    batch = images(2)
    normal = by_hand(network, batch)
    logits = network.compute(normal, lambda *_: None)
    assert torch.allclose(Bundle(network, "none")(normal)[0], logits, atol=1e-5)
    assert torch.allclose(Bundle(network, "normalize")(batch)[0], logits, atol=1e-5)
    up = F.interpolate(logits, (32, 48), mode="bilinear", align_corners=False)
    labels = Bundle(network, "labels")(batch)[0]
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), up.argmax(1))


@torch.no_grad()
def test_a_baked_resize_takes_any_size_and_answers_at_it(network):
    bundle = Bundle(network, "labels", resize=(32, 48))
    assert bundle.divisor == 1
    batch = images(1, (37, 51))
    seen = F.interpolate(batch.float(), (32, 48), mode="bilinear", antialias=True)
    expected = F.interpolate(network(seen).logits, (37, 51), mode="bilinear").argmax(1)
    assert torch.equal(bundle(batch)[0].long(), expected)


def test_the_student_is_copied_and_loses_its_auxiliary_heads(network):
    network.aux_heads["aux"] = nn.Conv2d(3, 3, 1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    mean = network._mean.clone()
    bundle = Bundle(network.train(), "none")
    assert network.training and not bundle.network.training
    assert torch.equal(network._mean, mean)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not [key for key in bundle.state_dict() if "aux_heads" in key]


def test_a_size_that_the_network_cannot_take_is_refused(network):
    with pytest.raises(SegKDError, match=r"got 30x48.*multiples of 8, e\.g\. 32 48"):
        Bundle(network, resize=(30, 48))
    assert good_size((30, 3), 8) == (32, 8)


def test_what_is_baked_is_one_of_four(network):
    with pytest.raises(ConfigError, match=r"bake: got 'label'. Known: none, normalize, labels"):
        Bundle(network, "label")


def test_example_images_are_of_the_kind_that_is_taken(network):
    assert Bundle(network, "none").example(2, (16, 24)).dtype == torch.float32
    example = Bundle(network).example(2, (16, 24))
    assert example.dtype == torch.uint8 and example.shape == (2, 3, 16, 24)
    assert not torch.equal(example, Bundle(network).example(2, (16, 24), seed=1))


@pytest.mark.parametrize("length", [1, 5, 6, 7, 33])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_averaging_matrices_equal_adaptive_pooling(count, length):
    x = torch.arange(length, dtype=torch.float32).square()[None, None]
    expected = F.adaptive_avg_pool1d(x, count)[0, 0]
    found = averaging(count, length, torch.device("cpu")) @ x[0, 0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_pools_to_several_positions_are_replaced_wherever_they_are():
    module = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.ModuleDict({"a": nn.AdaptiveAvgPool2d((2, 3))})
    )
    exportable(module)
    assert isinstance(module[0], nn.AdaptiveAvgPool2d)
    assert isinstance(module[1]["a"], MatrixPool)
    x = torch.randn(2, 4, 9, 7)
    assert torch.allclose(module[1]["a"](x), F.adaptive_avg_pool2d(x, (2, 3)), atol=1e-6)


def test_relu6_is_replaced_by_the_same_values_which_change_nothing_in_place():
    module = exportable(nn.Sequential(nn.Sequential(nn.ReLU6(inplace=True)), nn.ReLU()))
    assert isinstance(module[0][0], Clip) and isinstance(module[1], nn.ReLU)
    x = torch.linspace(-9, 9, 37)
    before = x.clone()
    assert torch.equal(module[0][0](x), F.relu6(x)) and torch.equal(x, before)
