import math

import pytest
import torch

from segkd.methods.shared.token_masks import TokenMasks, overlap, overlap_term


@pytest.fixture
def masks():
    draw = torch.Generator().manual_seed(2)
    valid = torch.rand(3, 4, 5, generator=draw) > 0.3
    valid[1] = False
    return torch.rand(3, 4, 4, 5, generator=draw, dtype=torch.float64), valid


def dice(masks, valid):
    """The mean over ordered pairs of one image, by loops."""
    places, found = valid.nonzero().tolist(), []
    for a in range(len(masks)):
        for b in range(len(masks)):
            if a != b:
                both, squares = 0.0, 0.0
                for y, x in places:
                    m, n = masks[a, y, x].item(), masks[b, y, x].item()
                    both, squares = both + m * n, squares + m * m + n * n
                found.append(2 * both / squares)
    return sum(found) / len(found)


def test_overlap_is_the_mean_dice_coefficient_of_all_pairs(masks):
    masks, valid = masks
    found = overlap(masks, valid)
    for image in (0, 2):
        assert found[image].item() == pytest.approx(dice(masks[image], valid[image]), rel=1e-12)
    term = overlap_term(masks, valid)
    assert term.value.item() == pytest.approx((found[0] + found[2]).item() / 2, rel=1e-12)
    assert term.count == 2  # the image without valid positions does not count


def test_overlap_of_equal_disjoint_and_single_masks():
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    one = torch.tensor([[[0.5, 1.0], [0.0, 0.2]]])
    assert overlap(one.expand(1, 3, 2, 2), valid).item() == pytest.approx(1)
    apart = torch.tensor([[[[1.0, 1.0], [0, 0]], [[0, 0], [1.0, 1.0]]]])
    assert overlap(apart, valid).item() == 0
    assert overlap(one.unsqueeze(0), valid).item() == 0


def test_masks_are_sigmoids_of_products():
    module = TokenMasks(2, 3)
    maps = torch.randn(1, 3, 2, 2)
    found = module(maps)
    for token in range(2):
        for y in range(2):
            product = sum(
                module.tokens[token, c].item() * maps[0, c, y, 0].item() for c in range(3)
            )
            expected = 1 / (1 + math.exp(-product))
            assert found[0, token, y, 0].item() == pytest.approx(expected, rel=1e-5)
