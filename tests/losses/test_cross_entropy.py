import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError, DataError
from segkd.losses import cross_entropy
from segkd.losses.cross_entropy import CrossEntropy, CrossEntropyConfig, OhemConfig, keep_hard
from segkd.structures import Batch, Outputs

K, IGNORE = 5, 255


def make_batch(size=(8, 12), images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    inside = torch.ones(labels.shape, dtype=torch.bool)
    inside[-1, :, size[1] // 2 :] = False
    pixels = torch.zeros(images, 3, *size, dtype=torch.uint8)
    return Batch(pixels, labels, inside, torch.arange(images), IGNORE)


def make_logits(size=(8, 12), images=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, K, *size, generator=generator, dtype=torch.float64)


def loss(**options):
    return CrossEntropy(CrossEntropyConfig(**options), K)


def reference(logits, batch, weights=None, smoothing=0.0):
    """Sum of losses and of weights, pixel by pixel."""
    weights = weights or [1.0] * K
    total, count = 0.0, 0.0
    for b, y, x in batch.valid.nonzero().tolist():
        scores = logits[b, :, y, x].tolist()
        norm = math.log(sum(math.exp(s) for s in scores))
        label = int(batch.labels[b, y, x])
        total += (1 - smoothing) * weights[label] * (norm - scores[label])
        total += smoothing / K * sum(w * (norm - s) for w, s in zip(weights, scores, strict=True))
        count += weights[label]
    return total / count, count


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5, 0.3, 7.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_slow_reference(weights, smoothing):
    logits, batch = make_logits(), make_batch()
    term = loss(class_weights=weights, label_smoothing=smoothing)(Outputs(logits), batch)
    value, count = reference(logits, batch, weights, smoothing)
    assert float(term.value) == pytest.approx(value, rel=1e-9)
    assert float(term.count) == pytest.approx(count, rel=1e-6)
    assert term.count.dtype is torch.float64 and not term.count.requires_grad


def test_logits_are_upsampled_bilinearly():
    logits, batch = make_logits((4, 6)), make_batch()
    large = F.interpolate(logits, (8, 12), mode="bilinear", align_corners=False)
    term = loss()(Outputs(logits), batch)
    assert float(term.value) == pytest.approx(reference(large, batch)[0], rel=1e-9)


def test_log_probabilities_give_the_loss_of_their_logits():
    logits, batch = make_logits((4, 6)), make_batch()
    expected = loss()(Outputs(logits), batch).value
    found = loss()(Outputs(logits.log_softmax(1), kind="log_prob"), batch).value
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"ohem": True}, {"class_weights": [1, 2, 3, 4, 5]}])
def test_invalid_pixels_do_not_teach(options):
    logits, batch = make_logits().requires_grad_(), make_batch()
    other = logits.detach().where(batch.valid[:, None], 30.0).requires_grad_()
    labels = batch.labels.where(batch.not_padding, 1)
    first = loss(**options)(Outputs(logits), batch)
    second = loss(**options)(Outputs(other), batch.replace(labels=labels))
    assert torch.equal(first.value, second.value) and torch.equal(first.count, second.count)
    gradient = torch.autograd.grad(second.value, other)[0]
    assert not gradient.masked_select(~batch.valid[:, None]).any()


@pytest.mark.parametrize("options", [{}, {"ohem": True}, {"class_weights": [1, 2, 3, 4, 5]}])
def test_nothing_valid_is_a_connected_zero(options):
    logits, batch = make_logits().requires_grad_(), make_batch()
    term = loss(**options)(
        Outputs(logits), batch.replace(not_padding=torch.zeros_like(batch.not_padding))
    )
    assert term.value.item() == 0 and term.count.item() == 0
    assert not torch.autograd.grad(term.value, logits)[0].any()


@pytest.mark.parametrize("options", [{}, {"ohem": {"threshold": 0.1, "keep": 0.3}}])
def test_duplicating_the_batch_changes_nothing(options):
    logits, batch = make_logits(), make_batch()
    twice = Batch(*(torch.cat([x, x]) for x in vars(batch).values() if torch.is_tensor(x)))
    first = loss(**options)(Outputs(logits), batch)
    second = loss(**options)(Outputs(torch.cat([logits, logits])), twice)
    assert float(second.value) == pytest.approx(float(first.value), rel=1e-12)
    assert float(second.count) == 2 * float(first.count)


