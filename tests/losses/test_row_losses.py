"""Losses of row anchors against loops written from the paper's equations."""

import math

import pytest
import torch

from segkd.config.schema import TaskConfig
from segkd.engine.task_losses import TaskLosses
from segkd.errors import ConfigError, DataError
from segkd.losses.base import TaskLossConfig
from segkd.losses.row_cells import RowCells, RowCellsConfig
from segkd.losses.row_shape import RowShape
from segkd.losses.row_similarity import RowSimilarity
from segkd.structures import Batch, Outputs

B, L, R, G = 3, 2, 5, 6
H, W = 50, 60
ROWS = tuple((r + 0.5) / R for r in range(R))


def make_outputs(seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, L + 1, R, G, generator=draw, dtype=torch.float64)
    return Outputs(logits.requires_grad_(), rows=ROWS)


def make_batch():
    """Slanted lanes; image 1 lacks the second, image 2 has no labels, image 0 has padding."""
    y = torch.arange(0, H + 1, 5, dtype=torch.float32)
    lanes = torch.full((B, L, len(y), 2), math.nan)
    lanes[0, 0] = torch.stack([0.9 * y + 3, y], 1)
    lanes[0, 1] = torch.stack([45 - 0.2 * y, y], 1)
    lanes[1, 0] = torch.stack([70 - 1.2 * y, y], 1)  # begins outside
    exist = torch.tensor([[1.0, 1.0], [1.0, 0.0], [math.nan, math.nan]])
    inside = torch.ones(B, H, W, dtype=torch.bool)
    inside[0, 40:] = False
    labels = torch.zeros(B, H, W, dtype=torch.int64)
    index = torch.arange(B)
    return Batch(
        torch.zeros(B, 3, H, W), labels, inside, index, extra={"exist": exist, "lanes": lanes}
    )


def true_cells():
    """By image, lane and row: a cell, None for absent, or "?" for unknown; by hand."""
    found = {}
    for b in range(B):
        for lane in range(L):
            for r in range(R):
                y = ROWS[r] * H - 0.5
                x = {(0, 0): 0.9 * y + 3, (0, 1): 45 - 0.2 * y, (1, 0): 70 - 1.2 * y}.get((b, lane))
                if b == 2 or (b == 0 and y >= 39.5):
                    found[b, lane, r] = "?"
                elif x is None or not -0.5 <= x < W - 0.5:
                    found[b, lane, r] = None
                else:
                    found[b, lane, r] = int((x + 0.5) * G / W)
    return found


def shares_of(logits, b, lane, r):
    """Probabilities of "none" and of the cells."""
    logits = logits.detach()
    odds = [1.0] + [
        math.exp(float(logits[b, lane + 1, r, c] - logits[b, 0, r, c])) for c in range(G)
    ]
    return [one / sum(odds) for one in odds]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_row_cells(gamma):
    outputs, cells = make_outputs(), true_cells()
    total, count = 0.0, 0
    for (b, lane, r), cell in cells.items():
        if cell == "?":
            continue
        share = shares_of(outputs.logits, b, lane, r)[0 if cell is None else cell + 1]
        total += -((1 - share) ** gamma) * math.log(share)
        count += 1
    assert None in cells.values() and "?" in cells.values() and 0 < count < B * L * R
    term = RowCells(RowCellsConfig(gamma=gamma), L + 1)(outputs, make_batch())
    assert float(term.count) == count
    assert float(term.value) == pytest.approx(total / count)
    (gradient,) = torch.autograd.grad(term.value, outputs.logits)
    assert gradient[2].eq(0).all() and gradient[:2].ne(0).any() and gradient.isfinite().all()


