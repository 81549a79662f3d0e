import math

import pytest
import torch

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.fgd import FGD, attentions, fgd_loss
from segkd.structures import Batch, Outputs

VOID = 255
NAMES = ("foreground", "background", "spatial", "channel", "context")


def softmax(values, temperature=0.5):
    """With a mean of 1."""
    powers = [math.exp(value / temperature) for value in values]
    return [len(values) * power / sum(powers) for power in powers]


def maps_of(features, places):
    """S by place and C by channel of one image, element by element."""
    channels = range(features.shape[0])
    sizes = {place: [abs(features[c][place].item()) for c in channels] for place in places}
    spatial = softmax([sum(sizes[place]) / len(channels) for place in places])
    channel = softmax([sum(sizes[place][c] for place in places) / len(places) for c in channels])
    return dict(zip(places, spatial, strict=True)), channel


def reference(student, teacher, foreground, mask, regions=None):
    """All five terms of the equation."""
    sides = {"foreground": {}, "background": {}}
    spatial, channel, squares = [], [], []
    for b in range(len(student)):
        places = [tuple(place) for place in mask[b].nonzero().tolist()]
        if not places:
            continue
        own, target = maps_of(student[b], places), maps_of(teacher[b], places)
        spatial.append(sum(abs(own[0][p] - target[0][p]) for p in places) / len(places))
        pairs = list(zip(own[1], target[1], strict=True))
        channel.append(sum(abs(s - t) for s, t in pairs) / len(pairs))
        for p in places:
            gaps = [(student[b][c][p].item() - teacher[b][c][p].item()) ** 2 for c in range(3)]
            squares.append(sum(gaps) / 3)
            focal = sum(gap * c for gap, c in zip(gaps, target[1], strict=True)) / 3
            side = sides["foreground" if foreground[b][p] else "background"]
            key = (b, p) if regions is None else (b, int(regions[b][p]))
            side.setdefault(key, []).append(focal * target[0][p])
    found = {}
    for name, groups in sides.items():
        means = [sum(values) / len(values) for values in groups.values()]
        found[name] = sum(means) / max(1, len(means))
    lists = {"spatial": spatial, "channel": channel, "context": squares}
    return found | {name: sum(values) / max(1, len(values)) for name, values in lists.items()}


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 3, 2, 4, generator=draw, dtype=torch.float64)
    foreground, mask = torch.rand(2, 3, 2, 4, generator=draw) > torch.tensor(0.3)
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), foreground, mask


@pytest.fixture
def regions():
    return torch.randint(3, (3, 2, 4), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_region", [False, True])
def test_equals_the_equation(maps, regions, by_region, name):
    student, teacher, foreground, mask = maps
    options = {"regions": regions} if by_region else {}
    expected = reference(student, teacher, foreground, mask, **options)[name]
    options |= {"foreground": foreground, "mask": mask, "weights": {name: 2.0}}
    assert fgd_loss(student, teacher, **options).item() == pytest.approx(2 * expected, rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps, regions):
    student, teacher, foreground, mask = maps
    options = {"foreground": foreground, "mask": mask, "regions": regions}
    assert torch.autograd.gradcheck(lambda a: fgd_loss(a, teacher, **options), student)
    fgd_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_invalid_positions_may_hold_anything(maps, regions):
    student, teacher, foreground, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    options = {"foreground": foreground, "mask": mask, "regions": regions}
    value = fgd_loss(broken, teacher.masked_fill(hidden, float("inf")), **options)
    value.backward()
    torch.testing.assert_close(value, fgd_loss(student, teacher, **options))
    assert broken.grad.isfinite().all()


def test_attentions_have_a_mean_of_one_over_what_is_valid(maps):
    student, _, _, mask = maps
    spatial, channel = attentions(student, mask, 0.5)
    for b in (0, 2):
        assert spatial[b][mask[b]].mean().item() == pytest.approx(1)
        assert not spatial[b][~mask[b]].any()
        assert channel[b].mean().item() == pytest.approx(1)


def test_the_published_sums_convert(maps):
    """Public code: sums over channels and positions, one box on each image, over the batch."""
    student, teacher, foreground, _ = maps
    mask = torch.ones_like(foreground)
    size = {"C_t": 3, "h": 2, "w": 4}
    total = 0.0
    for b in range(3):
        places = [tuple(place) for place in mask[b].nonzero().tolist()]
        (own_s, own_c), (s, c) = maps_of(student[b], places), maps_of(teacher[b], places)
        total += 1e-3 * sum(abs(own_s[p] - s[p]) for p in places) / 3
        total += 1e-3 * sum(abs(x - y) for x, y in zip(own_c, c, strict=True)) / 3
        total += 5e-6 * (student[b] - teacher[b]).square().sum().item() / 3
    names = {"spatial": "FGD spatial", "channel": "FGD channel", "context": "FGD global"}
    weights = {name: FGD.conversions[peer].at(**size) for name, peer in names.items()}
    found = fgd_loss(student, teacher, foreground=foreground, weights=weights)
    assert found.item() == pytest.approx(total, rel=1e-9)


def built(**options):
    method = FGD(FGD.Config(**options))
    method.build(BuildContext({"head": TapInfo(4, 4)}, {"head": TapInfo(3, 4)}, 3))
    return method


def test_contexts_start_as_the_identity_and_learn_on_both_sides():
    draw = torch.Generator().manual_seed(5)
    cells = torch.tensor([[[0, 0], [0, 1]], [[2, 2], [1, 0]]])
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    batch = Batch(torch.zeros(2, 3, 8, 8), labels, torch.ones(2, 8, 8) > 0, torch.arange(2))
    sides = [
        Outputs(torch.zeros(2, 3, 2, 2), {"head": torch.randn(2, channels, 2, 2, generator=draw)})
        for channels in (4, 3)
    ]
    method = built()
    terms = method.loss(*sides, batch, Context(batch))
    assert set(terms) == set(method.default_weights)
    plain = (method.regressor(sides[0].tap("head")) - sides[1].tap("head")).square().mean()
    plain = plain / sides[1].tap("head").square().mean()  # the regressor is linear
    torch.testing.assert_close(terms["context"].value, plain)
    terms["context"].value.backward()
    assert method.student_context.transform[-1].weight.grad.any()
    assert method.teacher_context.transform[-1].weight.grad.any()
    regions = terms["foreground"].count + terms["background"].count
    assert terms["foreground"].count == 3 and regions == 5  # classes 1; 0 and 1 are small


def test_an_unknown_class_is_refused():
    with pytest.raises(ConfigError, match="ids 0 to 2"):
        built(foreground=[1, 7])
