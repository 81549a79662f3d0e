import numpy as np

from segkd.data.lane_base import lane_classes, lane_palette
from segkd.viz.overlay import TILE
from segkd.viz.sample_sheet import sample_sheet


def test_lanes_are_drawn_beside_their_image_and_its_label():
    """Of a grey image: slot 2 is painted in its colour, and points of slot 3 lie on its line."""
    palette, size = lane_palette(4), (100, TILE)
    image = np.full((*size, 3), 100, np.uint8)
    label = np.zeros(size, np.uint8)
    label[:, 40:60] = 2
    label[:10] = 255
    gap = np.full((1, 2), np.nan)
    line = np.concatenate([[[200, 90], [200, 20]], gap, [[300, 90], [300, 20]], gap, gap])
    slots = [np.full((6, 2), np.nan), np.full((6, 2), np.nan), line, np.full((6, 2), np.nan)]
    lanes = [np.stack([np.resize(one, (7, 2)) for one in slots]).astype(np.float32)]
    lanes[0][2] = line.astype(np.float32)
    sheet = sample_sheet([image], [label], lanes, palette, lane_classes(4))
    top = int(np.flatnonzero((sheet == 100).all(axis=2).any(axis=1))[0])
    row = sheet[top : top + 100].astype(int)
    first, painted, drawn = (row[:, 24 + i * (TILE + 8) :][:, :TILE] for i in range(3))
    assert (first == 100).all()
    mixed = np.round(100 + 0.6 * (palette[2].astype(int) - 100))
    assert np.abs(painted[50, 50] - mixed).max() <= 1 and (painted[50, 100] == 100).all()
    assert (painted[5] != 100).all(axis=1).mean() > 0.9
    for x in (200, 300):
        assert np.abs(drawn[60, x] - palette[3]).max() < 90 and (drawn[60, 250] == 100).all()
    unlabelled = sample_sheet([image], [None], [()], palette, lane_classes(4))
    assert unlabelled.shape == sheet.shape
