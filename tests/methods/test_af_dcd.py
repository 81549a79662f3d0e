import math

import pytest
import torch
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.af_dcd import AfDCD, af_dcd_loss
from segkd.methods.base import BuildContext, TapInfo
from segkd.ops.blocks import BlockSize
from segkd.ops.omni_contrast import omni_contrast

SMALL = {"groups": 2, "pool": 2, "patch": 2, "temperature": 0.5}


def cells_of(maps, mask, pool):
    """Maxima over the valid positions of the cells of one image, those beyond the border too."""
    channels = len(maps)
    found = {}
    for y, x in mask.nonzero().tolist():
        cell = found.setdefault((y // pool, x // pool), [-math.inf] * channels)
        for c in range(channels):
            cell[c] = max(cell[c], maps[c, y, x].item())
    return found


def reference(student, teacher, mask, groups, pool, patch, temperature):
    """The contrast term, vector by vector."""
    losses = []
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        mine, theirs = (cells_of(maps, valid, pool) for maps in (s_map, t_map))
        size = len(s_map) // groups
        vectors = [(place, g) for place in mine for g in range(groups)]

        def part(cells, vector, size=size):
            place, group = vector
            return cells[place][group * size : (group + 1) * size]

        def likeness(vector, other, mine=mine, theirs=theirs, part=part):
            pairs = zip(part(mine, vector), part(theirs, other), strict=True)
            return math.exp(-sum(abs(a - b) for a, b in pairs) / temperature)

        for vector in vectors:
            home = [length // patch for length in vector[0]]
            others = [
                likeness(vector, other)
                for other in vectors
                if other[1] != vector[1] and [n // patch for n in other[0]] == home
            ]
            own = likeness(vector, vector)
            losses.append(-math.log(own / (own + sum(others))))
    return sum(losses) / len(losses)


@pytest.fixture
def maps():
    """Sides that are no multiples of a patch; the last image has no valid position."""
    draw = torch.Generator().manual_seed(7)
    student, teacher = torch.randn(2, 3, 4, 5, 7, generator=draw, dtype=torch.float64)
    mask, keep = torch.rand(2, 3, 5, 7, generator=draw) > 0.4
    mask[2] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask, keep


@pytest.mark.parametrize("groups", [2, 4])
def test_contrast_equals_the_equation(maps, groups):
    student, teacher, mask, _ = maps
    keys = SMALL | {"groups": groups}
    value = af_dcd_loss(student, teacher, mask=mask, weights={"contrast": 1.0}, **keys)
    expected = reference(student.detach(), teacher.detach(), mask, **keys)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_feature_term_is_that_of_mgd(maps):
    student, teacher, mask, keep = maps
    keys = SMALL | {"mask": mask, "keep": keep, "generate": lambda x: 2 * x}
    value = af_dcd_loss(student, teacher, weights={"feature": 3.0}, **keys)
    shown = 2 * student * (mask & keep).unsqueeze(1)
    squares = (shown - teacher).square().movedim(1, -1)[mask]
    torch.testing.assert_close(value, 3 * squares.mean())


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask, keep = maps
    options = SMALL | {"mask": mask, "keep": keep, "weights": {"feature": 0.5, "contrast": 2.0}}
    generate = nn.Conv2d(4, 4, 3, padding=1).double()

    def loss(features):
        return af_dcd_loss(features, teacher, generate=generate, **options)

    assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert teacher.grad is None and not student.grad[2].any()


def test_invalid_positions_may_hold_anything(maps):
    student, teacher, mask, _ = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    value = af_dcd_loss(broken, teacher.masked_fill(hidden, float("inf")), mask=mask, **SMALL)
    value.backward()
    torch.testing.assert_close(value, af_dcd_loss(student, teacher, mask=mask, **SMALL))
    assert broken.grad.isfinite().all()


def test_positions_beyond_the_border_are_those_of_padding(maps):
    student, teacher, mask, _ = maps
    larger = [nn.functional.pad(x, (0, 5, 0, 7), value=9.0) for x in (student, teacher)]
    value = af_dcd_loss(*larger, mask=nn.functional.pad(mask, (0, 5, 0, 7)), **SMALL)
    torch.testing.assert_close(value, af_dcd_loss(student, teacher, mask=mask, **SMALL))


@pytest.mark.parametrize("temperature", [1.0, 0.01, 1e-5])
def test_shares_that_vanish_beside_the_largest(temperature):
    """Distances over T of 10 to a million: the sum and its gradient are those of a logsumexp."""
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)  # 3 patches
    keep = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    student.requires_grad_()
    found = omni_contrast(student, teacher, keep, groups=2, temperature=temperature)
    own, other = (x.reshape(3, 8, 3) for x in (student, teacher))  # vectors: position, then group
    logits = -(own.unsqueeze(2) - other.unsqueeze(1)).abs().sum(3) / temperature
    parity = torch.arange(8) % 2
    compared = (parity.unsqueeze(1) != parity) | torch.eye(8, dtype=torch.bool)
    kept = keep.repeat_interleave(2, dim=1)
    rows = logits.masked_fill(~(compared & kept.unsqueeze(1)), -torch.inf).logsumexp(2)
    expected = (rows - logits.diagonal(dim1=1, dim2=2))[kept].sum()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient)


def test_blocks_of_patches_add_up(maps, monkeypatch):
    student, teacher, mask, _ = maps
    whole = af_dcd_loss(student, teacher, mask=mask, **SMALL)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr("segkd.ops.omni_contrast._BLOCK", BlockSize(100, 100))  # a patch
    value = af_dcd_loss(student, teacher, mask=mask, **SMALL)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], gradient)


