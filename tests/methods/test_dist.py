import math

import pytest
import torch

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo, TapNames
from segkd.methods.dist import DIST, dist_loss
from segkd.methods.shared.feature_correlation import feature_correlation_loss
from segkd.structures import Batch, Outputs
from segkd.testing import check_method


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    a, b = [x - mean_a for x in a], [x - mean_b for x in b]
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def reference(student, teacher, mask, temperature):
    """Inter and intra of the equation: rows are the valid pixels of all images."""
    rows = []
    for logits in (student, teacher):
        pixels = logits.movedim(1, -1)[mask].tolist()
        powers = [[math.exp(z / temperature) for z in pixel] for pixel in pixels]
        rows.append([[power / sum(pixel) for power in pixel] for pixel in powers])
    columns = [list(zip(*side, strict=True)) for side in rows]
    terms = []
    for sides in (rows, columns):
        distances = [1 - pearson(a, b) for a, b in zip(*sides, strict=True)]
        terms.append(temperature**2 * sum(distances) / len(distances))
    return terms


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher, mask


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_equals_the_equation(maps, temperature, weights):
    student, teacher, mask = maps
    value = dist_loss(
        student,
        teacher,
        mask=mask,
        temperature=temperature,
        inter_weight=weights[0],
        intra_weight=weights[1],
        eps=1e-16,
    )
    inter, intra = reference(student.detach(), teacher, mask, temperature)
    assert value.item() == pytest.approx(weights[0] * inter + weights[1] * intra, rel=1e-10)


def test_default_eps_is_hardly_felt(maps):
    student, teacher, mask = maps
    torch.testing.assert_close(
        dist_loss(student, teacher, mask=mask),
        dist_loss(student, teacher, mask=mask, eps=0),
        rtol=1e-6,
        atol=0,
    )


def test_gradient_is_right(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda z: dist_loss(z, teacher, mask=mask), student)


def test_without_a_mask_all_pixels_count(maps):
    student, teacher, mask = maps
    assert dist_loss(student, teacher) == dist_loss(student, teacher, mask=torch.ones_like(mask))


def test_invalid_pixels_are_no_part_of_a_class(maps):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    torch.testing.assert_close(
        dist_loss(student + 5 * hidden * teacher, teacher + 9 * hidden * student, mask=mask),
        dist_loss(student, teacher, mask=mask),
    )


def test_log_probabilities_teach_the_same_at_any_temperature(maps):
    student, teacher, mask = maps
    for temperature in (1.0, 4.0):
        torch.testing.assert_close(
            dist_loss(student, teacher.log_softmax(1), mask=mask, temperature=temperature),
            dist_loss(student, teacher, mask=mask, temperature=temperature),
        )


def test_teacher_gets_no_gradient(maps):
    student, teacher, mask = maps
    dist_loss(student, teacher.requires_grad_(), mask=mask).backward()
    assert teacher.grad is None and student.grad.any()


def test_two_classes_leave_inter_without_a_gradient(maps):
    student, teacher, mask = maps
    student = student[:, :2].detach().requires_grad_()
    for weights, alive in ((1.0, 0.0), False), ((0.0, 1.0), True):
        value = dist_loss(
            student,
            teacher[:, :2],
            mask=mask,
            inter_weight=weights[0],
            intra_weight=weights[1],
            eps=1e-16,
        )
        (gradient,) = torch.autograd.grad(value, student)
        assert (gradient.abs().max() > 1e-3) == alive
        assert alive or gradient.abs().max() < 1e-9


def test_two_classes_are_refused_until_inter_is_off():
    taps = {"logits": TapInfo(2, 8)}
    with pytest.raises(ConfigError, match=r"2 classes.*weights\.inter=0"):
        DIST().build(BuildContext(taps, taps, 2))
    DIST().build(BuildContext(taps, taps, 3))
    method = DIST(DIST.Config(weights={"inter": 0}))
    method.build(BuildContext(taps, taps, 2))
    batch = Batch(
        torch.zeros(1, 3, 4, 4), None, torch.ones(1, 4, 4, dtype=torch.bool), torch.arange(1)
    )
    outputs = Outputs(torch.randn(1, 2, 4, 4)), Outputs(torch.randn(1, 2, 4, 4))
    assert method.loss(*outputs, batch, Context(batch)).keys() == {"intra"}


