import pytest
import torch

from segkd.errors import ConfigError
from segkd.losses.base import TaskLossConfig
from segkd.losses.lane_iou import LaneIoU
from segkd.structures import Batch, Outputs

K, IGNORE = 5, 255


def make_batch(images=3, size=(6, 9)):
    """Lane 4 (class 4) is nowhere, lane 3 not in image 1, and image 2 has background alone."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K - 1, (images, *size), generator=generator)
    labels[0, :2] = IGNORE
    inside = torch.ones(labels.shape, dtype=torch.bool)
    if images > 1:
        labels[1][labels[1] == 3] = 0
        inside[1, :, 4:] = False
    if images > 2:
        labels[2] = 0
    pixels = torch.zeros(images, 3, *size, dtype=torch.uint8)
    return Batch(pixels, labels, inside, torch.arange(images), IGNORE)


def make_logits(images=3, size=(6, 9)):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(images, K, *size, generator=generator, dtype=torch.float64)


def lane_iou(logits, batch):
    return LaneIoU(TaskLossConfig(), logits.shape[1])(Outputs(logits), batch)


def reference(logits, batch):
    """1 - soft IoU, pixel by pixel, of each lane that an image has."""
    probability = logits.softmax(1)
    losses = []
    for b in range(len(batch)):
        places = batch.valid[b].nonzero().tolist()
        for k in range(1, logits.shape[1]):
            overlap = union = true = 0.0
            for y, x in places:
                p, g = float(probability[b, k, y, x]), float(batch.labels[b, y, x] == k)
                overlap, union, true = overlap + p * g, union + p + g - p * g, true + g
            if true:
                losses.append(1 - overlap / union)
    return sum(losses) / len(losses), len(losses)


def test_equals_the_slow_reference():
    logits, batch = make_logits(), make_batch()
    term = lane_iou(logits, batch)
    value, count = reference(logits, batch)
    assert float(term.value) == pytest.approx(value, rel=1e-9)
    assert float(term.count) == count == 5 and term.count.dtype is torch.float64


def test_logits_are_upsampled():
    logits, batch = make_logits(size=(3, 5)), make_batch()
    large = torch.nn.functional.interpolate(logits, (6, 9), mode="bilinear", align_corners=False)
    assert float(lane_iou(logits, batch).value) == pytest.approx(reference(large, batch)[0])


def test_two_classes_are_one_lane():
    logits, batch = make_logits()[:, :2], make_batch()
    batch.labels[batch.valid] = batch.labels[batch.valid].clamp(max=1)
    term = lane_iou(logits, batch)
    assert float(term.value) == pytest.approx(reference(logits, batch)[0]) and term.count == 2


def test_right_and_wrong_answers():
    batch = make_batch()
    sure = torch.nn.functional.one_hot(batch.labels.clamp(max=K - 1), K).movedim(3, 1) * 200.0
    assert float(lane_iou(sure, batch).value) == pytest.approx(0, abs=1e-6)
    assert float(lane_iou(sure.roll(1, 1), batch).value) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("lane", range(1, K))
def test_each_lane_alone_is_learned(lane):
    """Public code looks at one class only, so that the others have no gradient of their own."""
    batch = make_batch(1)
    batch.labels[:] = 0
    batch.labels[0, :, 3] = lane
    logits = torch.zeros(1, K, 6, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(lane_iou(logits, batch).value, logits)
    assert (gradient[0, lane, :, 3] < 0).all() and (gradient[0, lane, :, 4] > 0).all()


def test_background_alone_decides_nothing():
    """The absent lanes have no gradient; an image without lanes is no item of the mean."""
    logits, batch = make_logits().requires_grad_(), make_batch()
    (gradient,) = torch.autograd.grad(lane_iou(logits, batch).value, logits)
    assert not gradient[2].any() and gradient[:2].any()


def test_invalid_pixels_do_not_teach():
    logits, batch = make_logits(), make_batch()
    other = logits.where(batch.valid[:, None], -20.0).requires_grad_()
    term = lane_iou(other, batch.replace(labels=batch.labels.where(batch.not_padding, K - 1)))
    assert torch.equal(term.value, lane_iou(logits, batch).value)
    gradient = torch.autograd.grad(term.value, other)[0]
    assert not gradient.masked_select(~batch.valid[:, None]).any()


def test_duplicating_the_batch_changes_nothing():
    logits, batch = make_logits(), make_batch()
    twice = Batch(*(torch.cat([x, x]) for x in vars(batch).values() if torch.is_tensor(x)))
    first, second = lane_iou(logits, batch), lane_iou(torch.cat([logits, logits]), twice)
    assert float(second.value) == pytest.approx(float(first.value), rel=1e-12)
    assert float(second.count) == 2 * float(first.count)


@pytest.mark.parametrize("label", [IGNORE, 0], ids=["void", "background"])
def test_no_lane_is_a_connected_zero(label):
    logits, batch = make_logits().requires_grad_(), make_batch()
    term = lane_iou(logits, batch.replace(labels=torch.full_like(batch.labels, label)))
    assert term.value.item() == 0 and term.count.item() == 0
    assert not torch.autograd.grad(term.value, logits)[0].any()


def test_gradient():
    logits, batch = make_logits(2, (2, 3)).requires_grad_(), make_batch(2, (4, 6))
    assert torch.autograd.gradcheck(lambda x: lane_iou(x, batch).value, logits)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="one class"):
        LaneIoU(TaskLossConfig(), 1)
