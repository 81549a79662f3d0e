import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.freekd import FreeKD, detail_terms, freekd_loss, levels_within
from segkd.structures import Batch, Outputs, Term


def details_of(maps, level):
    """Details (C, 3, h_l, w_l) of an image (C, h, w) at a level, from sums over quarters."""
    side, half = 2**level, 2 ** (level - 1)
    rows, columns = maps.shape[1] // side, maps.shape[2] // side
    found = torch.zeros(len(maps), 3, rows, columns, dtype=maps.dtype)
    for c, y, x in torch.cartesian_prod(*map(torch.arange, (len(maps), rows, columns))).tolist():
        block = maps[c, y * side : (y + 1) * side, x * side : (x + 1) * side]
        a, b = block[:half, :half].sum(), block[:half, half:].sum()
        d, e = block[half:, :half].sum(), block[half:, half:].sum()
        bands = (a - b + d - e, a + b - d - e, a - b - d + e)
        found[c, :, y, x] = torch.stack(bands) / side
    return found


def reference(student, teacher, tokens, mask, levels=3):
    """The equation by loops; a coefficient counts if its whole block is valid."""
    total = 0.0
    for level in range(1, levels + 1):
        side, values = 2**level, []
        for image in range(len(student)):
            own, target = (details_of(maps[image], level) for maps in (student, teacher))
            for y in range(own.shape[2]):
                for x in range(own.shape[3]):
                    block = mask[image, y * side : (y + 1) * side, x * side : (x + 1) * side]
                    if not block.all():
                        continue
                    for token in tokens[level - 1]:
                        product = (token * target[:, :, y, x].sum(1)).sum().item()
                        weight = 1 / (1 + math.exp(-product))
                        gap = (own[:, :, y, x] - target[:, :, y, x]).abs()
                        values += [weight * value for value in gap.flatten().tolist()]
        total += sum(values) / len(values)
    return total


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 2, 3, 17, 11, generator=draw, dtype=torch.float64)
    mask = torch.ones(2, 17, 11, dtype=torch.bool)
    mask[0, 4, 9] = mask[1, 12, 2] = False
    tokens = torch.randn(3, 2, 3, generator=draw, dtype=torch.float64)
    return student.requires_grad_(), teacher.requires_grad_(), tokens, mask


