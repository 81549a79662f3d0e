import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.pairwise import MODES, Pairwise, pairwise_loss
from segkd.structures import Batch, Outputs

F64 = torch.float64


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    norms = [math.sqrt(sum(a * a for a in node)) for node in (first, second)]
    return dot / norms[0] / norms[1]


def reference(student, teacher, mask):
    """The equation, pair by pair, over the valid positions of each image."""
    total, pairs = 0.0, 0
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        s_nodes, t_nodes = (x[:, valid].T.tolist() for x in (s_map, t_map))
        for s_i, t_i in zip(s_nodes, t_nodes, strict=True):
            for s_j, t_j in zip(s_nodes, t_nodes, strict=True):
                total += (cosine(s_i, s_j) - cosine(t_i, t_j)) ** 2
                pairs += 1
    return total / pairs


@pytest.fixture
def maps():
    """Features of unequal channels; images with all, some and no valid positions."""
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, 2, 5, 7, generator=draw, dtype=F64)
    teacher = torch.randn(3, 4, 5, 7, generator=draw, dtype=F64)
    mask = torch.rand(3, 5, 7, generator=draw) > 0.3
    mask[0], mask[2] = True, False
    return student.requires_grad_(), teacher, mask


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    expected = reference(student.detach(), teacher, mask)
    assert pairwise_loss(*maps[:2], mask=mask).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("pool", [None, 2, 0.5, (2, 3)], ids=str)
@pytest.mark.parametrize("pool_type", ["avg", "max"])
def test_gradient_is_right(maps, pool, pool_type):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(
        lambda s: pairwise_loss(s, teacher, mask=mask, pool=pool, pool_type=pool_type), student
    )


def test_pooled_nodes_are_compared_like_positions(maps):
    """Windows of one value each: what is pooled is known without pooling."""
    student, teacher, mask = maps
    large = [x.repeat_interleave(2, -2).repeat_interleave(3, -1) for x in (student, teacher)]
    inside = mask.repeat_interleave(2, -2).repeat_interleave(3, -1)
    inside[:, ::2, ::3] = False  # no node loses all of its positions
    expected = pairwise_loss(student, teacher, mask=mask)
    for pool_type in ("avg", "max"):
        found = pairwise_loss(*large, mask=inside, pool=(5, 7), pool_type=pool_type)
        torch.testing.assert_close(found, expected)


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    for pool in (None, 2):
        expected = pairwise_loss(student, teacher, mask=torch.ones_like(mask), pool=pool)
        assert pairwise_loss(student, teacher, pool=pool) == expected


@pytest.mark.parametrize("mode", MODES)
def test_invalid_positions_are_no_nodes(maps, mode):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    options = {key: value for key, value in MODES[mode].items() if key != "weight"}
    before = pairwise_loss(student, teacher, mask=mask, **options)
    after = pairwise_loss(student + 50 * hidden, teacher + 99 * hidden, mask=mask, **options)
    torch.testing.assert_close(after, before)


def test_nothing_valid_is_a_zero_with_a_graph(maps):
    student, teacher, mask = maps
    for pool in (None, 2):
        value = pairwise_loss(student, teacher, mask=mask & False, pool=pool)
        value.backward()
        assert value == 0 and not student.grad.any()


def test_sizes_are_matched_by_averaging_and_the_teacher_gets_no_gradient(maps):
    student, teacher, mask = maps
    large = teacher.repeat_interleave(2, -2).repeat_interleave(3, -1).requires_grad_()
    found = pairwise_loss(student, large, mask=mask)
    torch.testing.assert_close(found, pairwise_loss(student, teacher, mask=mask))
    found.backward()
    assert large.grad is None and student.grad.any()
    assert not pairwise_loss(student.detach(), large, mask=mask, pool=2).requires_grad


def test_norms_that_are_detached_change_the_gradient_and_not_the_value(maps):
    student, teacher, mask = maps
    values, gradients = [], []
    for detach_norm in (False, True):
        value = pairwise_loss(student, teacher, mask=mask, detach_norm=detach_norm)
        values.append(value.item())
        gradients += torch.autograd.grad(value, student)
    assert values[0] == values[1]
    assert gradients[1].norm() > 1.1 * gradients[0].norm()
    along = (gradients[0] * student).sum(1).abs().max(), (gradients[1] * student).sum(1).abs().max()
    assert along[0] < 1e-12 < along[1], "only with detached norms does a node's length change"


# -- public codes ----------------------------------------------------------------------------------


def peer_skd(student, teacher):
    """Windows of half the map, ceil; detached norm with 1e-8 behind the root; Σ / m² / N."""
    rows, columns = (int(0.5 * size) for size in teacher.shape[2:])
    affinities = []
    for x in (student, teacher):
        x = F.max_pool2d(x, (rows, columns), (rows, columns), ceil_mode=True)
        x = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8).detach()
        affinities.append(torch.einsum("bcm,bcn->bmn", x.flatten(2), x.flatten(2)))
    nodes = affinities[0].shape[1]
    return (affinities[0] - affinities[1]).square().sum() / nodes**2 / len(student)


