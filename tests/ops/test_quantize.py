"""Grids of weights and activations against loops over the paper's equations."""

import math

import pytest
import torch

from segkd.ops.quantize import (
    activation_grid,
    group_count,
    quantize,
    quantize_activation,
    symmetric_scale,
)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def half_to_even(x):
    """Rounds as IEEE and torch do, with integers only."""
    low = math.floor(x)
    if x - low != 0.5:
        return low + (x - low > 0.5)
    return low + low % 2


def paper_bucket(values, bits):
    """Polino et al., section 2.1: Q(v) = α Q̂((v − β) / α) + β, points i / (s − 1), s = 2^bits."""
    beta = min(values)
    alpha = max(values) - beta
    s = 2**bits
    if alpha == 0:
        return list(values)
    points = [i / (s - 1) for i in range(s)]
    found = []
    for value in values:
        x = (value - beta) / alpha
        nearest = min(points, key=lambda point: abs(point - x))
        found.append(alpha * nearest + beta)
    return found


def symmetric_group(values, bits):
    """s · k, k the nearest integer, |k| <= 2^(bits − 1) − 1."""
    scale = max(abs(value) for value in values) / (2 ** (bits - 1) - 1)
    return [scale * half_to_even(value / scale) if scale else 0.0 for value in values]


LOOPS = {"range": paper_bucket, "symmetric": symmetric_group}