def test_half_types_are_raised_under_autocast():
    logits, batch = make_logits().bfloat16(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        term = loss()(Outputs(logits), batch)
    expected = loss()(Outputs(logits.float()), batch)
    assert term.value.dtype is torch.float32 and torch.equal(term.value, expected.value)


def slow_ohem(logits, target, threshold, number):
    probability = logits.softmax(1)
    pixels = [
        (float(probability[b, target[b, y, x], y, x]), (b, y, x))
        for b, y, x in (target != IGNORE).nonzero().tolist()
    ]
    pixels.sort()
    kept = torch.full_like(target, IGNORE)
    for rank, (value, place) in enumerate(pixels):
        if rank < number or value < threshold:
            kept[place] = target[place]
    return kept


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    ("threshold", "keep", "number"), [(0.3, 1, 1), (0.05, 40, 40), (1e-9, 0.25, None), (1.0, 1, 1)]
)
def test_ohem_keeps_what_the_slow_rule_keeps(threshold, keep, number, in_order, monkeypatch):
    if in_order:  # as on devices, whose numbers are not read
        monkeypatch.setattr(cross_entropy, "_hardest", cross_entropy._hardest_in_order)
    logits, batch = make_logits(), make_batch()
    target = batch.labels.masked_fill(~batch.valid, IGNORE)
    number = number or math.ceil(keep * int(batch.valid.sum()))
    expected = slow_ohem(logits, target, threshold, number)
    assert torch.equal(keep_hard(logits, target, IGNORE, threshold, keep), expected)
    assert 0 < (expected != IGNORE).sum() <= batch.valid.sum()


@pytest.mark.parametrize("in_order", [False, True])
def test_ohem_without_a_valid_pixel_keeps_none(in_order, monkeypatch):
    if in_order:
        monkeypatch.setattr(cross_entropy, "_hardest", cross_entropy._hardest_in_order)
    void = torch.full((2, 6, 9), IGNORE)
    assert torch.equal(keep_hard(make_logits(), void, IGNORE), void)


def test_ohem_loss_is_the_mean_over_kept_pixels():
    logits, batch = make_logits(), make_batch()
    term = loss(ohem={"threshold": 0.2, "keep": 3})(Outputs(logits), batch)
    kept = slow_ohem(logits, batch.labels.masked_fill(~batch.valid, IGNORE), 0.2, 3)
    value, count = reference(logits, batch.replace(labels=kept))
    assert float(term.value) == pytest.approx(value, rel=1e-9) and float(term.count) == count
    assert count < batch.valid.sum()


def test_ohem_options():
    assert loss(ohem=True).ohem == OhemConfig() and loss(ohem=False).ohem is None


def test_wrong_number_of_class_weights_names_both():
    with pytest.raises(ConfigError, match=r"3 numbers.*5 classes"):
        loss(class_weights=[1.0, 2.0, 3.0])


def test_background_weighs_the_first_class_for_any_number_of_classes():
    logits, batch = make_logits(), make_batch()
    found = loss(background=0.4)(Outputs(logits), batch)
    value, count = reference(logits, batch, [0.4] + [1.0] * (K - 1))
    assert float(found.value) == pytest.approx(value, rel=1e-7)
    assert float(found.count) == pytest.approx(count, rel=1e-6)
    with pytest.raises(ValueError, match="not both"):
        CrossEntropyConfig(background=0.4, class_weights=[1.0] * K)


def test_no_labels_is_refused():
    with pytest.raises(DataError, match=r"task\.weight=0"):
        loss()(Outputs(make_logits()), make_batch().replace(labels=None))


def test_gradient():
    logits, batch = make_logits((2, 3)).requires_grad_(), make_batch((4, 6))
    module = loss(class_weights=[1, 2, 3, 4, 5], label_smoothing=0.1)
    assert torch.autograd.gradcheck(lambda x: module(Outputs(x), batch).value, logits)
