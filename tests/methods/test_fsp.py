import pytest
import torch
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.fsp import FSP, fsp_loss


def flow(first, second, valid):
    """One image's FSP matrix as nested lists, from loops over channels and positions."""
    pixels = valid.nonzero().tolist()
    return [
        [sum((a[y, x] * b[y, x]).item() for y, x in pixels) / len(pixels) for b in second]
        for a in first
    ]


def pair_reference(s1, s2, t1, t2, mask):
    per_image = []
    for b, valid in enumerate(mask):
        if valid.any():
            g_s, g_t = flow(s1[b], s2[b], valid), flow(t1[b], t2[b], valid)
            squares = [
                (s - t) ** 2
                for row_s, row_t in zip(g_s, g_t, strict=True)
                for s, t in zip(row_s, row_t, strict=True)
            ]
            per_image.append(sum(squares) / len(squares))
    return sum(per_image) / len(per_image)


@pytest.fixture
def stages():
    draw = torch.Generator().manual_seed(7)

    def side():
        return [torch.randn(3, c, 3, 5, generator=draw, dtype=torch.float64) for c in (2, 4, 3)]

    student, teacher = side(), side()
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return [s.requires_grad_() for s in student], [t.requires_grad_() for t in teacher], mask


def test_equals_the_equation(stages):
    student, teacher, mask = stages
    s, t = ([stage.detach() for stage in side] for side in (student, teacher))
    expected = pair_reference(s[0], s[1], t[0], t[1], mask)
    expected += pair_reference(s[1], s[2], t[1], t[2], mask)
    value = fsp_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher(stages):
    student, teacher, mask = stages
    assert torch.autograd.gradcheck(lambda *s: fsp_loss(s, teacher, mask=mask), student)
    fsp_loss(student, teacher, mask=mask).backward()
    assert all(stage.grad is None for stage in teacher)


def test_without_a_mask_all_positions_count(stages):
    student, teacher, mask = stages
    full = fsp_loss(student, teacher, mask=torch.ones_like(mask))
    assert fsp_loss(student, teacher) == full


def test_stages_of_different_sizes_meet_at_the_smallest(stages):
    student, teacher, mask = stages

    def larger(maps, factor):
        return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    expected = fsp_loss(student, teacher, mask=mask)
    sizes = [larger(student[0], 4), larger(student[1], 2), student[2]]
    torch.testing.assert_close(fsp_loss(sizes, teacher, mask=mask), expected)
    large_mask = ~larger(mask, 2)
    large_mask[:, ::2, ::2] = mask
    torch.testing.assert_close(fsp_loss(sizes, teacher, mask=large_mask), expected)


def test_height_and_width_are_reduced_apart():
    wide, high = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 8, 4)
    value = fsp_loss([wide, high], [wide, high])
    assert value == 0


def peer_repdistiller(student, teacher):
    """The mean over images and entries, per pair."""
    total = 0
    for i in range(len(student) - 1):
        g_s, g_t = (
            (side[i].flatten(2).unsqueeze(2) * side[i + 1].flatten(2).unsqueeze(1)).mean(-1)
            for side in (student, teacher)
        )
        total = total + (g_s - g_t).square().mean()
    return total


def test_every_conversion_is_checked(stages):
    student, teacher, _ = stages
    assert FSP.conversions.keys() == {"RepDistiller"}
    conversion = FSP.conversions["RepDistiller"]
    theirs = conversion.weight * peer_repdistiller(student, teacher)
    torch.testing.assert_close(theirs, conversion.at() * fsp_loss(student, teacher))


def test_stages_that_do_not_fit_are_refused(stages):
    student, teacher, _ = stages
    with pytest.raises(ValueError, match="3 stages of the student and 2 of the teacher"):
        fsp_loss(student, teacher[:2])
    with pytest.raises(ValueError, match="channel_adapter"):
        fsp_loss(student, teacher[::-1])
    with pytest.raises(ConfigError, match="add one"):
        FSP(FSP.Config(taps=["head"]))


def test_only_the_student_is_adapted_and_only_where_channels_differ():
    method = FSP(FSP.Config(taps=["stage3", "stage5"], teacher_taps=["stage4", "head"]))
    student = {"stage3": TapInfo(4, 8), "stage5": TapInfo(16, 32)}
    method.build(BuildContext(student, {"stage4": TapInfo(4, 8), "head": TapInfo(6, 4)}, 5))
    first, second = method.adapters
    assert isinstance(first, nn.Identity) and second.weight.shape == (6, 16, 1, 1)