@pytest.mark.parametrize("grid", LOOPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_buckets_are_the_papers_equation(grid, bits):
    # 60 values: the last of the buckets of 16 has 12. A 0 added to it would be its smallest.
    weight = numbers(5, 3, 2, 2) + 5
    flat = weight.flatten().tolist()
    expected = [v for at in range(0, 60, 16) for v in LOOPS[grid](flat[at : at + 16], bits)]
    found = quantize(weight, bits=bits, per="bucket", bucket_size=16, grid=grid)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("grid", LOOPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_channels_have_grids_of_their_own(grid, axis):
    weight = numbers(4, 3, 2, 2) * torch.tensor([1.0, 1e-3, 50.0]).double().view(3, 1, 1)
    found = quantize(weight, bits=3, per="channel", grid=grid, axis=axis)
    for index in range(weight.shape[axis]):
        part = weight.select(axis, index)
        expected = torch.tensor(LOOPS[grid](part.flatten().tolist(), 3)).double().view_as(part)
        torch.testing.assert_close(found.select(axis, index), expected)


@pytest.mark.parametrize("grid", LOOPS)
def test_a_tensor_has_one_grid(grid):
    weight = numbers(4, 3)
    expected = torch.tensor(LOOPS[grid](weight.flatten().tolist(), 4)).double().view(4, 3)
    torch.testing.assert_close(quantize(weight, bits=4, per="tensor", grid=grid), expected)


def test_the_order_in_memory_is_not_that_of_buckets():
    weight = numbers(4, 3, 3, 3)
    other = weight.contiguous(memory_format=torch.channels_last)
    keys = {"bits": 2, "per": "bucket", "bucket_size": 10, "grid": "range"}
    assert torch.equal(quantize(weight, **keys), quantize(other, **keys))


@pytest.mark.parametrize("per", ["tensor", "channel", "bucket"])
@pytest.mark.parametrize("grid", LOOPS)
def test_as_many_levels_as_there_are_bits_and_again_the_same(per, grid):
    weight = numbers(6, 40).float()
    keys = {"bits": 3, "per": per, "bucket_size": 32, "grid": grid}
    found = quantize(weight, **keys)
    groups = {"tensor": found.view(1, -1), "channel": found}.get(per)
    groups = list(found.flatten().split(32)) if groups is None else list(groups)
    assert len(groups) == group_count(weight.shape, per, 0, 32)
    # Levels differ by more than the rounding of their floats.
    counts = [len(set((group / group.abs().max()).round(decimals=4).tolist())) for group in groups]
    assert max(counts) <= (7 if grid == "symmetric" else 8) and max(counts) >= 6
    torch.testing.assert_close(quantize(found, **keys), found)


def test_zero_stays_zero_where_integers_compute():
    weight = numbers(3, 20)
    weight[0], weight[1, 0] = 0.0, 0.0
    found = quantize(weight, bits=2)
    assert torch.equal(found[0], torch.zeros(20).double()) and found[1, 0] == 0
    assert set((found[2] / found[2].abs().max()).tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("grid", LOOPS)
def test_equal_values_are_finite(grid):
    weight = torch.full((2, 5), 0.3)
    weight[1] = 0.0
    torch.testing.assert_close(quantize(weight, bits=4, grid=grid), weight)


@pytest.mark.parametrize("grid", LOOPS)
def test_the_gradient_passes_straight(grid):
    weight = numbers(4, 9).requires_grad_()
    factor = numbers(4, 9, seed=1)
    (quantize(weight, bits=2, per="bucket", bucket_size=5, grid=grid) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("per", ["tensor", "channel", "bucket"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_passes_straight_in_a_compiled_network(per, dtype):
    """With torch 2.11 there was none, without a word."""
    torch._dynamo.reset()
    weight = torch.randn(4, 6, 3, 3).to(dtype).requires_grad_()

    def squares(weight):
        return quantize(weight, bits=4, per=per, bucket_size=10).square().sum()

    compiled = torch.compile(squares, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(weight), weight)
    (expected,) = torch.autograd.grad(squares(weight), weight)
    torch._dynamo.reset()
    assert torch.equal(found, expected) and expected.any()


def test_half_types_are_quantised_in_float32():
    weight = numbers(3, 50).bfloat16()
    found = quantize(weight, bits=8)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, quantize(weight.float(), bits=8).bfloat16(), rtol=0, atol=0)


def test_scales_of_channels():
    weight = numbers(3, 2, 4)
    for axis, count in ((0, 3), (1, 2)):
        found = symmetric_scale(weight, 4, "channel", axis)
        expected = [float(weight.select(axis, i).abs().max()) / 7 for i in range(count)]
        torch.testing.assert_close(found.tolist(), expected)
        whole = symmetric_scale(weight, 4, "tensor", axis)
        assert whole.tolist() == [float(weight.abs().max()) / 7] * count


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ends", [(-1.5, 2.0), (0.3, 4.0), (-2.0, -0.1), (0.0, 0.0)])
def test_activations_are_rounded_on_a_range_with_zero(bits, ends):
    low, high = (torch.tensor(end) for end in ends)
    values = 3 * numbers(200, seed=2).float()
    steps = 2**bits - 1
    bottom, top = min(ends[0], 0.0), max(ends[1], 0.0)
    step = (top - bottom) / steps or 1.0
    zero = round(-bottom / step)
    expected = [(min(max(round(v / step) + zero, 0), steps) - zero) * step for v in values.tolist()]
    found = quantize_activation(values, low, high, bits)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert quantize_activation(torch.zeros(3), low, high, bits).tolist() == [0, 0, 0]
    scale, offset = activation_grid(low, high, bits)
    assert float(scale) == pytest.approx(step) and int(offset) == zero


def test_activations_are_rounded_alike_in_a_compiled_network_without_ending_its_graph():
    torch._dynamo.reset()
    # Layers of unequal sizes share their code, which torch then compiles for any size.
    compiled = torch.compile(quantize_activation, backend="eager", fullgraph=True, dynamic=True)
    low, high = torch.tensor(-1.3), torch.tensor(2.1)
    plain, other = (3 * numbers(2000, seed=3).float() for _ in range(2))
    plain.requires_grad_(), other.requires_grad_()
    found, expected = compiled(plain, low, high, 4), quantize_activation(other, low, high, 4)
    assert torch.equal(found, expected) and len(found.unique()) == 16
    found.square().sum().backward(), expected.square().sum().backward()
    assert torch.equal(plain.grad, other.grad) and (plain.grad == 0).any()
    torch._dynamo.reset()


def test_clipped_activations_have_no_gradient():
    values = torch.tensor([-3.0, -0.5, 0.4, 5.0], requires_grad=True)
    quantize_activation(values, torch.tensor(-1.0), torch.tensor(1.0), 8).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 0]
