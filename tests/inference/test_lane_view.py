import re

import pytest

from segkd.errors import DataError
from segkd.inference.lane_view import lane_view, note_on_size

DRAWN = {"metric": "culane", "cut_top": 32, "size": [128, 320], "squeeze": 1.5}
RESIZED = {"metric": "culane", "cut_top": 240, "size": [590, 1640], "resize": (144, 400)}


@pytest.mark.parametrize(
    ("facts", "camera", "seen"),
    [
        (DRAWN, (590, 1640), (96, 320)),
        (DRAWN, (1200, 1600), (96, 320)),
        (RESIZED, (720, 1280), (144, 400)),
    ],
)
def test_the_note_has_the_keys_that_show_images_as_in_training(facts, camera, seen):
    note = note_on_size(facts, camera, 0, None)
    assert f"trained on {seen[0]}x{seen[1]}" in note and f"sees {camera[0]}x{camera[1]}" in note
    cut, *resize = map(int, re.search(r"cut_top=(\d+) data\.resize=\[(\d+),(\d+)\]", note).groups())
    view = lane_view(facts, camera)
    assert cut == view.top + view.cut and tuple(resize) == seen
    assert not note_on_size(facts, camera, cut, seen)


def test_a_cut_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"data\.cut_top=590 leaves nothing of images of 590x1640"):
        note_on_size(DRAWN, (590, 1640), 590, None)


def test_images_of_the_same_size_need_no_note():
    assert not note_on_size(DRAWN, (128, 320), 32, None)
