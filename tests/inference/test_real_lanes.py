"""Real annotations, painted, read off again, and scored by the official metrics."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from segkd.config.schema import LaneRules
from segkd.data.lane_masks import arranged, painted
from segkd.inference.lane_decode import decode
from segkd.metrics.culane import Counts, evaluate_image
from segkd.metrics.culane_text import read_lanes
from segkd.metrics.tusimple import evaluate_image as evaluate_rows

ROOT = Path(os.environ.get("SEGKD_REAL_DATA", ""))
pytestmark = pytest.mark.real


def maps_of(lanes, stored, seen, num_lanes, width, cut_top=0):
    """Painted lanes as probabilities (1, L+1, *seen)."""
    label = painted(arranged(lanes, stored, num_lanes), stored, width)[cut_top:]
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), num_lanes + 1)
    maps = one_hot.permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(maps, seen, mode="bilinear")


@pytest.mark.parametrize(("seen", "cut_top"), [((288, 800), 0), ((208, 976), 240)])
@pytest.mark.parametrize("rules", [{}, {"variant": "matlab"}, {"sub_pixel": True}])
def test_culane(rules, seen, cut_top):
    total = Counts()
    files = sorted((ROOT / "culane_sample").rglob("*.lines.txt"))
    assert files
    for file in files:
        lanes = read_lanes(file)
        maps = maps_of(lanes, (590, 1640), seen, 4, 16, cut_top)
        found = decode(maps, None, [(590, 1640)], LaneRules(**rules), cut_top=cut_top)[0].found
        total += Counts(*evaluate_image(lanes, found))
    assert total.f1 > 0.97, total


@pytest.mark.parametrize("rules", [{}, {"sub_pixel": True}])
def test_tusimple(rules):
    scores = []
    for line in (ROOT / "tusimple_sample/label_data.json").read_text().splitlines():
        item = json.loads(line)
        rows, lanes = np.array(item["h_samples"], float), np.array(item["lanes"], float)
        points = [np.stack([x[x >= 0], rows[x >= 0]], axis=1) for x in lanes]
        maps = maps_of(points, (288, 512), (288, 512), 6, 6)
        rules = LaneRules(**rules) if isinstance(rules, dict) else rules
        found = decode(maps, None, [(288, 512)], rules, rows=[rows])[0]
        present = found.x[~np.isnan(found.x).all(1)]
        scores.append(evaluate_rows(np.nan_to_num(present, nan=-2), lanes, rows)[0])
    assert np.mean(scores) > 0.93, scores