def test_half_types_are_computed_in_float32(maps):
    """float16 cannot hold an eps of 1e-10: it would be 0, and flat maps NaN."""
    _, teacher, mask = maps
    student = torch.zeros_like(teacher, dtype=torch.float16, requires_grad=True)
    value = dist_loss(student, teacher.half(), mask=mask)
    value.backward()
    assert value.dtype is torch.float32 and value.item() == pytest.approx(2)
    assert student.grad.isfinite().all()


def test_all_sum_makes_both_terms_those_of_all_images(maps):
    """A process that holds the first image, and one that holds the rest: their sums are added."""
    student, teacher, mask = maps
    parts = slice(0, 1), slice(1, 3)

    def run(part, answers):
        seen = []

        def all_sum(x):
            seen.append(x.detach())
            return answers[len(seen) - 1] if len(seen) <= len(answers) else x

        value = dist_loss(student[part], teacher[part], mask=mask[part], all_sum=all_sum)
        return value, seen

    answers = []
    for call in range(3):
        sent = [run(part, answers)[1][call] for part in parts]
        answers.append(sum(sent))
    whole = dist_loss(student, teacher, mask=mask)
    for part in parts:
        torch.testing.assert_close(run(part, answers)[0], whole.detach())


def test_nearest_upsampling_changes_nothing(maps):
    student, teacher, mask = maps
    larger = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (student, teacher, mask)]
    torch.testing.assert_close(
        dist_loss(larger[0], larger[1], mask=larger[2]), dist_loss(student, teacher, mask=mask)
    )


