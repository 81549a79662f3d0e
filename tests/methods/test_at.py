import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.at import AT, at_gradient_loss, at_loss
from segkd.methods.base import Context
from segkd.structures import Batch, Outputs, Term


def attention(features, valid, over_channels, power):
    """One image's normalised map as a list, from loops over positions and channels."""
    values = []
    for y, x in valid.nonzero().tolist():
        sizes = [abs(a) ** power for a in features[:, y, x].tolist()]
        values.append(sum(sizes) if over_channels == "sum" else max(sizes))
    norm = math.sqrt(sum(value**2 for value in values))
    return [value / norm for value in values]


def reference(student, teacher, mask, over_channels="sum", power=2.0):
    per_image = []
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        if valid.any():
            q_s, q_t = (attention(a, valid, over_channels, power) for a in (s_map, t_map))
            per_image.append(sum((s - t) ** 2 for s, t in zip(q_s, q_t, strict=True)))
    return sum(per_image) / len(per_image)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(3, 4, 3, 5, generator=draw, dtype=torch.float64)
    teacher = 2 * torch.randn(3, 6, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


FORMS = [("sum", 1.0), ("sum", 2.0), ("sum", 3.0), ("max", 2.0), ("max", 3.0)]


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_equals_the_equation(maps, over_channels, power):
    student, teacher, mask = maps
    value = at_loss(student, teacher, mask=mask, over_channels=over_channels, power=power)
    expected = reference(student.detach(), teacher.detach(), mask, over_channels, power)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_gradient_is_right_and_none_goes_to_the_teacher(maps, over_channels, power):
    student, teacher, mask = maps
    options = {"mask": mask, "over_channels": over_channels, "power": power}
    assert torch.autograd.gradcheck(lambda a: at_loss(a, teacher, **options), student)
    at_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_odd_powers_see_the_size_and_not_the_sign(maps):
    student, teacher, mask = maps
    flipped = at_loss(-student, teacher, mask=mask, power=3.0)
    assert flipped == at_loss(student, teacher, mask=mask, power=3.0)


def test_scale_of_the_features_is_no_matter(maps):
    student, teacher, mask = maps
    expected = at_loss(student, teacher, mask=mask)
    for scale in (1e-3, 1e4):
        torch.testing.assert_close(at_loss(scale * student, teacher, mask=mask), expected)


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_maps_of_zeros_have_a_finite_gradient(maps, over_channels, power):
    _, teacher, _ = maps
    student = torch.zeros(3, 4, 3, 5, requires_grad=True)
    value = at_loss(student, teacher.float(), over_channels=over_channels, power=power)
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_single_zeros_have_a_finite_gradient(maps, power):
    student, teacher, mask = maps
    dead = student.detach().clamp(min=0).requires_grad_()
    at_loss(dead, teacher, mask=mask, power=power).backward()
    assert dead.grad.isfinite().all()


def test_no_map_of_the_features_size_is_kept(maps):
    student, teacher, mask = maps
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        at_loss(student, teacher, mask=mask)
    large = [x for x in kept if x.numel() >= student.numel()]
    assert all(x.data_ptr() == student.data_ptr() for x in large)


def test_large_features_do_not_overflow(maps):
    student, teacher, mask = maps
    expected = at_loss(student, teacher, mask=mask, power=4.0)
    value = at_loss(1e4 * student.float(), teacher.float(), mask=mask, power=4.0)
    torch.testing.assert_close(value, expected.float())


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert at_loss(student, teacher) == at_loss(student, teacher, mask=torch.ones_like(mask))


def test_maps_are_made_before_they_are_resized():
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 2, 4)
    ramp = torch.arange(8.0).view(1, 1, 2, 4)
    value = at_loss(checkers.repeat_interleave(2, 2)[:, :, :4], ramp)
    flat = torch.ones(1, 1, 2, 4)
    torch.testing.assert_close(value, at_loss(flat, ramp))


def peer(student, teacher):
    """Mean of squares over channels, normalised over positions, mean over everything."""
    q_s, q_t = (F.normalize(a.pow(2).mean(1).flatten(1)) for a in (student, teacher))
    return (q_s - q_t).pow(2).mean()


PEERS = {"attention-transfer": peer, "RepDistiller, mdistiller": peer, "CIRKD": peer}


