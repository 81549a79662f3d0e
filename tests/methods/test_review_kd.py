from math import ceil, floor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.review_kd import AttentionFusion, ReviewKD, review_kd_loss
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.structures import Batch, Outputs

F64 = torch.float64


def cell(index, cells, size):
    return range(floor(index * size / cells), ceil((index + 1) * size / cells))


def level_reference(difference, valid, rows, columns):
    """One image: the mean over cells, by their valid share, and channels, position by position."""
    h, w = valid.shape
    total = shares = 0.0
    for i in range(rows):
        for j in range(columns):
            places = [(y, x) for y in cell(i, rows, h) for x in cell(j, columns, w)]
            used = [(y, x) for y, x in places if valid[y, x]]
            share = len(used) / len(places)
            shares += share
            for c in range(len(difference)):
                if used:
                    mean = sum(difference[c, y, x].item() for y, x in used) / len(used)
                    total += share * mean**2 / len(difference)
    return total / shares


def reference(student, teacher, mask, grids):
    per_image = []
    for s, t, valid in zip(student, teacher, mask, strict=True):
        if valid.any():
            levels = [level_reference(s - t, valid, *grid) for grid in grids]
            factors = [2.0**-j for j in range(len(grids))]
            weighted = [f * x for f, x in zip(factors, levels, strict=True)]
            per_image.append(sum(weighted) / sum(factors))
    return sum(per_image) / len(per_image)


@pytest.fixture
def stages():
    draw = torch.Generator().manual_seed(7)

    def side():
        shapes = (3, 2, 6, 11), (3, 4, 3, 4)
        return [torch.randn(shape, generator=draw, dtype=F64) for shape in shapes]

    student, teacher = side(), side()
    masks = [torch.rand(3, *s.shape[-2:], generator=draw) > 0.3 for s in student]
    for mask in masks:
        mask[1] = False
    masks[0][2, :3, :6] = False  # cells without any valid position
    return [s.requires_grad_() for s in student], [t.requires_grad_() for t in teacher], masks


GRIDS = [(6, 11), (4, 8), (2, 4), (1, 2)], [(3, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize("number", [0, 1])
def test_equals_the_equation(stages, number):
    s, t, mask = (part[number] for part in stages)
    value = review_kd_loss([s], [t], mask=mask)
    expected = reference(s.detach(), t.detach(), mask, GRIDS[number])
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_stages_add_up_and_take_the_mask_by_nearest_neighbour(stages):
    (s, _), (t, _), (mask, _) = stages
    s2, t2 = (m[..., ::2, ::2][..., :5].contiguous() for m in (s, t))
    large = mask[..., :10]
    value = review_kd_loss([s[..., :10], s2], [t[..., :10], t2], mask=large)
    first = review_kd_loss([s[..., :10]], [t[..., :10]], mask=large)
    second = review_kd_loss([s2], [t2], mask=large[:, ::2, ::2])
    torch.testing.assert_close(value, first + second)


def test_gradient_is_right_and_none_goes_to_the_teacher(stages):
    student, teacher, masks = stages
    assert torch.autograd.gradcheck(
        lambda s: review_kd_loss([s], teacher[:1], mask=masks[0]), student[0]
    )
    review_kd_loss(student, teacher).backward()
    assert all(stage.grad is None for stage in teacher)


def test_invalid_positions_may_hold_anything(stages):
    (s, _), (t, _), (mask, _) = stages
    hidden = ~mask.unsqueeze(1)
    broken = s.detach().masked_fill(hidden, float("nan")).requires_grad_()
    value = review_kd_loss([broken], [t.masked_fill(hidden, float("inf"))], mask=mask)
    value.backward()
    torch.testing.assert_close(value, review_kd_loss([s], [t], mask=mask))
    assert broken.grad.isfinite().all()


def test_without_valid_positions_a_zero_with_a_graph(stages):
    (s, _), (t, _), (mask, _) = stages
    value = review_kd_loss([s], [t], mask=torch.zeros_like(mask))
    value.backward()
    assert value == 0 and not s.grad.any()


def test_larger_maps_are_averaged_to_the_smaller_size(stages):
    student, teacher, masks = stages
    larger = teacher[1].repeat_interleave(2, -1).repeat_interleave(4, -2)
    expected = review_kd_loss(student[1:], teacher[1:], mask=masks[1])
    found = review_kd_loss(student[1:], [larger], mask=masks[1])
    torch.testing.assert_close(found, expected)


def peer_mdistiller(student, teacher):
    """Means over everything at up to four sizes; the weights halve at each that is used."""
    loss, factor, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            factor /= 2
            total += factor
            pooled = (F.adaptive_avg_pool2d(m, (size, size)) for m in (student, teacher))
            loss = loss + factor * F.mse_loss(*pooled)
    return loss / total


@pytest.mark.parametrize("side", [8, 7, 4, 2, 1])
def test_every_conversion_is_checked_on_square_maps(side):
    assert ReviewKD.conversions.keys() == {"mdistiller", "mdistiller ImageNet"}
    student, teacher = torch.randn(2, 3, 5, side, side, dtype=F64)
    for conversion in ReviewKD.conversions.values():
        theirs = conversion.weight * peer_mdistiller(student, teacher)
        torch.testing.assert_close(theirs, conversion.at() * review_kd_loss([student], [teacher]))


def test_stages_that_do_not_fit_are_refused(stages):
    student, teacher, _ = stages
    with pytest.raises(ValueError, match="2 stages of the student and 1 of the teacher"):
        review_kd_loss(student, teacher[:1])
    with pytest.raises(ValueError, match="at least one"):
        review_kd_loss([], [])
    with pytest.raises(ValueError, match="channel_adapter"):
        review_kd_loss(student, teacher[::-1])
    with pytest.raises(ConfigError, match="no duplicates"):
        ReviewKD(ReviewKD.Config(taps=["stage3", "stage3"]))


# -- the fusion --------------------------------------------------------------------------------


def test_norm_over_all_positions_is_group_norm():
    maps = 3 + 2 * torch.randn(2, 64, 3, 5, dtype=F64)
    ours, theirs = MaskedGroupNorm(64).double(), nn.GroupNorm(32, 64).double()
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(maps, torch.ones(2, 3, 5).bool()), theirs(maps))


def test_norm_of_a_part_is_the_norm_of_its_crop():
    maps, mask = torch.randn(1, 6, 4, 5, dtype=F64), torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, 1:, :3] = True
    norm = MaskedGroupNorm(6).double()
    found = norm(maps, mask)
    crop = norm(maps[..., 1:, :3], mask[:, 1:, :3])
    torch.testing.assert_close(found[..., 1:, :3], crop)
    assert not found.masked_fill(mask.unsqueeze(1), 0).any()


