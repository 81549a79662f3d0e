import cv2
import numpy as np
import torch

from segkd.data.palette import default_palette
from segkd.data.writing import write_image
from segkd.viz.overlay import TILE, blend, comparison_sheet, disagreement

PALETTE = default_palette(4)
CLASSES = ["road", "sky", "car", "tram"]


def make_scene(size=(40, 80), seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    label = np.zeros(size, np.uint8)
    label[: size[0] // 2] = 1
    label[-4:] = 255
    return image, label


def test_blend_mixes_image_and_class_colour():
    image, label = make_scene()
    mixed = blend(image, label, PALETTE, 0.25)
    expected = 0.75 * image[3, 5].astype(float) + 0.25 * PALETTE[1]
    assert mixed.dtype == np.uint8 and np.abs(mixed[3, 5] - expected).max() <= 0.5
    assert (blend(image, label, PALETTE, 1.0)[:20] == PALETTE[1]).all()


def test_void_is_striped_whatever_its_id():
    image, label = make_scene()
    mixed = blend(np.full_like(image, 90), label, PALETTE)
    assert len(np.unique(mixed[-4:].reshape(-1, 3), axis=0)) == 2
    signed = np.where(label == 255, -1, label.astype(np.int64))
    assert (blend(np.full_like(image, 90), signed, PALETTE) == mixed).all()


def test_image_is_brought_to_the_size_of_the_label():
    image, label = make_scene()
    assert blend(image[::2, ::2], label, PALETTE).shape == image.shape


def find_colour(sheet, color):
    return (sheet == np.array(color, np.uint8)).all(2)


def test_sheet_has_a_tile_per_image_and_column():
    scenes = [make_scene(seed=0), make_scene((60, 80), seed=1)]
    images, labels = (list(part) for part in zip(*scenes, strict=True))
    maps = [torch.full(label.shape, 2) for label in labels]
    sheet = comparison_sheet(
        images, labels, {"teacher": maps, "student": maps}, PALETTE, CLASSES, strength=1.0
    )
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    # Two tiles of 440 pixels width in each of two rows, and a legend square; one colour each.
    area = find_colour(sheet, PALETTE[2]).sum()
    assert abs(area - 2 * 440 * (220 + 330)) < 20 * 20
    assert area > 2 * 440 * (220 + 330)


def test_legend_names_only_what_occurs():
    image, label = make_scene()
    sheet = comparison_sheet([image], [label], {}, PALETTE, CLASSES, strength=1.0)
    assert find_colour(sheet, PALETTE[0]).any() and not find_colour(sheet, PALETTE[3]).any()


def test_without_labels_there_is_no_label_column():
    image, label = make_scene()
    with_label = comparison_sheet([image], [label], {"a": [label]}, PALETTE, CLASSES)
    without = comparison_sheet([image], [None], {"a": [label]}, PALETTE, CLASSES)
    assert with_label.shape[1] - without.shape[1] == 448
    mixed = comparison_sheet([image] * 2, [None, label], {"a": [label] * 2}, PALETTE, CLASSES)
    assert mixed.shape[1] == with_label.shape[1]


def test_titles_take_room():
    image, label = make_scene()
    plain = comparison_sheet([image], [label], {"a": [label]}, PALETTE, CLASSES)
    titled = comparison_sheet([image], [label], {"a\n78.3": [label]}, PALETTE, CLASSES, title="T")
    assert titled.shape[0] > plain.shape[0] + 50
    assert (titled[:40, :60] < 100).any()


def test_png_keeps_the_colours(tmp_path):
    image, _ = make_scene()
    write_image(tmp_path / "new" / "sheet.png", image)
    assert (cv2.imread(str(tmp_path / "new" / "sheet.png"))[..., ::-1] == image).all()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_a_column_shows_where_only_one_of_two_networks_is_right():
    image = np.zeros((1, 4, 3), np.uint8)
    label = np.array([[0, 0, 0, 255]])
    maps = {"kd\nmIoU 1.0": [np.array([[0, 1, 1, 1]])], "alone": [np.array([[1, 0, 1, 0]])]}
    drawn = disagreement(image, label, maps["kd\nmIoU 1.0"][0], maps["alone"][0], label != 255)
    expected = [[0, 158, 115], [213, 94, 0], [150, 150, 150], [0, 0, 0]]
    assert np.allclose(
        drawn[0], [[4 + 0.8 * part for part in c] for c in expected[:3]] + [[20] * 3], atol=1
    )
    plain = comparison_sheet([image], [label], maps, PALETTE, CLASSES)
    sheet = comparison_sheet([image], [label], maps, PALETTE, CLASSES, compared=tuple(maps))
    assert sheet.shape[1] == plain.shape[1] + TILE + 8
    for color in expected[:3]:
        assert (sheet == np.array(color)).all(2).any() and not (plain == np.array(color)).all(
            2
        ).any()
