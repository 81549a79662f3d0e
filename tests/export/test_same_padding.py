"""Networks with TensorFlow's "same" padding: the padding's value, and exports that end."""

import math

import pytest
import timm.layers.padding
import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from segkd.config.networks import ModelConfig
from segkd.export.bundle import Bundle
from segkd.export.program import export_program
from segkd.export.same_padding import exportable_same_padding, same_padding
from segkd.models.build import build_network
from segkd.models.module import wrap


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_the_padding_is_tensorflows(kernel_size, stride, dilation):
    for x in range(1, 20):
        spanned = (math.ceil(x / stride) - 1) * stride + (kernel_size - 1) * dilation + 1
        assert same_padding(x, kernel_size, stride, dilation) == max(spanned - x, 0)


def test_timm_pads_as_before_after_an_export_and_after_an_error():
    of_timm = timm.layers.padding.get_same_padding
    with pytest.raises(ZeroDivisionError), exportable_same_padding():
        assert timm.layers.padding.get_same_padding is same_padding
        raise ZeroDivisionError
    assert timm.layers.padding.get_same_padding is of_timm


def sizes(program):
    """The symbolic sizes of all tensors of a traced network."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    sides = [side for value in tensors for side in value.shape]
    return [side.node.expr for side in sides if not isinstance(side, int)]


def test_symbolic_sizes_stay_short_where_each_layer_pads_by_its_own_size():
    """With timm's own form they nest, and this network takes hours."""
    network = build_network(ModelConfig(arch="fpn", encoder="tu-tf_efficientnet_lite0"), 3)
    bundle = Bundle(network)
    program = export_program(bundle, (64, 96), dynamic=True)
    operations = [expression.count_ops() for expression in sizes(program)]
    assert operations and max(operations) <= 3  # e.g. 16 * height


class Same(nn.Module):
    """Strides that do not divide the sizes of the images."""

    def __init__(self):
        super().__init__()
        layers = [Conv2dSame(3, 4, 3, 2), MaxPool2dSame(3, 2), Conv2dSame(4, 4, 1, 3)]
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


@pytest.mark.skipif(
    torch.__version__ < (2, 12), reason="torch.export contradicts itself about such sizes"
)
def test_sizes_that_no_stride_divides_are_padded_as_by_timm():
    bundle = Bundle(wrap(Same(), 4), "none")
    program = export_program(bundle, (30, 34), dynamic=True).module()
    for shape in ((1, 3, 30, 34), (2, 3, 31, 41), (3, 3, 37, 33)):
        images = torch.randn(shape)
        assert torch.allclose(program(images)[0], bundle(images)[0], atol=1e-6)