def test_fusion_weighs_both_maps_position_by_position():
    torch.manual_seed(0)
    fuse = AttentionFusion(3, 4, 6).double()
    features, deeper = (
        torch.randn(2, c, *size, dtype=F64) for c, size in ((3, (4, 6)), (4, (2, 3)))
    )
    mask = torch.rand(2, 4, 6) > 0.3
    out, fused = fuse(features, mask, deeper)
    own = fuse.reduce_norm(fuse.reduce(features), mask)
    for b, y, x in mask.nonzero().tolist():
        a, d = own[b, :, y, x], deeper[b, :, y // 2, x // 2]
        logits = fuse.gates.weight[:, :, 0, 0] @ torch.cat([a, d]) + fuse.gates.bias
        first, second = logits.sigmoid()
        torch.testing.assert_close(fused[b, :, y, x], first * a + second * d)
    assert out.shape == (2, 6, 4, 6)
    hidden = ~mask.unsqueeze(1)
    assert not (out * hidden).any() and not (fused * hidden).any()


def test_what_invalid_positions_hold_reaches_nothing():
    torch.manual_seed(0)
    fuse, mask = AttentionFusion(3, 4, 6), torch.rand(2, 4, 6) > 0.4
    features, deeper = torch.randn(2, 3, 4, 6), torch.randn(2, 4, 4, 6)
    noise = 100 * ~mask.unsqueeze(1)
    clean = fuse(features, mask, deeper)
    torch.testing.assert_close(fuse(features + noise, mask, deeper + noise), clean)


def test_taps_that_are_not_from_shallow_to_deep_are_refused():
    taps = {"stage4": TapInfo(4, 16), "stage3": TapInfo(4, 8)}
    method = ReviewKD(ReviewKD.Config(taps=["stage4", "stage3"]))
    with pytest.raises(ConfigError, match=r"stage4, stage3 have the strides 16, 8: .*shallow to"):
        method.build(BuildContext(taps, taps, 5))


def test_review_goes_from_deep_to_shallow():
    torch.manual_seed(0)
    config = ReviewKD.Config(taps=["stage3", "head"], teacher_taps=["stage4", "head"], width=4)
    method = ReviewKD(config)
    infos = {"stage3": TapInfo(3, 1), "head": TapInfo(5, 2)}
    method.build(BuildContext(infos, {"stage4": TapInfo(6, 1), "head": TapInfo(7, 2)}, 5))
    assert [f.gates is None for f in method.fusions] == [False, True]
    assert [f.expand.weight.shape for f in method.fusions] == [(6, 4, 3, 3), (7, 4, 3, 3)]
    student = {"stage3": torch.randn(1, 3, 4, 6), "head": torch.randn(1, 5, 2, 3)}
    for stage in student.values():
        stage.requires_grad_()
    teacher = {"stage4": torch.randn(1, 6, 4, 6), "head": torch.randn(1, 7, 2, 3)}
    inside = torch.ones(1, 4, 6, dtype=torch.bool)
    batch = Batch(torch.zeros(1, 3, 4, 6), None, inside, torch.arange(1))
    outputs = (Outputs(torch.zeros(1, 5, 2, 3), maps) for maps in (student, teacher))
    terms = method.loss(*outputs, batch, Context(batch))
    assert terms.keys() == {"stage3", "head"}
    alone = torch.autograd.grad(
        terms["head"].value, student["stage3"], retain_graph=True, allow_unused=True
    )
    assert alone == (None,)
    (reviewed,) = torch.autograd.grad(terms["stage3"].value, student["head"])
    assert reviewed.any()


def test_width_follows_the_last_stage_up_to_512():
    for channels, width in ((64, 64), (2048, 512)):
        method = ReviewKD(ReviewKD.Config(taps=["head"]))
        method.build(BuildContext({"head": TapInfo(channels, 8)}, {"head": TapInfo(8, 8)}, 5))
        assert method.fusions[0].reduce.weight.shape[:2] == (width, channels)