def test_every_conversion_is_checked():
    assert PEERS.keys() == AT.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(maps, name):
    student, teacher, _ = maps
    theirs = AT.conversions[name].weight * PEERS[name](student, teacher)
    weight = AT.conversions[name].at(h=3, w=5)
    torch.testing.assert_close(theirs, weight * at_loss(student, teacher))


def test_taps_are_paired_in_order():
    config = AT.Config(taps=["stage2", "head"], teacher_taps=["stage3", "stage5"])
    needs = AT(config).needs
    assert needs.student == ("stage2", "head") and needs.teacher == ("stage3", "stage5")


@pytest.mark.parametrize(
    ("taps", "teacher_taps", "text"),
    [
        ([], [], "at least one"),
        (["head", "head"], [], "no duplicates"),
        (["head"], ["stage4", "head"], "1 taps but 2 teacher_taps"),
    ],
)
def test_taps_that_cannot_be_paired_are_refused(taps, teacher_taps, text):
    with pytest.raises(ConfigError, match=text):
        AT(AT.Config(taps=taps, teacher_taps=teacher_taps))


def test_a_power_below_one_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        AT.Config(power=0.5)


# -- form: gradient ----------------------------------------------------------------------------


class Smooth(nn.Module):
    """Two convolutions with a bend in between, so that its gradient has a gradient."""

    def __init__(self, classes=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, classes, 1)
        self.double()

    def forward(self, images, tracked=True):
        images = images.double().requires_grad_() if tracked else images
        features = self.first(images / 50).tanh()
        return Outputs(self.last(features), {"image": images, "stage1": features})


def batch_of(images=2, classes=3):
    draw = torch.Generator().manual_seed(5)
    labels = torch.randint(classes, (images, 4, 6), generator=draw)
    labels[0, :2, :2] = 255
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[-1, :, 4:] = False
    pixels = torch.randint(256, (images, 3, 4, 6), generator=draw, dtype=torch.uint8)
    return Batch(pixels, labels, inside, torch.arange(images))


def task(outputs, batch):
    """Two losses that mean nothing but differ: each pixel's share depends on the whole batch."""
    target = batch.labels.masked_fill(~batch.not_padding, 255)
    logits = F.interpolate(outputs.logits, target.shape[1:], mode="nearest")
    value = F.cross_entropy(logits, target, ignore_index=255)
    spread = outputs.logits.square().mean()
    return {"ce": Term(value, None), "spread": Term(0.01 * spread, None)}


def image_loss(network, batch, number, image):
    """The task losses of one image, at another image: a number."""
    part = batch.part(slice(number, number + 1))
    terms = task(network(image[None], tracked=False), part)
    return sum(term.value.item() for term in terms.values())


def slopes_by_differences(network, batch, number):
    image = batch.images[number].double()
    found = torch.zeros_like(image)
    for place in torch.cartesian_prod(*[torch.arange(n) for n in image.shape]).tolist():
        sides = []
        for step in (1e-3, -1e-3):
            moved = image.clone()
            moved[tuple(place)] += step
            sides.append(image_loss(network, batch, number, moved))
        found[tuple(place)] = (sides[0] - sides[1]) / 2e-3
    return found


def gradient_terms(student, teacher, batch, **keys):
    method = AT(AT.Config(form="gradient", **keys))
    return method.loss(
        student(batch.images), teacher(batch.images), batch, Context(batch, task_loss=task)
    )


def test_gradients_equal_the_equation():
    """Gradients by differences of each image's own loss, scaled to norm 1 over valid pixels."""
    student, teacher, batch = Smooth(seed=1), Smooth(seed=2), batch_of()
    per_image = []
    for number, valid in enumerate(batch.valid):
        units = []
        for network in (student, teacher):
            slopes = slopes_by_differences(network, batch, number)
            values = [slopes[c, y, x].item() for y, x in valid.nonzero().tolist() for c in range(3)]
            length = math.sqrt(sum(value**2 for value in values))
            units.append([value / length for value in values])
        per_image.append(sum((s - t) ** 2 for s, t in zip(*units, strict=True)))
    term = gradient_terms(student, teacher, batch)["image"]
    assert term.value.item() == pytest.approx(sum(per_image) / len(per_image), rel=1e-5)
    assert term.count == 2


