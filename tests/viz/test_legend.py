"""Legends below pictures."""

import numpy as np

from segkd.viz.legend import legend_strip, with_legend

CLASSES = ("road", "sky", "a class with a rather long name")
PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)


def has(strip, color):
    return (strip == np.array(color)).all(2).any()


def test_the_picture_stays_and_shown_classes_are_below():
    picture = np.random.default_rng(0).integers(0, 60, (50, 640, 3)).astype(np.uint8)
    found = with_legend(picture, [0, 2], CLASSES, PALETTE)
    assert np.array_equal(found[:50], picture)
    strip = found[50:]
    assert strip.shape[1] == 640
    assert has(strip, PALETTE[0]) and has(strip, PALETTE[2]) and not has(strip, PALETTE[1])


def test_a_small_picture_is_enlarged_by_a_whole_factor():
    picture = np.arange(2 * 150 * 3, dtype=np.uint8).reshape(2, 150, 3)
    found = with_legend(picture, [1], CLASSES, PALETTE)
    assert found.shape[1] == 450
    assert np.array_equal(found[:6:3, ::3], picture)
    assert np.array_equal(found[2, 2::3], picture[0])


def test_pictures_of_one_size_stay_of_one_size_whatever_they_show():
    picture = np.zeros((50, 640, 3), np.uint8)
    names = [*CLASSES, *(f"class {k}" for k in range(30))]
    palette = np.arange(33 * 3, dtype=np.uint8).reshape(33, 3)
    shapes = {
        with_legend(picture, ids, names, palette, room=33).shape
        for ids in ([], [1], [2], range(12), range(33))
    }
    assert len(shapes) == 1
    assert with_legend(picture, [1], names, palette).shape < shapes.pop()


def test_many_classes_take_several_lines_and_all_have_their_colour():
    entries = tuple((f"class {k}", (k, 255 - k, 7)) for k in range(0, 250, 5))
    strip = legend_strip(entries, 600)
    assert all(has(strip, color) for _, color in entries)
    assert len(strip) > len(legend_strip(entries[:3], 600))


def test_names_are_written():
    empty, named = (legend_strip(((name, (9, 9, 9)),), 500) for name in ("", "road"))
    assert (empty != named).any()
