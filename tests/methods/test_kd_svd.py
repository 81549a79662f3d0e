import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.kd_svd import KDSVD, kd_svd_loss
from segkd.modules import adapter


def decomposed(maps, valid, number):
    """The first right singular vectors of one image, from a full decomposition."""
    rows = torch.stack([maps[:, y, x] for y, x in valid.nonzero().tolist()])
    return torch.linalg.svd(rows, full_matrices=False)[2][:number]


def aligned(student, target):
    """The candidate most similar to the teacher's vector, with its sign."""
    similarities = [sum((a * b).item() for a, b in zip(v, target, strict=True)) for v in student]
    best = max(range(len(student)), key=lambda i: abs(similarities[i]))
    return student[best] * math.copysign(1, similarities[best])


def signed(vector, maps, valid):
    """Singular vectors have no sign: here the product with the mean is positive."""
    mean = torch.stack([maps[:, y, x] for y, x in valid.nonzero().tolist()]).mean(0)
    return vector * math.copysign(1, (vector @ mean).item())


def rbf(late, early):
    return [[math.exp(-((v - u) ** 2) / 8) for u in early.tolist()] for v in late.tolist()]


def reference(student, teacher, mask):
    """Loops over pairs of stages, images and entries; four candidates."""
    total = 0.0
    for late in range(1, len(student)):
        per_image = []
        for b, valid in enumerate(mask):
            if not valid.any():
                continue
            matrices = []
            vectors = {}
            for stage in (late - 1, late):
                theirs = decomposed(teacher[stage][b], valid, 1)[0]
                vectors["t", stage] = signed(theirs, teacher[stage][b], valid)
                several = decomposed(student[stage][b], valid, 4)
                vectors["s", stage] = aligned(several, vectors["t", stage])
            matrices = [rbf(vectors[side, late], vectors[side, late - 1]) for side in "st"]
            per_image.append(
                sum(
                    (r_s - r_t) ** 2
                    for row_s, row_t in zip(*matrices, strict=True)
                    for r_s, r_t in zip(row_s, row_t, strict=True)
                )
            )
        total += sum(per_image) / len(per_image)
    return total


def features(draw, channels, shape=(3, 4, 7), negative=False):
    """Maps whose singular values are well apart, on a map that is not square."""
    batch, h, w = shape
    parts = torch.rand(batch, channels, 5, generator=draw, dtype=torch.float64)
    scale = torch.tensor([1.0, 0.4, 0.15, 0.06, 0.02], dtype=torch.float64)
    where = torch.rand(batch, 5, h * w, generator=draw, dtype=torch.float64)
    maps = ((parts * scale) @ where).view(batch, channels, h, w)
    return maps - maps.mean(dim=(0, 2, 3), keepdim=True) if negative else maps


@pytest.fixture
def stages():
    draw = torch.Generator().manual_seed(7)
    student, teacher = ([features(draw, c) for c in (5, 8, 6)] for _ in range(2))
    mask = torch.rand(3, 4, 7, generator=draw) > 0.3
    mask[1] = False
    return [s.requires_grad_() for s in student], [t.requires_grad_() for t in teacher], mask


def test_equals_the_equation(stages):
    student, teacher, mask = stages
    expected = reference([s.detach() for s in student], [t.detach() for t in teacher], mask)
    value = kd_svd_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_nearly_that_of_exact_vectors(stages):
    student, teacher, mask = stages

    def exact(side, b, stage):
        return signed(decomposed(side[stage][b], mask[b], 1)[0], side[stage][b], mask[b])

    def matrix(side, b, late):
        early = exact(side, b, late - 1)
        return torch.exp(-(exact(side, b, late)[:, None] - early[None]).square() / 8)

    pairs = [
        (matrix(student, b, late) - matrix(teacher, b, late).detach()).square().sum() / 2
        for late in (1, 2)
        for b in (0, 2)
    ]
    value = kd_svd_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(sum(pairs).item(), rel=1e-6)
    found, expected = (torch.autograd.grad(loss, student) for loss in (value, sum(pairs)))
    for ours, theirs in zip(found, expected, strict=True):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.98
        assert ours.norm() / theirs.norm() == pytest.approx(1, abs=0.15)


def test_a_step_along_the_gradient_lowers_the_loss(stages):
    student, teacher, mask = stages
    before = kd_svd_loss(student, teacher, mask=mask)
    slopes = torch.autograd.grad(before, student)
    moved = [s - 300 * slope for s, slope in zip(student, slopes, strict=True)]
    assert kd_svd_loss(moved, teacher, mask=mask) < 0.9 * before


def test_both_stages_of_a_pair_learn(stages):
    student, teacher, mask = stages
    kd_svd_loss(student[:2], teacher[:2], mask=mask).backward()
    assert all(stage.grad.abs().max() > 0 for stage in student[:2])
    assert all(stage.grad is None for stage in teacher)


def test_images_are_not_mixed_where_maps_are_not_square(stages):
    student, teacher, _ = stages
    one_by_one = [
        kd_svd_loss([s[b : b + 1] for s in student], [t[b : b + 1] for t in teacher])
        for b in range(3)
    ]
    torch.testing.assert_close(kd_svd_loss(student, teacher), sum(one_by_one) / 3)