def correlate(a, b):
    """Along dim 1, eps on the product of norms."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


def peer(student, teacher):
    """Rows of pixels against rows, and columns against columns."""
    rows = [z.softmax(1).movedim(1, -1).flatten(0, 2) for z in (student, teacher)]
    inter = 1 - correlate(*rows).mean()
    return inter + 1 - correlate(*(x.T for x in rows)).mean()


PEERS = {"DIST_KD segmentation": 1, "mmrazor": 2}


def test_every_conversion_is_checked():
    assert PEERS.keys() == DIST.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(maps, name):
    student, teacher, _ = maps
    ours = DIST.conversions[name].at() * dist_loss(student, teacher)
    torch.testing.assert_close(PEERS[name] * peer(student, teacher), ours, rtol=1e-6, atol=0)


def test_port_on_maps_is_another_loss(maps):
    """With (B, K, h, w) and B = 2 the transposed rows have two entries: all correlate by ±1."""
    student, teacher, _ = maps
    columns = [z[:2].softmax(1).transpose(0, 1) for z in (student, teacher)]
    assert (correlate(*columns).abs() > 0.99).all()


def test_entry_weighs_its_terms_as_the_function_does(maps):
    student, teacher, mask = maps
    batch = Batch(torch.zeros(3, 3, 3, 5), None, mask, torch.arange(3))
    method = DIST(DIST.Config(temperature=3.0, eps=1e-4))
    terms = method.loss(Outputs(student), Outputs(teacher), batch, Context(batch))
    expected = dist_loss(student, teacher, mask=mask, temperature=3.0, eps=1e-4)
    torch.testing.assert_close(terms["inter"].value + terms["intra"].value, expected)
    assert terms["inter"].count == mask.sum() and terms["intra"].count is None


def test_classes_that_the_teacher_cannot_know_are_left_out(maps):
    student, teacher, mask = maps
    batch = Batch(torch.zeros(3, 3, 3, 5), None, mask, torch.arange(3))
    wide = [torch.cat([z, torch.full_like(z[:, :2], -50.0)], 1) for z in (student, teacher)]
    wide[0].retain_grad()
    unknown = tuple(range(student.shape[1], student.shape[1] + 2))
    found = DIST().loss(Outputs(wide[0]), Outputs(wide[1], unknown=unknown), batch, Context(batch))
    few = DIST().loss(Outputs(student), Outputs(teacher), batch, Context(batch))
    for name, term in few.items():
        torch.testing.assert_close(found[name].value, term.value)
    two = tuple(range(2, student.shape[1]))
    with pytest.raises(ConfigError, match=r"knows 2 of the classes.*weights\.inter=0"):
        DIST().loss(Outputs(student), Outputs(teacher, unknown=two), batch, Context(batch))


def test_an_entry_without_terms_is_refused():
    method = DIST(DIST.Config(weights={"inter": 0, "intra": 0}))
    with pytest.raises(ConfigError, match="all of its weights are 0"):
        method.build(BuildContext({}, {}, 5))


# -- DIST+: features -------------------------------------------------------------------------------


def features_reference(student, teacher, mask):
    """1 − ρ over channels, mean over positions; 1 − ρ over positions, mean over channels."""
    rows = [maps.movedim(1, -1)[mask].tolist() for maps in (student, teacher)]
    columns = [list(zip(*side, strict=True)) for side in rows]
    terms = []
    for sides in (rows, columns):
        distances = [1 - pearson(a, b) for a, b in zip(*sides, strict=True)]
        terms.append(sum(distances) / len(distances))
    return terms


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_features_equal_the_equation(maps, weights):
    student, teacher, mask = maps
    names = ("inter_weight", "intra_weight")
    keys = dict(zip(names, weights, strict=True)) | {"mask": mask, "eps": 1e-16}
    inter, intra = features_reference(student.detach(), teacher, mask)
    found = feature_correlation_loss(student, teacher, **keys)
    assert found.item() == pytest.approx(weights[0] * inter + weights[1] * intra, rel=1e-10)
    assert torch.autograd.gradcheck(lambda s: feature_correlation_loss(s, teacher, **keys), student)


def test_features_are_drawn_together_and_not_apart(maps):
    """The sign: ρ − 1 would be least for opposite features. Each term is seen on its own."""
    student, teacher, mask = maps
    for keys in ({"inter_weight": 0.0}, {"intra_weight": 0.0}):
        same, opposite = (
            feature_correlation_loss(sign * teacher, teacher, mask=mask, **keys) for sign in (1, -1)
        )
        assert same.item() == pytest.approx(0, abs=1e-5)
        assert opposite.item() == pytest.approx(2, abs=1e-5)
        value = feature_correlation_loss(student, teacher, mask=mask, **keys)
        (slope,) = torch.autograd.grad(value, student)
        closer = feature_correlation_loss(student - 0.1 * slope, teacher, mask=mask, **keys)
        assert 0 < closer < value


def test_the_entry_has_terms_of_features_as_the_functions_have(maps):
    student, teacher, mask = maps
    batch = Batch(torch.zeros(3, 3, 3, 5), None, mask, torch.arange(3))
    method = DIST(DIST.Config(features=True, weights={"feature_intra": 0.5}))
    method.bind_taps(TapNames(("stage1", "head")), TapNames(("stage1", "stage2")))
    assert method.needs.student == ("logits", "head")
    assert method.needs.teacher == ("logits", "stage2")
    infos = ({"logits": TapInfo(4, 8), name: TapInfo(4, 8)} for name in ("head", "stage2"))
    method.build(BuildContext(*infos, 4))
    assert not list(method.parameters())
    own = torch.randn_like(student), torch.randn_like(teacher)
    outputs = Outputs(student, {"head": own[0]}), Outputs(teacher, {"stage2": own[1]})
    terms = method.loss(*outputs, batch, Context(batch))
    assert terms.keys() == method.default_weights.keys() == set(method.terms)
    found = sum(terms[f"feature_{name}"].value for name in ("inter", "intra"))
    scale = own[1].square().mean(1)[mask].mean().sqrt()
    expected = feature_correlation_loss(own[0] / scale, own[1] / scale, mask=mask)
    torch.testing.assert_close(found, expected)
    assert terms["feature_inter"].count == mask.sum() and terms["feature_intra"].count is None


def test_other_channels_are_projected_and_no_tap_is_passed_over():
    method = DIST(DIST.Config(features=True, tap="stage4", weights={"feature_inter": 0}))
    infos = ({"logits": TapInfo(4, 8), "stage4": TapInfo(c, 8)} for c in (3, 6))
    method.build(BuildContext(*infos, 4))
    assert [tuple(p.shape) for p in method.parameters()] == [(6, 3, 1, 1)]
    assert "feature_inter" not in method.terms and "feature_intra" in method.terms
    with pytest.raises(ValueError, match="got tap 'head' but no features"):
        DIST.Config(tap="head")


def test_the_promises_hold_with_features():
    check_method(DIST, {"features": True})