def peer(student, teacher):
    """Both sums of the public code: over channels and positions, over vectors by positions."""
    images, _, height, width = student.shape
    squares = (student - teacher).square().sum() / images
    valid = torch.ones(images, height, width) > 0
    mean = reference(student, teacher, valid, groups=16, pool=4, patch=4, temperature=0.07)
    vectors = images * (height // 4) * (width // 4) * 16
    return squares, mean * vectors / ((height // 4) * (width // 4) * images)


def test_published_weights_convert():
    draw = torch.Generator().manual_seed(2)
    student, teacher = 0.1 * torch.randn(2, 1, 32, 16, 16, generator=draw, dtype=torch.float64)
    squares, contrast = peer(student, teacher)
    feature = AfDCD.conversions["Af-DCD feature"].at(C_t=32, h=16, w=16)
    weights = {"feature": feature, "contrast": AfDCD.conversions["Af-DCD contrast"].at()}
    found = af_dcd_loss(student, teacher, weights=weights)
    assert found.item() == pytest.approx(2e-6 * squares.item() + 0.005 * contrast, rel=1e-9)


def test_the_paper_weight_is_that_of_its_size():
    method = AfDCD(AfDCD.Config(weight="paper"))
    published = AfDCD.conversions["Af-DCD feature"].at(C_t=2048, h=64, w=128)
    assert method.weight * method.default_weights["feature"] == pytest.approx(published)
    published = AfDCD.conversions["Af-DCD contrast"].at()
    assert method.weight * method.default_weights["contrast"] == pytest.approx(published)


def built(channels, **keys):
    method = AfDCD(AfDCD.Config(**keys))
    with torch.device("meta"):
        method.build(BuildContext({"head": TapInfo(8, 4)}, {"head": TapInfo(channels, 4)}, 5))
    return method


@pytest.mark.parametrize(("channels", "groups"), [(512, 16), (30, 15), (6, 6), (17 * 3, 3)])
def test_the_largest_number_of_groups_that_divides_is_taken(channels, groups):
    method = built(channels)
    assert method.groups == groups
    assert bool(method.notes(100, 4)) == (groups != 16)
    assert built(30, groups=10).groups == 10


@pytest.mark.parametrize(
    ("channels", "keys", "told"),
    [
        (30, {"groups": 16}, "groups is 16, .* 30 channels. Set groups to 2 or 3 or 5 or 6 or 10"),
        (19, {}, "no groups from 2 to 16 .* 19 channels. Set groups to 19, or set teacher_tap"),
        (1, {}, "1 channels. Set teacher_tap"),
    ],
)
def test_channels_that_no_groups_divide_are_refused(channels, keys, told):
    with pytest.raises(ConfigError, match=told):
        built(channels, **keys)


def test_a_function_with_the_wrong_groups_says_so(maps):
    with pytest.raises(ValueError, match="groups=3 for 4 channels"):
        af_dcd_loss(*maps[:2], groups=3)