@pytest.mark.parametrize("seed", range(6))
def test_directions_in_another_order_are_found_again(seed):
    """The teacher's first direction may be the student's second, whose sign is arbitrary."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64))[0]
    where = torch.linalg.qr(torch.randn(28, 2, generator=draw, dtype=torch.float64))[0].T

    def maps(sizes):
        values = (base[:, :2] * torch.tensor(sizes, dtype=torch.float64)) @ where
        return values.view(1, 5, 4, 7)

    stage = features(draw, 8, (1, 4, 7))
    theirs = [maps([3.0, 1.0]), stage]
    assert kd_svd_loss([maps([1.0, 3.0]), stage], theirs) < 1e-12
    assert kd_svd_loss([maps([1.0, 3.0]), stage], theirs, candidates=1) > 1e-4


def test_equally_similar_directions_are_not_added_up():
    """Code that keeps all columns with the largest cosine adds two of them."""
    student = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    student[0, 0, 0, 0], student[0, 1, 0, 1] = 2.0, 1.0
    teacher = torch.ones(1, 4, 1, 2, dtype=torch.float64)
    value = kd_svd_loss([student, student], [teacher, teacher])
    first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = 0.0
    for v in first.tolist():
        for u in first.tolist():
            expected += (math.exp(-((v - u) ** 2) / 8) - 1) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_dead_channels_have_a_finite_gradient(stages):
    student, teacher, mask = stages
    dead = [
        torch.cat([s.detach()[:, :2], 0 * s.detach()[:, 2:]], 1).requires_grad_() for s in student
    ]
    kd_svd_loss(dead, teacher, mask=mask).backward()
    assert all(stage.grad.isfinite().all() for stage in dead)


def test_float32_keeps_the_signal_of_many_channels():
    """Entries of unit vectors are about 0.04 there: exp(−d²/8) is 1 − 0.0002."""
    draw = torch.Generator().manual_seed(9)
    student, teacher = ([features(draw, 512, (1, 4, 7)) for _ in range(2)] for _ in range(2))
    exact = kd_svd_loss(student, teacher)
    single = kd_svd_loss([s.float() for s in student], [t.float() for t in teacher])
    assert 0 < exact < 1e-2
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)
    near = [s + 1e-3 * t for s, t in zip(student, teacher, strict=True)]
    exact = kd_svd_loss(near, student)
    single = kd_svd_loss([n.float() for n in near], [s.float() for s in student])
    assert 0 < exact < 1e-7
    assert single.item() == pytest.approx(exact.item(), rel=1e-2)


def test_half_types_and_autocast_are_raised(stages):
    student, teacher, mask = stages
    sides = [[s.detach().bfloat16() for s in side] for side in (student, teacher)]
    expected = kd_svd_loss(*[[s.float() for s in side] for side in sides], mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        value = kd_svd_loss(*sides, mask=mask)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, expected)


def test_stages_of_different_sizes_are_reduced_to_the_smaller(stages):
    student, teacher, mask = stages

    def larger(maps):
        return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)

    expected = kd_svd_loss(student, teacher, mask=mask)
    value = kd_svd_loss([larger(student[0]), *student[1:]], teacher, mask=mask)
    torch.testing.assert_close(value, expected)
    value = kd_svd_loss(student, [larger(t) for t in teacher], mask=larger(mask))
    torch.testing.assert_close(value, expected)


def test_without_a_mask_all_positions_count(stages):
    student, teacher, mask = stages
    full = kd_svd_loss(student, teacher, mask=torch.ones_like(mask))
    assert kd_svd_loss(student, teacher) == full


def peer(student, teacher):
    """Σ over pairs, images and entries, in the batch."""
    mask = torch.ones(3, 4, 7, dtype=torch.bool)
    return len(student[0]) * reference(student, teacher, mask)


def test_every_conversion_is_checked(stages):
    student, teacher = ([s.detach() for s in side] for side in stages[:2])
    ours = kd_svd_loss(student, teacher).item()
    summed = peer(student, teacher)
    peers = {"RepDistiller": summed / 3, "KD_methods_with_TF": summed}
    assert peers.keys() == KDSVD.conversions.keys()
    for name, theirs in peers.items():
        conversion = KDSVD.conversions[name]
        assert conversion.weight * theirs == pytest.approx(conversion.at(N=3) * ours, rel=1e-6)


def test_the_published_weight_is_that_of_a_batch_of_128():
    assert KDSVD.conversions["KD_methods_with_TF"].at(N=128) == KDSVD.paper_weight


def test_stages_that_do_not_fit_are_refused(stages):
    student, teacher, _ = stages
    with pytest.raises(ValueError, match="3 stages of the student and 2 of the teacher"):
        kd_svd_loss(student, teacher[:2])
    with pytest.raises(ValueError, match="channel_adapter"):
        kd_svd_loss(student, teacher[::-1])
    with pytest.raises(ConfigError, match="add one"):
        KDSVD(KDSVD.Config(taps=["head"]))


def test_only_the_student_is_adapted_by_layers_of_unit_gain():
    method = KDSVD(KDSVD.Config(taps=["stage3", "stage5"], teacher_taps=["stage4", "head"]))
    student = {"stage3": TapInfo(400, 8), "stage5": TapInfo(16, 32)}
    teacher = {"stage4": TapInfo(400, 16), "head": TapInfo(300, 4)}
    method.build(BuildContext(student, teacher, num_classes=5))
    same, wider = method.adapters
    assert isinstance(same, nn.Identity) and wider.weight.shape == (300, 16, 1, 1)
    assert wider.weight.std().item() == pytest.approx(16**-0.5, rel=0.1) != adapter.START
