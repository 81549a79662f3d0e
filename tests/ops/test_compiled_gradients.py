"""Functions with a backward pass of their own, inside of a compiled graph.

torch 2.11 compiles some forms of a forward pass, e.g. a result that is summed up in place, without
an error to a graph whose result has no gradient.
"""

import pytest
import torch

from segkd.losses.upsampled import upsampled_cross_entropy
from segkd.ops.correlation import pixel_correlation
from segkd.ops.gram import affinity_distance
from segkd.ops.image_gram import image_gram
from segkd.ops.lane_rows import log_odds
from segkd.ops.similarity_kl import similarity_kl
from segkd.ops.softmax_kl import pixel_kl
from segkd.ops.squared_distance import absolute_sums, masked_mse, squared_distance
from segkd.ops.symmetric_kl import symmetric_kl
from segkd.ops.target import target_and_rest, target_map

torch.manual_seed(0)
TEACHER = torch.randn(2, 5, 6, 8)
ALL = torch.ones(2, 6, 8, dtype=torch.bool)
LABELS = torch.randint(5, (2, 6, 8))


def rows(maps):
    """Maps as nodes (B, N, C)."""
    return maps.flatten(2).mT


def own_keys(maps):
    nodes, other = rows(maps), rows(TEACHER)
    return similarity_kl(
        nodes.flatten(0, 1), other.flatten(0, 1), nodes, other, keep=ALL.flatten(1), temperature=1.0
    )


LOSSES = {
    "absolute_sums": lambda maps: sum(part.square().sum() for part in absolute_sums(maps)),
    "affinity_distance": lambda maps: affinity_distance(maps.flatten(2), TEACHER.flatten(2)),
    "image_gram": lambda maps: image_gram(maps, ALL).square().sum(),
    "log_odds": lambda maps: log_odds(maps).square().sum(),
    "masked_mse": lambda maps: masked_mse(maps, TEACHER, ALL),
    "pixel_correlation": lambda maps: pixel_correlation(maps, TEACHER, eps=1e-6).sum(),
    "pixel_kl": lambda maps: pixel_kl(maps, TEACHER, temperature=2.0),
    "similarity_kl": own_keys,
    "squared_distance": lambda maps: squared_distance(maps, TEACHER).sum(),
    "symmetric_kl": lambda maps: symmetric_kl(rows(maps), rows(TEACHER), ALL.flatten(1), 1.0),
    "target_and_rest": lambda maps: target_and_rest(maps, target_map(LABELS, 5)).square().sum(),
    "upsampled_cross_entropy": lambda maps: upsampled_cross_entropy(
        maps, LABELS.repeat_interleave(4, 1).repeat_interleave(4, 2), ignore_index=255
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_gradient_is_that_of_the_function(name):
    loss = LOSSES[name]
    maps = (TEACHER + torch.randn_like(TEACHER)).requires_grad_()
    expected = loss(maps)
    (gradient,) = torch.autograd.grad(expected, maps)
    torch._dynamo.reset()
    found = torch.compile(loss, backend="eager")(maps)
    (compiled,) = torch.autograd.grad(found, maps)
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled, gradient)
    assert gradient.any()
