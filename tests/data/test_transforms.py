import subprocess
import sys

import numpy as np
import pytest

from segkd.data.base import DataConfig
from segkd.data.transforms import FILL, TrainTransform, resize_image, resize_label
from segkd.errors import ConfigError


def transform(**keys) -> TrainTransform:
    return TrainTransform(DataConfig(name="toy", **keys), ignore_index=255)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose channels are row and column, and a label of the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1), rows.copy()


def test_the_same_seed_gives_the_same_sample_after_other_draws():
    image, label = coordinates(60, 80)
    augment = transform(crop=(40, 40), color_jitter=1.0)
    first = augment(image, label, 7)
    others = [augment(image, label, seed) for seed in range(5)]
    again = augment(image, label, 7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not np.array_equal(first[0], other[0]) for other in others)


def test_the_same_seed_gives_the_same_sample_in_another_process():
    code = (
        "import numpy as np; from segkd.data.base import DataConfig;"
        "from segkd.data.transforms import TrainTransform;"
        "t = TrainTransform(DataConfig(name='x', crop=(20, 30), color_jitter=1.0), 255);"
        "image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3);"
        "print(int(t(image, image[..., 0], 11)[0].astype(np.int64).cumsum()[::7].sum()))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    ours = transform(crop=(20, 30), color_jitter=1.0)(image, image[..., 0], 11)[0]
    assert int(other.stdout) == int(ours.astype(np.int64).cumsum()[::7].sum())


@pytest.mark.parametrize("seed", range(8))
def test_image_and_label_stay_aligned(seed):
    image, label = coordinates(120, 100)
    image, label, inside = transform(crop=(90, 110), flip=0.5)(image, label, seed)
    assert inside.any()
    row_of_image = image[..., 0].astype(int)[inside]
    assert np.abs(row_of_image - label[inside].astype(int)).max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_padding_is_outside_void_and_filled(seed):
    image = np.full((30, 40, 3), 9, np.uint8)
    label = np.ones((30, 40), np.int32)
    image, label, inside = transform(crop=(64, 64), scale=(0.7, 1.3))(image, label, seed)
    assert (label[~inside] == 255).all() and (label[inside] == 1).all()
    assert (image[~inside] == FILL).all() and (image[inside] == 9).all()
    shown = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert inside.sum() == shown[0] * shown[1] < inside.size
    assert shown[0] / shown[1] == pytest.approx(30 / 40, abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_crop_then_resize_equals_resize_then_crop(factor, seed):
    """The window's interior has the values of the whole image resized by OpenCV."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (64, 96), dtype=np.uint8)
    augment = transform(crop=(24, 32), scale=(factor, factor), flip=0)
    crop, crop_label, _ = (part[2:-2, 2:-2] for part in augment(image, label, seed))
    found = 0
    for top, left in ((0, 0), (0, 1), (1, 0), (1, 1)):  # the grid of a halved image may be odd
        part = image[top : 64 - top, left : 96 - left]
        whole = resize_image(part, (int(part.shape[0] * factor), int(part.shape[1] * factor)))
        whole_label = resize_label(label[top : 64 - top, left : 96 - left], whole.shape[:2])
        windows = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)[:, :, 0]
        for y, x in np.argwhere((windows == crop).all(axis=(2, 3, 4))):
            found += np.array_equal(whole_label[y : y + 20, x : x + 28], crop_label)
    assert found >= 1


def test_windows_reach_every_edge_and_both_flips():
    image, label = coordinates(50, 60)
    crops = [transform(crop=(20, 20), scale=(1, 1))(image, label, seed)[0] for seed in range(200)]
    corners = np.array([crop[[0, -1], [0, -1], :2].ravel() for crop in crops])
    assert corners.min(axis=0)[0] == 0 and corners.max(axis=0)[2] == 49
    assert corners[:, [1, 3]].min() == 0 and corners[:, [1, 3]].max() == 59
    flipped = np.mean(corners[:, 1] > corners[:, 3])
    assert 0.35 < flipped < 0.65


def test_flip_and_colour_are_independent():
    image = np.full((8, 8, 3), 100, np.uint8)
    label = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    augment = transform(scale=(1, 1), color_jitter=1.0)
    drawn = [augment(image, label, seed) for seed in range(200)]
    flipped = np.array([label[0, 0] == 7 for _, label, _ in drawn])
    brightness = np.array([image.mean() for image, _, _ in drawn])
    assert abs(np.corrcoef(flipped, brightness)[0, 1]) < 0.25


def test_without_crop_the_output_is_as_large_as_the_image():
    image, label = coordinates(30, 40)
    assert transform()(image, label, 0)[0].shape == (30, 40, 3)
    assert transform(resize=(16, 20))(image, label, 0)[0].shape == (16, 20, 3)


def test_nothing_changes_when_everything_is_off():
    image, label = coordinates(30, 40)
    same, same_label, inside = transform(scale=(1, 1), flip=0)(image, label, 5)
    assert np.array_equal(same, image) and np.array_equal(same_label, label) and inside.all()


def test_unlabelled_images_stay_unlabelled():
    image, _ = coordinates(30, 40)
    _, label, inside = transform(crop=(50, 50))(image, None, 0)
    assert label is None and inside.shape == (50, 50)


def test_without_padding_a_crop_beyond_the_image_is_refused():
    image, label = coordinates(60, 80)
    augment = transform(crop=(40, 40), scale=(0.5, 2.0), pad=False)
    with pytest.raises(ConfigError, match=r"40x40.*60x80.*30x40.*data\.pad=true"):
        augment(image, label, 0)
    inside = transform(crop=(40, 40), scale=(0.7, 2.0), pad=False)(image, label, 0)[2]
    assert inside.all()


def test_labels_are_taken_at_pixel_centres():
    label = np.arange(6, dtype=np.int32)[None]
    assert resize_label(label, (1, 2)).tolist() == [[1, 4]]
    assert resize_label(label, (2, 12))[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64, bool])
def test_a_label_has_the_pixel_at_each_centre(dtype):
    """Also where a centre lies between two pixels, and OpenCV takes the one before it."""
    (height, width), size = (96, 92), (432, 414)
    large = np.random.default_rng(0).integers(0, 2 if dtype is bool else 30000, (100, 140))
    label = large.astype(dtype)[1 : 1 + height, 2 : 2 + width]
    label.flags.writeable = False  # as a file that is mapped into memory
    found = resize_label(label, size)
    assert found.dtype == dtype and found.shape == size
    columns = [int((x + 0.5) * (width / size[1])) for x in range(size[1])]
    for y, line in enumerate(found):
        row = label[int((y + 0.5) * (height / size[0]))]
        assert line.tolist() == [row[x] for x in columns]


def test_a_descending_scale_is_refused():
    with pytest.raises(ValueError, match="must come first"):
        DataConfig(name="toy", scale=(2.0, 0.5))


def test_ignore_indices_beyond_a_byte_fit():
    image, label = coordinates(10, 10)
    augment = TrainTransform(DataConfig(name="toy", crop=(20, 20)), ignore_index=-1)
    _, label, inside = augment(image, label, 0)
    assert (label[~inside] == -1).all()