def test_row_similarity():
    outputs, cells = make_outputs(), true_cells()
    total, count = 0.0, 0
    for b in range(B):
        for lane in range(L):
            for r in range(R - 1):
                if "?" in (cells[b, lane, r], cells[b, lane, r + 1]):
                    continue
                pair = (shares_of(outputs.logits, b, lane, one) for one in (r, r + 1))
                total += sum(abs(p - q) for p, q in zip(*pair, strict=True))
                count += 1
    term = RowSimilarity(TaskLossConfig(), L + 1)(outputs, make_batch())
    assert float(term.count) == count > 0
    assert float(term.value) == pytest.approx(total / count)


def test_row_shape():
    outputs, cells = make_outputs(), true_cells()

    total, count = 0.0, 0
    for b in range(B):
        for lane in range(L):
            for r in range(R - 2):
                if any(not isinstance(cells[b, lane, r + k], int) for k in range(3)):
                    continue
                at = []
                for k in range(3):
                    odds = shares_of(outputs.logits, b, lane, r + k)[1:]
                    at.append(sum(c * p for c, p in enumerate(odds)) / sum(odds))
                total += abs((at[0] - at[1]) - (at[1] - at[2]))
                count += 1
    term = RowShape(TaskLossConfig(), L + 1)(outputs, make_batch())
    assert float(term.count) == count > 0
    assert float(term.value) == pytest.approx(total / count)


@pytest.mark.parametrize("loss", [RowCells, RowSimilarity, RowShape])
def test_saturated_logits_and_empty_batches_are_finite(loss):
    outputs, batch = make_outputs(), make_batch()
    extreme = outputs.logits.detach().float().sign().mul(1e4).requires_grad_()
    for found in (Outputs(extreme, rows=ROWS), Outputs(extreme.half(), rows=ROWS)):
        value = loss(loss.Config(), L + 1)(found, batch).value
        assert value.isfinite() and value.dtype == torch.float32
        value.backward()
        assert extreme.grad.isfinite().all()
    nothing = {"exist": torch.full((B, L), math.nan)}
    term = loss(loss.Config(), L + 1)(outputs, batch.replace(extra=nothing))
    assert float(term.value) == 0 and float(term.count) == 0
    term.value.backward()
    assert outputs.logits.grad.eq(0).all()


def test_a_batch_twice_has_the_same_loss():
    outputs, batch = make_outputs(), make_batch()
    doubled = Outputs(torch.cat([outputs.logits] * 2), rows=ROWS)
    twice = batch._map(lambda tensor: torch.cat([tensor] * 2))
    for loss in (RowCells, RowSimilarity, RowShape):
        one, two = (
            loss(loss.Config(), L + 1)(*pair) for pair in ((outputs, batch), (doubled, twice))
        )
        torch.testing.assert_close(one.value, two.value)
        assert float(two.count) == 2 * float(one.count)


def test_data_without_lanes_and_networks_without_rows_are_refused():
    outputs, batch = make_outputs(), make_batch()
    loss = RowCells(RowCellsConfig(), L + 1)
    with pytest.raises(ConfigError, match="does not classify rows"):
        loss(Outputs(outputs.logits), batch)
    with pytest.raises(DataError, match="the data has no lanes"):
        loss(outputs, batch.replace(extra={}))
    with pytest.raises(DataError, match=r"the data has \(3, 4\)"):
        loss(outputs, batch.replace(extra={"exist": torch.zeros(B, 4)}))


def test_losses_of_maps_are_those_of_auxiliary_heads():
    config = TaskConfig(losses={"row_cells": {}, "cross_entropy": {}})
    with pytest.raises(ConfigError, match="cross_entropy: the student classifies rows"):
        TaskLosses(config, L + 1, has_rows=True)
    with pytest.raises(ConfigError, match="row_cells: the student does not classify rows"):
        TaskLosses(config, L + 1)
    outputs = make_outputs()
    outputs.aux["aux"] = torch.randn(B, L + 1, 5, 6)
    losses = TaskLosses(config, L + 1, aux_weight=0.5, has_rows=True)
    assert list(losses(outputs, make_batch())) == ["row_cells", "cross_entropy.aux"]
