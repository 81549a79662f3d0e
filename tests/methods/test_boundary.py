import math

import pytest
import torch

from segkd.methods.base import Context
from segkd.methods.boundary import Boundary, boundary_loss
from segkd.methods.cwd import cwd_loss
from segkd.ops.bands import class_bands
from segkd.structures import Batch, Outputs
from segkd.testing import check_method

F64 = torch.float64


def reference_bands(labels, size, classes, width):
    """Dilation less erosion, pixel by pixel."""
    images, height, breadth = labels.shape
    found = torch.zeros(images, classes, *size, dtype=torch.bool)
    reach = width // 2
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (images, *size))).tolist():
        row, column = i * height // size[0], j * breadth // size[1]
        near = {
            labels[b, y, x].item()
            for y in range(max(0, row - reach), min(height, row + reach + 1))
            for x in range(max(0, column - reach), min(breadth, column + reach + 1))
        }
        near = {label for label in near if 0 <= label < classes}
        for label in near if len(near) > 1 else ():
            found[b, label, i, j] = True
    return found


def softmax(row, temperature):
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def divergence(teacher, student, temperature):
    p_t, p_s = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p_t, p_s, strict=True))


def reference(student, teacher, bands, mask, temperatures):
    edges, bodies = [], []
    for b in range(len(student)):
        for c in range(student.shape[1]):
            band, outside = bands[b, c] & mask[b], ~bands[b, c] & mask[b]
            columns = zip(student[b][:, band].T, teacher[b][:, band].T, strict=True)
            along = [divergence(t.tolist(), s.tolist(), temperatures[0]) for s, t in columns]
            if along:
                edges.append(sum(along) / len(along))
            if outside.any():
                rows = (x[b, c][outside].tolist() for x in (teacher, student))
                bodies.append(divergence(*rows, temperatures[1]))
    return sum(edges) / len(edges), sum(bodies) / len(bodies)


@pytest.fixture
def maps():
    """Logits at a quarter of the labels' size; void, and an image of one class."""
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 5, 7, generator=draw, dtype=F64)
    labels = torch.randint(4, (3, 3, 4), generator=draw)
    labels = labels.repeat_interleave(7, 1)[:, :20].repeat_interleave(7, 2)
    labels[0, 3:9, 8:15], labels[1, 10:], labels[2] = 255, -100, 1
    mask = torch.rand(3, 5, 7, generator=draw) > 0.2
    return student.requires_grad_(), teacher, labels, mask


@pytest.mark.parametrize("width", [1, 3, 9])
@pytest.mark.parametrize("size", [(5, 7), (20, 28), (6, 5)])
def test_bands_are_dilation_less_erosion(maps, width, size):
    labels = maps[2]
    found = class_bands(labels, size, 4, width)
    assert torch.equal(found, reference_bands(labels, size, 4, width))
    assert bool(found.any()) == (width > 1) and not found[2].any()


def test_a_border_with_void_or_of_the_image_is_none():
    labels = torch.full((1, 8, 8), 2)
    labels[0, :4] = 255
    assert not class_bands(labels, (8, 8), 4, 5).any()
    labels[0, :4] = 1
    rows = class_bands(labels, (8, 8), 4, 5)[0].any(2)
    assert rows.tolist() == [[False] * 8, [2 <= y <= 5 for y in range(8)]] * 1 + [
        [2 <= y <= 5 for y in range(8)],
        [False] * 8,
    ]


def keys_of(temperatures, width):
    return {
        "edge_temperature": temperatures[0],
        "body_temperature": temperatures[1],
        "width": width,
    }


@pytest.mark.parametrize("temperatures", [(1.0, 4.0), (3.0, 0.5)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_equals_the_equation(maps, temperatures, weights):
    student, teacher, labels, mask = maps
    found = boundary_loss(
        student,
        teacher,
        labels=labels,
        mask=mask,
        edge_weight=weights[0],
        body_weight=weights[1],
        **keys_of(temperatures, 5),
    )
    bands = reference_bands(labels, (5, 7), 4, 5)
    edge, body = reference(student.detach(), teacher, bands, mask, temperatures)
    assert found.item() == pytest.approx(weights[0] * edge + weights[1] * body, rel=1e-10)


def test_gradient_is_right_and_padding_gets_none(maps):
    student, teacher, labels, mask = maps

    def loss(z):
        return boundary_loss(z, teacher, labels=labels, mask=mask, width=5)

    assert torch.autograd.gradcheck(loss, student)
    (gradient,) = torch.autograd.grad(loss(student), student)
    assert not gradient.masked_fill(mask.unsqueeze(1), 0).any()


def test_a_short_border_counts_like_a_long_one():
    """Classes 1 and 2 meet at one pixel row of 1 column, 0 and 1 along 12: means, not sums."""
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[0, 6:], labels[0, 11, 11] = 1, 2
    student, teacher = torch.zeros(2, 1, 3, 12, 12, dtype=F64).unbind()
    teacher[0, 2, 10:, 10:] = 3.0  # where class 2 has its border
    keys = {"labels": labels, "width": 3, "body_weight": 0.0}
    value = boundary_loss(student, teacher, **keys).item()
    one = divergence([0, 0, 3.0], [0, 0, 0], 1.0)
    # The border of 2 is these four pixels, that of 1 also two rows of 12.
    assert value == pytest.approx((one + one * 4 / 28 + 0) / 3)


def test_without_a_border_it_is_cwd(maps):
    student, teacher, labels, mask = maps
    weight = Boundary.conversions["CWD, as the body"].at() / 3
    for options in ({"width": 1}, {"labels": torch.full_like(labels, 3)}):
        keys = {"labels": labels, "mask": mask} | options
        found = boundary_loss(student, teacher, **keys)
        torch.testing.assert_close(found, weight * cwd_loss(student, teacher, mask=mask))


@pytest.mark.parametrize("width", [0, 4, -3])
def test_even_widths_are_refused(width):
    told = "use an odd number of pixels, 3 or 5" if width == 4 else "greater than or equal to 1"
    with pytest.raises(ValueError, match=told):
        Boundary.Config(width=width)


def test_the_entry_has_the_functions_terms(maps):
    student, teacher, labels, mask = maps
    labels = labels.masked_fill(labels < 0, 255)
    inside = torch.nn.functional.interpolate(mask[:, None].float(), (20, 28))[:, 0] > 0
    batch = Batch(torch.zeros(3, 3, 20, 28), labels, inside, torch.arange(3))
    method = Boundary(Boundary.Config(width=5, edge_temperature=2.0))
    terms = method.loss(Outputs(student), Outputs(teacher), batch, Context(batch))
    valid = Context(batch).mask_at(5, 7)
    expected = boundary_loss(
        student,
        teacher,
        labels=labels.masked_fill(~inside, 255),
        mask=valid,
        **keys_of((2.0, 4.0), 5),
    )
    torch.testing.assert_close(terms["edge"].value + terms["body"].value, expected)
    bands = class_bands(labels.masked_fill(~inside, 255), (5, 7), 4, 5) & valid[:, None]
    assert terms["edge"].count == bands.flatten(2).any(2).sum()


def test_it_keeps_the_promises():
    check_method(Boundary)