def test_the_student_learns_from_second_derivatives_and_the_teacher_does_not():
    student, teacher, batch = Smooth(seed=1), Smooth(seed=2), batch_of()
    gradient_terms(student, teacher, batch)["image"].value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    weight = student.first.weight
    for place in [(0, 0, 0, 0), (2, 1, 1, 2), (3, 2, 2, 1)]:
        sides = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight[place] += step
            sides.append(gradient_terms(student, teacher, batch)["image"].value.item())
            with torch.no_grad():
                weight[place] -= step
        assert weight.grad[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-4)


def test_the_loss_of_an_image_is_its_own():
    """A mean over the pixels of the batch would weigh images by their labelled pixels."""
    student, teacher, batch = Smooth(seed=1), Smooth(seed=2), batch_of(3)
    alone = [
        gradient_terms(student, teacher, batch.part(slice(n, n + 1)))["image"].value
        for n in range(3)
    ]
    whole = gradient_terms(student, teacher, batch)["image"].value
    torch.testing.assert_close(whole, sum(alone) / 3)


def test_equal_networks_have_equal_gradients():
    batch = batch_of()
    assert gradient_terms(Smooth(seed=1), Smooth(seed=1), batch)["image"].value == 0
    unlike = gradient_terms(Smooth(seed=1), Smooth(seed=2), batch)["image"].value
    assert 0 < unlike < 4


def test_at_other_taps_the_maps_of_gradients_are_compared():
    student, teacher, batch = Smooth(seed=1), Smooth(seed=2), batch_of()
    options = {"over_channels": "max", "power": 1.0}
    term = gradient_terms(student, teacher, batch, taps=["stage1"], **options)["stage1"]
    slopes = []
    for network in (student, teacher):
        outputs = network(batch.images)
        losses = [
            sum(
                t.value
                for t in task(
                    Outputs(outputs.logits[n][None]), batch.part(slice(n, n + 1))
                ).values()
            )
            for n in range(2)
        ]
        slopes += torch.autograd.grad(sum(losses), outputs.features["stage1"])
    mask = Context(batch).mask_at(2, 3)
    torch.testing.assert_close(term.value, at_loss(*slopes, mask=mask, **options))


def test_the_pure_function_has_the_right_gradient(maps):
    student, _, mask = maps
    teacher = student.detach().flip(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: at_gradient_loss(a, teacher, mask=mask), student)
    at_gradient_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match="student has shape"):
        at_gradient_loss(student, teacher[:, :2])


def test_signs_count_and_sizes_do_not(maps):
    student, _, mask = maps
    for factor in (1e-12, 1e6):
        assert at_gradient_loss(student, factor * student, mask=mask) < 1e-6
    assert at_gradient_loss(student, -student, mask=mask).item() == pytest.approx(4)


def test_a_tap_that_the_logits_do_not_depend_on_is_refused():
    student, teacher, batch = Smooth(seed=1), Smooth(seed=2), batch_of()

    def overwritten(images):
        outputs = student(images)
        outputs.features["stage1"] = outputs.features["stage1"].clone()
        return outputs

    with pytest.raises(ConfigError, match="student's logits do not depend on its tap 'stage1'"):
        gradient_terms(overwritten, teacher, batch, taps=["stage1"])


def test_a_run_without_task_losses_is_refused():
    student, batch = Smooth(seed=1), batch_of()
    method, outputs = AT(AT.Config(form="gradient")), student(batch.images)
    context = Context(batch, task_loss=lambda outputs, batch: {})
    with pytest.raises(ConfigError, match=r"Add task\.losses\.cross_entropy"):
        method.loss(outputs, outputs, batch, context)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"taps": ["image"]}, "Set form: gradient"),
        ({"form": "gradient", "taps": ["image"], "teacher_taps": ["stage1"]}, "Pair it with"),
        ({"form": "gradient", "teacher_taps": ["stage1"]}, "Pair it with"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        AT(AT.Config(**keys))


def test_default_weights_of_gradients():
    assert AT.Config().weight == 0.3
    assert AT.Config(form="gradient").weight == AT.Config(form="gradient", taps=["image"]).weight
    assert AT.Config(form="gradient").weight > 10 * AT.Config(form="gradient", taps=["head"]).weight
    assert AT.Config(form="gradient", weight=0.7).weight == 0.7


def test_what_gradients_need():
    needs = AT(AT.Config(form="gradient")).needs
    assert needs.student == needs.teacher == ("image", "logits")
    assert needs.labels and needs.teacher_gradient
    assert not AT().needs.labels and not AT().needs.teacher_gradient