def peer_cirkd(student, teacher):
    """Windows of 2x2 positions, ceil; gradient through the norm; mean over everything."""
    unit = (F.normalize(F.max_pool2d(x, 2, ceil_mode=True), dim=1) for x in (student, teacher))
    affinities = [x.flatten(2).mT @ x.flatten(2) for x in unit]
    return F.mse_loss(*affinities)


PEERS = {
    "SKD script": (peer_skd, "skd"),
    "CIRKD": (peer_cirkd, "cirkd"),
}


def test_every_conversion_is_checked():
    assert PEERS.keys() == Pairwise.conversions.keys()


def term(method, student, teacher, mask):
    """The method's Term on features that are all it gets."""
    batch = Batch(torch.zeros(len(mask), 3, *mask.shape[1:]), None, mask, torch.arange(len(mask)))
    outputs = (Outputs(x[:, :1], {"head": x}) for x in (student, teacher))
    return method.loss(*outputs, batch, Context(batch))["pairwise"]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("size", [(5, 7), (6, 8)], ids=str)
def test_converted_weight_and_mode_act_as_the_peers(maps, peer, size):
    student, teacher = (F.interpolate(x.detach(), size, mode="bilinear") for x in maps[:2])
    student.requires_grad_()
    formula, mode = PEERS[peer]
    theirs = Pairwise.conversions[peer].weight * formula(student, teacher)
    method = Pairwise(Pairwise.Config(mode=mode))
    inside = torch.ones_like(student[:, 0], dtype=torch.bool)
    ours = Pairwise.conversions[peer].at() * term(method, student, teacher, inside).value
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value, student)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6 * gradients[1].abs().max().item())


# -- the method ------------------------------------------------------------------------------------


def test_count_is_the_number_of_pairs(maps):
    student, teacher, mask = maps
    mask[1], mask[1, 4, 6] = True, False  # the corner is a window of its own in mode skd
    for mode, nodes in {"full": (35, 34, 0), "cirkd": (12, 11, 0), "skd": (9, 8, 0)}.items():
        found = term(Pairwise(Pairwise.Config(mode=mode)), student, teacher, mask)
        assert found.count == sum(n**2 for n in nodes) and found.count.dtype is F64


def test_images_weigh_by_their_pairs(maps):
    student, teacher, mask = maps
    method = Pairwise()
    parts = [
        term(method, student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(3)
    ]
    total = sum(part.value * part.count for part in parts) / sum(part.count for part in parts)
    torch.testing.assert_close(term(method, student, teacher, mask).value, total)


def test_no_adapter_is_needed_between_unequal_channels():
    method = Pairwise(Pairwise.Config(tap="stage4", teacher_tap="head"))
    assert method.needs.student == ("stage4",) and method.needs.teacher == ("head",)
    method.build(BuildContext({"stage4": TapInfo(8, 16)}, {"head": TapInfo(32, 8)}, 5))
    assert not list(method.parameters())


def test_a_mode_sets_defaults_which_keys_override():
    config = Pairwise.Config()
    assert (config.weight, config.pool, config.detach_norm) == (4, None, False)
    config = Pairwise.Config(mode="skd")
    assert (config.weight, config.pool, config.pool_type) == (0.5, 0.5, "max")
    assert config.detach_norm
    assert Pairwise.Config.model_validate(config.model_dump()) == config
    config = Pairwise.Config(mode="cirkd", pool=[2, 4], weight=1)
    assert (config.weight, config.pool, config.pool_type) == (1, (2, 4), "max")
    with pytest.raises(ValueError, match="'full', 'skd' or 'cirkd'"):
        Pairwise.Config(mode="sdk")


@pytest.mark.parametrize("pool", [0, -2, 0.0, -0.5, 1.5, [0, 2], [2, -1]], ids=str)
def test_pools_of_no_size_are_refused(pool):
    with pytest.raises(ValueError, match=r"share between 0 and 1, or \[rows, columns\]"):
        Pairwise.Config(pool=pool)


@pytest.mark.parametrize("pool", [6, 0.1, (5, 8)], ids=str)
def test_pools_larger_than_the_map_are_refused(maps, pool):
    student, teacher, mask = maps
    with pytest.raises(ConfigError, match=r"pairwise: pool .* does not fit a map of 5x7: choose"):
        pairwise_loss(student, teacher, mask=mask, pool=pool)


def test_masks_of_another_size_are_refused(maps):
    student, teacher, mask = maps
    with pytest.raises(ValueError, match="the smaller size of both maps"):
        pairwise_loss(student, teacher, mask=mask[:, 1:])
