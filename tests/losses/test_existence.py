import math

import pytest
import torch

from segkd.config.schema import TaskConfig
from segkd.engine.task_losses import TaskLosses
from segkd.errors import ConfigError, DataError
from segkd.losses.base import TaskLossConfig
from segkd.losses.existence import Existence
from segkd.structures import Batch, Outputs

K = 5
TRUTH = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])


def make_batch(exist=TRUTH):
    labels = torch.zeros(3, 4, 6, dtype=torch.int64)
    extra = {} if exist is None else {"exist": exist}
    pixels = torch.zeros(3, 3, 4, 6, dtype=torch.uint8)
    return Batch(pixels, labels, labels == 0, torch.arange(3), extra=extra)


def make_exist():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(3, K - 1, generator=generator, dtype=torch.float64)


def existence(exist, batch):
    return Existence(TaskLossConfig(), K)(Outputs(torch.zeros(3, K, 2, 3), exist=exist), batch)


def test_equals_the_slow_reference():
    exist = make_exist()
    total = 0.0
    for b in range(3):
        for lane in range(K - 1):
            p = 1 / (1 + math.exp(-float(exist[b, lane])))
            total -= math.log(p) if TRUTH[b, lane] else math.log(1 - p)
    term = existence(exist, make_batch())
    assert float(term.value) == pytest.approx(total / 12, rel=1e-9)
    assert float(term.count) == 12 and term.count.dtype is torch.float64


def test_gradient_and_saturated_logits():
    exist = make_exist().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: existence(x, make_batch()).value, exist)
    certain = (1e4 * (1 - 2 * TRUTH)).requires_grad_()
    value = existence(certain, make_batch()).value
    value.backward()
    assert value == 1e4 and certain.grad.isfinite().all()


def test_images_without_annotation_do_not_count():
    exist, truth = make_exist().requires_grad_(), TRUTH.clone()
    truth[1] = torch.nan
    term = existence(exist, make_batch(truth))
    term.value.backward()
    half = Outputs(torch.zeros(2, K, 2, 3), exist=make_exist()[[0, 2]])
    expected = Existence(TaskLossConfig(), K)(half, make_batch(TRUTH[[0, 2]]))
    torch.testing.assert_close(term.value.detach(), expected.value)
    assert term.count == 8 and not exist.grad[1].any() and exist.grad[0].all()
    nothing = existence(exist, make_batch(torch.full_like(TRUTH, torch.nan)))
    assert nothing.value == 0 and nothing.count == 0 and nothing.value.requires_grad


def test_duplicating_the_batch_changes_nothing():
    exist = make_exist()
    twice = existence(torch.cat([exist, exist]), make_batch(torch.cat([TRUTH, TRUTH])))
    assert float(twice.value) == pytest.approx(float(existence(exist, make_batch()).value))
    assert float(twice.count) == 24


def test_half_types_are_raised():
    exist = make_exist().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = existence(exist, make_batch()).value
    assert value.dtype is torch.float32
    assert torch.equal(value, existence(exist.float(), make_batch()).value)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match="exist_head"):
        existence(None, make_batch())
    with pytest.raises(DataError, match="no annotation of lane existence"):
        existence(make_exist(), make_batch(None))
    with pytest.raises(DataError, match=r"\(3, 4\).*\(3, 3\).*num_lanes"):
        existence(make_exist(), make_batch(TRUTH[:, :3]))


# -- beside other losses ---------------------------------------------------------------------------

LOSSES = {
    "cross_entropy": {"background": 0.4},
    "lane_iou": {"weight": 0.1},
    "existence": {"weight": 0.1},
}


def test_all_lane_losses_with_their_weights():
    losses = TaskLosses(TaskConfig(losses=LOSSES), K, aux_weight=0.5)
    batch = make_batch()
    batch.labels[:, :, 2] = 1
    logits = torch.zeros(3, K, 4, 6)
    terms = losses(Outputs(logits, exist=make_exist(), aux={"aux": logits}), batch)
    names = ["cross_entropy", "lane_iou", "existence", "cross_entropy.aux", "lane_iou.aux"]
    assert list(terms) == names
    alone = float(existence(make_exist(), batch).value)
    assert float(terms["existence"].value) == pytest.approx(0.1 * alone)


def test_outputs_of_further_heads_have_no_term_of_existence():
    terms = TaskLosses(TaskConfig(losses=LOSSES), K)(Outputs(torch.zeros(3, K, 4, 6)), make_batch())
    assert list(terms) == ["cross_entropy", "lane_iou"]


def test_a_student_without_the_branch_is_refused_at_build():
    with pytest.raises(ConfigError, match=r"student\.exist_head: \{\}"):
        TaskLosses(TaskConfig(losses=LOSSES), K, has_exist=False)
    assert TaskLosses(TaskConfig(), K, has_exist=False)
