import pytest
import torch

from segkd.losses.base import TaskLossConfig
from segkd.losses.dice import Dice
from segkd.structures import Batch, Outputs

K, IGNORE = 4, 255


def make_batch(images=3, size=(6, 9)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K - 1, (images, *size), generator=generator)  # class K-1 is absent
    labels[0, :2] = IGNORE
    inside = torch.ones(labels.shape, dtype=torch.bool)
    inside[1, :, 4:] = False
    pixels = torch.zeros(images, 3, *size, dtype=torch.uint8)
    return Batch(pixels, labels, inside, torch.arange(images), IGNORE)


def make_logits(images=3, size=(6, 9)):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(images, K, *size, generator=generator, dtype=torch.float64)


def dice(logits, batch):
    return Dice(TaskLossConfig(), K)(Outputs(logits), batch)


def reference(logits, batch):
    """Milletari's D, pixel by pixel; mean over present classes, then over images."""
    probability = logits.softmax(1)
    images = []
    for b in range(len(batch)):
        places = batch.valid[b].nonzero().tolist()
        losses = []
        for k in range(K):
            overlap = predicted = true = 0.0
            for y, x in places:
                p, g = float(probability[b, k, y, x]), float(batch.labels[b, y, x] == k)
                overlap, predicted, true = overlap + p * g, predicted + p * p, true + g * g
            if true:
                losses.append(1 - 2 * overlap / (predicted + true))
        if losses:
            images.append(sum(losses) / len(losses))
    return sum(images) / len(images), len(images)


def test_equals_the_slow_reference():
    logits, batch = make_logits(), make_batch()
    term = dice(logits, batch)
    value, count = reference(logits, batch)
    assert float(term.value) == pytest.approx(value, rel=1e-9) and float(term.count) == count == 3
    assert term.count.dtype is torch.float64


def test_an_image_without_valid_pixels_does_not_count():
    logits, batch = make_logits(), make_batch()
    batch.not_padding[2] = False
    term = dice(logits, batch)
    assert float(term.value) == pytest.approx(reference(logits, batch)[0], rel=1e-9)
    assert float(term.count) == 2


def test_right_and_wrong_answers():
    batch = make_batch()
    sure = torch.nn.functional.one_hot(batch.labels.clamp(max=K - 1), K).movedim(3, 1) * 200.0
    assert float(dice(sure, batch).value) == pytest.approx(0, abs=1e-6)
    assert float(dice(sure.roll(1, 1), batch).value) == pytest.approx(1, abs=1e-6)


def test_invalid_pixels_do_not_teach():
    logits, batch = make_logits(), make_batch()
    other = logits.where(batch.valid[:, None], -20.0).requires_grad_()
    term = dice(other, batch.replace(labels=batch.labels.where(batch.not_padding, K - 1)))
    assert torch.equal(term.value, dice(logits, batch).value)
    gradient = torch.autograd.grad(term.value, other)[0]
    assert not gradient.masked_select(~batch.valid[:, None]).any()


def test_duplicating_the_batch_changes_nothing():
    logits, batch = make_logits(), make_batch()
    twice = Batch(*(torch.cat([x, x]) for x in vars(batch).values() if torch.is_tensor(x)))
    found = dice(torch.cat([logits, logits]), twice).value
    assert float(found) == pytest.approx(float(dice(logits, batch).value), rel=1e-12)


def test_nothing_valid_is_a_connected_zero():
    logits, batch = make_logits().requires_grad_(), make_batch()
    term = dice(logits, batch.replace(labels=torch.full_like(batch.labels, IGNORE)))
    assert term.value.item() == 0 and term.count.item() == 0
    assert not torch.autograd.grad(term.value, logits)[0].any()


def test_gradient():
    logits, batch = make_logits(2, (2, 3)).requires_grad_(), make_batch(2, (4, 6))
    assert torch.autograd.gradcheck(lambda x: dice(x, batch).value, logits)
