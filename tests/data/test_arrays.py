"""A caller's own arrays as a dataset."""

import numpy as np
import pytest

from segkd.data.arrays import Arrays
from segkd.errors import DataError

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_pairs_are_read_as_samples():
    label = np.arange(24).reshape(4, 6) % 3
    data = Arrays([(IMAGE, label), (IMAGE, None)], ["a", "b", "c"])
    assert len(data) == 2 and data.classes == ("a", "b", "c")
    assert np.array_equal(data.read(0).label, label)
    assert data.read(1).label is None
    assert len(np.unique(data.palette, axis=0)) == 3


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "has no pairs"),
        ([IMAGE], "sample 0 is not a pair"),
        ([{"image": IMAGE, "mask": None}], "sample 0 has the keys image, mask; expected a pair"),
        (
            [(IMAGE, np.zeros((4, 6, 1), int))],
            r"got a label of shape \(4, 6, 1\), expected \(H, W\)",
        ),
        ([(IMAGE, np.zeros((4, 6)))], "sample 0: got a label of float64, expected integers"),
    ],
)
def test_what_is_no_pair_is_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        Arrays(pairs, ["a"]).read(0)


def test_the_name_in_a_config_alone_is_refused_with_a_way_out():
    from segkd import registry
    from segkd.data.base import DataConfig

    with pytest.raises(DataError, match="is for Python"):
        registry.datasets.get("arrays")(DataConfig(name="arrays"), "train")
