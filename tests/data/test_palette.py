import numpy as np
import pytest
import torch

from segkd.data import cityscapes
from segkd.data.palette import VOID, _lab, colorize, default_palette, distinct


@pytest.mark.parametrize("classes", [1, 2, 12, 19, 150, 1000])
def test_default_palette_is_distinct_and_grows_by_appending(classes):
    palette = default_palette(classes)
    assert palette.shape == (classes, 3) and palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == classes
    assert (palette == default_palette(classes + 1)[:-1]).all()


def test_the_first_colours_differ_in_lightness_or_hue():
    palette = default_palette(12).astype(float)
    distance = np.linalg.norm(palette[:, None] - palette[None], axis=2) + 1e3 * np.eye(12)
    assert distance.min() > 45


def test_colorize():
    palette = default_palette(3)
    label = np.array([[0, 1, 2], [255, 3, 0]], np.uint8)
    colors = colorize(label, palette)
    assert colors.dtype == np.uint8
    for place in np.ndindex(label.shape):
        expected = palette[label[place]] if label[place] < 3 else VOID
        assert tuple(colors[place]) == tuple(expected)


def test_colorize_takes_tensors_and_negative_void():
    label = torch.tensor([[-1, 1]])
    colors = colorize(label, default_palette(2), void_color=(1, 2, 3))
    assert colors[0, 0].tolist() == [1, 2, 3]
    assert colors[0, 1].tolist() == default_palette(2)[1].tolist()


def test_classes_of_one_colour_can_be_told_apart_and_the_others_keep_theirs():
    found = distinct(cityscapes.PALETTE)
    changed = [
        cityscapes.CLASSES[k] for k in range(19) if (found[k] != cityscapes.PALETTE[k]).any()
    ]
    assert changed == ["pole", "train"]
    lab = _lab(found)
    gaps = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 99 * np.eye(19)
    assert gaps.min() >= 12 and gaps[16].min() >= 20  # the train, which was 10 from the bus
    assert np.array_equal(distinct(default_palette(12)), default_palette(12))
    assert len(distinct(default_palette(150))) == 150
