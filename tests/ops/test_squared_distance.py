import pytest
import torch

from segkd.ops import squared_distance as module
from segkd.ops.attention import attention_map
from segkd.ops.blocks import BlockSize
from segkd.ops.image_gram import image_gram
from segkd.ops.squared_distance import (
    absolute_sums,
    masked_mse,
    squared_distance,
    squared_norm,
)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def maps(draw):
    """Student, teacher, channel weights and a margin, in float64."""
    student, teacher = torch.randn(2, 3, 5, 4, 6, generator=draw, dtype=torch.float64)
    weight = torch.rand(3, 5, generator=draw, dtype=torch.float64)
    margin = -torch.rand(5, generator=draw, dtype=torch.float64)
    return student.requires_grad_(), teacher, weight, margin


@pytest.fixture(params=[1, 40, 10**6], ids=["a channel", "two channels", "all images"])
def blocks(request, monkeypatch):
    """Elements per block: results must not depend on them."""
    size = BlockSize(request.param, request.param)
    monkeypatch.setattr(module, "_BLOCK", size)
    monkeypatch.setattr("segkd.ops.image_gram._BLOCK", size)


def reference(student, teacher, weight, margin):
    """Position by position, channel by channel."""
    value = torch.zeros(len(student), *student.shape[2:], dtype=torch.float64)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, student.shape)).tolist():
        s, t = student[b, c, i, j], teacher[b, c, i, j]
        if margin is not None:
            t = max(t, margin[c])
            if s <= t and t <= 0:
                continue
        value[b, i, j] = value[b, i, j] + (s - t) ** 2 * (1 if weight is None else weight[b, c])
    return value


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_distance_is_the_sum_over_channels(maps, blocks, weighted, partial):
    student, teacher, weight, margin = maps
    options = weight if weighted else None, margin if partial else None
    expected = reference(student, teacher, *options)
    keys = dict(zip(("channel_weight", "margin"), options, strict=True))
    value = squared_distance(student, teacher, **keys)
    torch.testing.assert_close(value, expected)
    upstream = torch.randn_like(value)
    (slope,) = torch.autograd.grad(value, student, upstream)
    (wanted,) = torch.autograd.grad(expected, student, upstream)
    torch.testing.assert_close(slope, wanted)


def test_both_sides_can_learn(maps, blocks):
    student, teacher, weight, _ = maps
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: squared_distance(s, t, channel_weight=weight), (student, teacher)
    )


def test_norm_sums_and_attention_are_the_plain_ones(maps, blocks):
    student = maps[0]
    torch.testing.assert_close(squared_norm(student), student.square().sum(1))
    torch.testing.assert_close(attention_map(student, "sum", 2)[:, 0], student.square().sum(1))
    of_positions, of_channels = absolute_sums(student)
    torch.testing.assert_close(of_positions, student.abs().sum(1))
    torch.testing.assert_close(of_channels, student.abs().sum((2, 3)))
    for function in (squared_norm, absolute_sums):
        assert torch.autograd.gradcheck(function, student)


def test_products_of_images_are_those_of_their_valid_values(maps, blocks, draw):
    student = maps[0]
    mask = torch.rand(3, 4, 6, generator=draw) > 0.3
    rows = (student * mask.unsqueeze(1)).flatten(1)
    torch.testing.assert_close(image_gram(student, mask), rows @ rows.T)
    assert torch.autograd.gradcheck(lambda x: image_gram(x, mask), student)


def test_invalid_positions_may_be_nan(maps):
    student, teacher, _, _ = maps
    mask = torch.ones(3, 4, 6, dtype=torch.bool)
    mask[:, 1] = False
    with torch.no_grad():
        student[:, :, 1], teacher[:, :, 1] = torch.nan, torch.inf
    for value in (masked_mse(student, teacher, mask), image_gram(student, mask).sum()):
        (slope,) = torch.autograd.grad(value, student)
        assert value.isfinite() and slope.isfinite().all() and not slope[:, :, 1].any()


def test_a_device_is_never_asked_whether_values_are_finite():
    assert module._known_to_be_finite(torch.zeros(2))
    assert not module._known_to_be_finite(torch.tensor([0, torch.nan]))
    assert not module._known_to_be_finite(torch.zeros(2, device="meta"))


def test_half_types_are_raised():
    student = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16, requires_grad=True)
    value = squared_distance(student, torch.zeros_like(student))
    assert value.dtype is torch.float32 and value[0, 0, 0] == 4 * 300**2
    value.mean().backward()
    assert student.grad.dtype is torch.float16 and student.grad[0, 0, 0, 0] == 150


def test_no_images_and_no_channels_are_no_error():
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)):
        maps = torch.zeros(shape, requires_grad=True)
        value = (
            squared_distance(maps, torch.zeros(shape)).sum()
            + image_gram(maps, torch.ones(shape[0], *shape[2:]).bool()).sum()
        )
        value.backward()
        assert value == 0


def test_unequal_maps_are_refused():
    with pytest.raises(ValueError, match="channel_adapter"):
        squared_distance(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))
