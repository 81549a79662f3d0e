import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_run import teacher_net

from segkd.errors import ConfigError
from segkd.models.frozen import Teacher
from segkd.models.twice_differentiable import missing_derivatives_explained, twice_differentiable


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, 2 * x, x)


MODULES = {"hardsigmoid": nn.Hardsigmoid(), "in place": nn.Hardsigmoid(True), "sdpa": Attention()}


def second(module, values):
    values = values.clone().requires_grad_()
    slope = torch.autograd.grad(module(1 * values).square().sum(), values, create_graph=True)[0]
    return torch.autograd.grad(slope.square().sum(), values)[0]


@pytest.mark.parametrize("name", MODULES)
def test_what_torch_cannot_differentiate_twice_is_replaced(name):
    module = MODULES[name]
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(2, 2, 8, 16, generator=draw)
    with pytest.raises(RuntimeError, match="is not implemented"):
        second(module, values)
    with twice_differentiable():
        torch.testing.assert_close(module(values.clone()), copy.deepcopy(module)(values.clone()))
        assert second(module, values).isfinite().all()
    with pytest.raises(RuntimeError, match="is not implemented"):  # all is as before
        second(module, values)


def test_a_network_is_only_changed_while_it_trains_for_it():
    network = teacher_net(norm=False)
    network.encoder[0].append(nn.Hardsigmoid())
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)

    def differentiated():
        outputs = network(images, ["image"])
        image = outputs.features["image"]
        slope = torch.autograd.grad(outputs.logits.square().sum(), image, create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), image)[0]

    with pytest.raises(RuntimeError, match="hardsigmoid"):
        differentiated()
    network.twice_differentiable = True
    assert differentiated().abs().max() > 0


def test_the_image_is_a_tap_of_every_network():
    network = teacher_net(norm=False)
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    info = network.tap_info(["image"])["image"]
    assert (info.channels, info.stride) == (3, 1)
    outputs = network(images, ["image", "stage3"])
    image = outputs.features["image"]
    assert torch.equal(image, images.float()) and image.is_leaf and image.requires_grad
    slope = torch.autograd.grad(outputs.logits.sum(), image)[0]
    assert slope.shape == image.shape and slope.abs().max() > 0
    floats = images.float()
    network(floats, ["image"])
    assert not floats.requires_grad, "the caller's tensor is left alone"
    with torch.no_grad():
        assert not network(images, ["image"]).features["image"].requires_grad
    assert "image" not in network.known_taps()  # no default tap is chosen among it
    with pytest.raises(ConfigError, match="no value before the activation"):
        network(images, ["image:pre"])


def test_a_teacher_keeps_its_graph_in_training_only():
    teacher = Teacher(teacher_net(norm=False), ["image"], gradient=True)
    images = torch.randint(256, (1, 3, 16, 24), dtype=torch.uint8)
    outputs = teacher(images)
    assert torch.autograd.grad(outputs.logits.sum(), outputs.features["image"])[0].any()
    with torch.no_grad():
        assert not teacher(images).logits.requires_grad


def test_missing_derivatives_are_explained_to_whom_it_concerns():
    text = "derivative for aten::x_backward is not implemented"
    with (
        pytest.raises(ConfigError, match=r"methods\.one, two: .*x_backward.*Use another student"),
        missing_derivatives_explained(["one", "two"]),
    ):
        raise RuntimeError(text)
    for entries, other in (([], text), (["one"], "out of memory")):
        with pytest.raises(RuntimeError, match=other), missing_derivatives_explained(entries):
            raise RuntimeError(other)
