import math

import pytest
import torch
from torch import nn

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.cankd import CanKD, CrossAttention, cankd_loss, instance_norm


def places_of(mask):
    return [tuple(place) for place in mask.nonzero().tolist()]


def standardised(maps, mask):
    """IN of one image (C, h, w), element by element."""
    out, places = torch.zeros_like(maps), places_of(mask)
    for c in range(len(maps)):
        values = [maps[c, y, x].item() for y, x in places]
        mean = sum(values) / len(values)
        scale = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        for y, x in places:
            out[c, y, x] = (maps[c, y, x] - mean) / scale
    return out


def pooled(maps, mask):
    """The maxima over the valid positions of each 2x2 cell that has one, as vectors."""
    cells = {}
    for y, x in places_of(mask):
        cells.setdefault((y // 2, x // 2), []).append(maps[:, y, x])
    return [torch.stack(cell).amax(0) for cell in cells.values()]


def attended(student, teacher, mask, block):
    """z of one image by the n×n form: each position beside each of the teacher's."""
    query, key, value = (
        torch.einsum("oc,chw->ohw", layer.weight[:, :, 0, 0], maps)
        for layer, maps in ((block.query, student), (block.key, teacher), (block.value, teacher))
    )
    keys = pooled(key + block.key.bias[:, None, None], mask)
    values = pooled(value + block.value.bias[:, None, None], mask)
    found = torch.zeros_like(query)
    for y, x in places_of(mask):
        for k, v in zip(keys, values, strict=True):
            found[:, y, x] += (query[:, y, x] @ k) / len(keys) * v
    projected = torch.einsum("oc,chw->ohw", block.project.weight[:, :, 0, 0], found)
    return student + block.gain[:, None, None] * standardised(projected, mask)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 3, 4, 5, 7, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 5, 7, generator=draw) > 0.4
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


@pytest.fixture
def block():
    torch.manual_seed(1)
    module = CrossAttention(4).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return module


@torch.no_grad()
def test_equals_the_equation_with_all_pairs_of_positions(maps, block):
    student, teacher, mask = maps
    squares = []
    for b in (0, 2):
        z = attended(student[b], teacher[b], mask[b], block)
        pair = standardised(z, mask[b]), standardised(teacher[b], mask[b])
        squares += [(pair[0] - pair[1])[:, y, x].square().mean() for y, x in places_of(mask[b])]
    expected = sum(squares).item() / len(squares) / 2
    found = cankd_loss(student, teacher, mask=mask, attend=block)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_the_block_equals_the_form_with_all_pairs(maps, block):
    student, teacher, mask = maps
    found = block(student, teacher, mask)
    for b in (0, 2):
        expected = attended(student[b], teacher[b], mask[b], block)
        shown = mask[b].expand_as(expected)
        torch.testing.assert_close(found[b][shown], expected[shown], rtol=1e-12, atol=1e-12)


def test_a_new_block_is_the_identity(maps):
    student, teacher, mask = maps
    assert torch.equal(CrossAttention(4).double()(student, teacher, mask), student)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps, block):
    student, teacher, mask = maps
    options = {"mask": mask, "attend": block}
    assert torch.autograd.gradcheck(lambda s: cankd_loss(s, teacher, **options), student)
    cankd_loss(student, teacher, **options).backward()
    assert teacher.grad is None and not student.grad[1].any()


def test_invalid_positions_may_hold_anything(maps, block):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    spoiled = teacher.masked_fill(hidden, float("inf"))
    value = cankd_loss(broken, spoiled, mask=mask, attend=block)
    value.backward()
    torch.testing.assert_close(value, cankd_loss(student, teacher, mask=mask, attend=block))
    assert broken.grad.isfinite().all()


def test_padding_is_no_key_and_does_not_count_in_their_number(maps, block):
    student, teacher, mask = maps
    larger = [nn.functional.pad(x, (0, 5, 0, 3), value=8.0) for x in (student, teacher)]
    value = cankd_loss(*larger, mask=nn.functional.pad(mask, (0, 5, 0, 3)), attend=block)
    torch.testing.assert_close(value, cankd_loss(student, teacher, mask=mask, attend=block))


def test_layers_alone_cannot_draw_the_teacher(maps, block):
    """The values are the teacher's; without a student that knows positions they are no help."""
    _, teacher, mask = maps
    blank = torch.randn(3, 4, 1, 1, dtype=torch.float64).expand(3, 4, 5, 7)
    with torch.no_grad():
        block.gain.copy_(torch.full((4,), 100.0))
    value = cankd_loss(blank, teacher, mask=mask, attend=block)
    most = masked_square(instance_norm(teacher, mask), mask) / 2
    assert value.item() == pytest.approx(most, rel=1e-9) and most == pytest.approx(0.5, rel=1e-3)


def masked_square(maps, mask):
    return maps.square().mean(dim=1)[mask].mean().item()


def test_the_students_scale_and_offset_do_not_matter_without_the_block(maps):
    student, teacher, mask = maps
    value = cankd_loss(student, teacher, mask=mask)
    other = student * torch.tensor([1.0, 2.0, 3.0, 0.5]).view(-1, 1, 1) + 4
    torch.testing.assert_close(cankd_loss(other, teacher, mask=mask), value, rtol=1e-4, atol=0)


@torch.no_grad()
def test_the_public_loss_is_this_one(maps):
    student, teacher, _ = maps
    normed = [nn.functional.instance_norm(x) for x in (student, teacher)]
    theirs = nn.functional.mse_loss(*normed) / 2
    torch.testing.assert_close(cankd_loss(student, teacher), theirs)
    assert CanKD.conversions["CanKD"].at() == CanKD(CanKD.Config(weight="paper")).weight == 10


@pytest.mark.parametrize(("width", "channels", "found"), [(0, 64, 32), (0, 1, 1), (8, 64, 8)])
def test_attention_is_as_wide_as_asked(width, channels, found):
    method = CanKD(CanKD.Config(width=width))
    with torch.device("meta"):
        method.build(BuildContext({"head": TapInfo(8, 4)}, {"head": TapInfo(channels, 4)}, 5))
    assert method.attention.query.weight.shape == (found, channels, 1, 1)
    assert method.attention.project.weight.shape == (channels, found, 1, 1)
