import numpy as np
import pytest
import torch

from segkd.ops.haar import haar, haar_levels, inverse_haar, inverse_haar_levels, whole_blocks


def reference(maps):
    """One level of a map (h, w) by loops: averages and the details across, down, diagonal."""
    h, w = maps.shape
    low, details = np.zeros((h // 2, w // 2)), np.zeros((3, h // 2, w // 2))
    for y in range(h // 2):
        for x in range(w // 2):
            (a, b), (c, d) = maps[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            low[y, x] = (a + b + c + d) / 2
            details[:, y, x] = (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
    return low, details


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 11, 14, generator=draw, dtype=torch.float64)


def test_equals_the_loops_at_every_level(maps):
    low, details = haar_levels(maps, 3)
    assert [tuple(one.shape[-2:]) for one in details] == [(8, 8), (4, 4), (2, 2)]
    for image in range(2):
        for channel in range(3):
            expected = np.pad(maps[image, channel].numpy(), ((0, 5), (0, 2)))
            for found in details:
                expected, of_level = reference(expected)
                np.testing.assert_allclose(found[image, channel], of_level, atol=1e-12)
            np.testing.assert_allclose(low[image, channel], expected, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_inverse_is_exact(maps, levels):
    low, details = haar_levels(maps, levels)
    torch.testing.assert_close(inverse_haar_levels(low, details, (11, 14)), maps)


def test_it_keeps_the_energy(maps):
    even = maps[..., :10, :]
    low, details = haar(even)
    kept = low.square().sum() + details.square().sum()
    torch.testing.assert_close(kept, even.square().sum())
    torch.testing.assert_close(inverse_haar(low, details), even)


def test_a_constant_map_has_no_details():
    _, details = haar_levels(torch.full((1, 1, 8, 8), 7.0), 3)
    assert all(not found.any() for found in details)


def test_gradients_are_right(maps):
    small = maps[:1, :1, :3, :5].clone().requires_grad_()

    def coefficients(x):
        low, details = haar_levels(x, 2)
        return (low, *details)

    assert torch.autograd.gradcheck(coefficients, small)


def test_a_block_is_whole_if_all_its_positions_are_valid_and_inside_the_map():
    mask = torch.ones(1, 9, 16, dtype=torch.bool)
    mask[0, 3, 5] = False
    for level, found in enumerate(whole_blocks(mask, 3), start=1):
        side = 2**level
        for y, x in np.ndindex(*found.shape[1:]):
            block = mask[0, y * side : (y + 1) * side, x * side : (x + 1) * side]
            assert found[0, y, x] == (block.numel() == side**2 and bool(block.all()))