def test_equals_the_equation(maps):
    student, teacher, tokens, mask = maps
    found = freekd_loss(student, teacher, tokens=list(tokens), mask=mask).item()
    expected = reference(student.detach(), teacher.detach(), tokens, mask)
    assert found == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, tokens, mask = maps
    options = {"tokens": list(tokens), "mask": mask}
    assert torch.autograd.gradcheck(lambda a: freekd_loss(a, teacher, **options), student)
    freekd_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_terms_are_levels_not_orientations(maps):
    """The trap: what public code calls cH, cV, cD are the levels, each of all orientations."""
    teacher = torch.zeros(1, 1, 8, 8)
    whole = torch.ones(1, 8, 8, dtype=torch.bool)
    for period, expected in ((1, [True, False, False]), (2, [False, True, False])):
        stripes = (torch.arange(8) // period % 2).float()
        for one in (stripes.expand(8, 8), stripes.expand(8, 8).T):  # across, and down
            found = detail_terms(one[None, None].clone(), teacher, whole)
            assert [term.value.item() > 0 for term in found] == expected
    halves = (torch.arange(8) // 4).float().expand(1, 1, 8, 8)
    assert [t.value.item() > 0 for t in detail_terms(halves, teacher, whole)] == [
        False,
        False,
        True,
    ]


def test_the_low_band_is_left_out():
    """Maps that differ by a constant in each 8x8 block have the same details."""
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 16, 8)
    shift = torch.randn(2, 3, 2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert freekd_loss(teacher + shift, teacher).item() == pytest.approx(0, abs=1e-5)
    assert freekd_loss(teacher + shift[..., :4].repeat(1, 1, 1, 2) * 2, 1.5 * teacher) > 0.1


def test_incomplete_blocks_do_not_count(maps):
    student, teacher, _, mask = maps
    before = freekd_loss(student, teacher, mask=mask)
    off = student.detach().clone()
    off[:, :, 16] += 9  # a row below the last whole block
    torch.testing.assert_close(freekd_loss(off, teacher, mask=mask), before)
    hidden = student.detach().masked_fill(~mask.unsqueeze(1), math.nan)
    torch.testing.assert_close(freekd_loss(hidden, teacher, mask=mask), before)


@pytest.mark.parametrize(
    ("size", "levels"), [((1, 9), 1), ((2, 3), 1), ((4, 99), 2), ((8, 8), 3), ((64, 64), 3)]
)
def test_levels_coarser_than_a_map_are_left_out(size, levels):
    assert levels_within(torch.ones(1, *size, dtype=torch.bool)) == levels
    found = detail_terms(*torch.randn(2, 1, 1, *size), torch.ones(1, *size, dtype=torch.bool))
    assert len(found) == levels and all(term.value.isfinite() for term in found)


def peer(student, teacher, tokens):
    """Public code: masked details of both, their L1 distance by level, added."""
    total = 0.0
    for level in (1, 2, 3):
        own, target = (
            torch.stack([details_of(image, level) for image in maps]) for maps in (student, teacher)
        )
        masks = torch.einsum("tc,bchw->bthw", tokens[level - 1], target.sum(2)).sigmoid()
        masks = masks[:, :, None, None]
        total += F.l1_loss(own.unsqueeze(1) * masks, target.unsqueeze(1) * masks)
    return total


def test_converted_weight_acts_as_the_peers(maps):
    student, teacher, tokens, _ = maps
    student, teacher = student.detach()[..., :16, :8], teacher.detach()[..., :16, :8]
    assert FreeKD.conversions.keys() == {"FreeKD"}
    weight = FreeKD.conversions["FreeKD"].at()
    ours = weight * freekd_loss(student, teacher, tokens=list(tokens))
    torch.testing.assert_close(ours, peer(student, teacher, tokens))


# -- the phase in which tokens learn ---------------------------------------------------------------


def task_loss(outputs, batch):
    value = F.cross_entropy(outputs.logits, Context(batch).labels_at(*outputs.logits.shape[2:]))
    return {"cross_entropy": Term(value, torch.tensor(1.0, dtype=torch.float64))}


def built(**keys):
    method = FreeKD(FreeKD.Config(taps=["stage5"], **keys))
    method.build(BuildContext({"stage5": TapInfo(6, 8)}, {"stage5": TapInfo(6, 8)}, 4))
    return method


def scene():
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (2, 8, 8), generator=draw)
    mixture = torch.randn(6, 4, generator=draw)
    features = torch.einsum("ck,bhwk->bchw", mixture, F.one_hot(labels, 4).float())
    whole = torch.ones(2, 8, 8, dtype=torch.bool)
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), labels, whole, torch.arange(2))
    outputs = Outputs(torch.zeros(2, 4, 8, 8), {"stage5": features})
    return outputs, batch, Context(batch, task_loss=task_loss)


def test_tokens_learn_the_task_and_to_differ():
    torch.manual_seed(0)
    method, (outputs, batch, context) = built(), scene()
    optimizer = method.inner_optimizer(method.inner_parameters())
    history = []
    for _ in range(150):
        terms = method.inner_loss(outputs, outputs, batch, context)
        history.append({name: term.value.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(term.value for term in terms.values()).backward()
        optimizer.step()
    first, last = history[0], history[-1]
    overlaps = [f"stage5_overlap{level}" for level in (1, 2, 3)]
    assert first.keys() == {"stage5_cross_entropy", *overlaps}
    assert last["stage5_cross_entropy"] < 0.5 * first["stage5_cross_entropy"]
    assert all(last[name] < first[name] for name in overlaps)


def test_equal_masks_of_one_leave_the_features_to_the_classifier():
    """With masks of 1/2 and two tokens the details are multiplied by 1: the inverse is exact."""
    method, (outputs, batch, context) = built(scale="none"), scene()
    with torch.no_grad():
        method.masks[0].tokens.zero_()
    terms = method.inner_loss(outputs, outputs, batch, context)
    logits = method.classifiers[0](outputs.tap("stage5"))
    expected = task_loss(Outputs(logits), batch)["cross_entropy"].value
    torch.testing.assert_close(terms["stage5_cross_entropy"].value, expected)


@pytest.mark.parametrize(("given", "total", "expected"), [(None, 1000, 100), (7, 50, 7), (0, 9, 0)])
def test_length_of_the_phase(given, total, expected):
    assert built(token_steps=given).preparation_steps(total) == expected
