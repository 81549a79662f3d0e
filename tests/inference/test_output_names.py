"""Names of written files."""

import pytest

from segkd.errors import ConfigError
from segkd.inference.media import Source
from segkd.inference.output_names import ambiguous_stems, refuse_replacing, without_outputs
from segkd.inference.prediction_files import PredictionFiles, Wanted


def test_stems_that_several_images_have():
    names = ["a.png", "sub/a.png", "sub/a.jpg", "b.png", "000001", "000002"]
    assert ambiguous_stems(names) == {"sub/a"}
    assert ambiguous_stems(()) == frozenset()


def test_names_are_read_a_constant_number_of_times(tmp_path):
    """300,000 names took a quarter of an hour, as each was compared with all."""

    class Name(str):
        compared = 0

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

        def removesuffix(self, suffix):
            return Name(str.removesuffix(self, suffix))

    names = [Name(f"{number:06d}.png") for number in range(500)]
    PredictionFiles(tmp_path, Wanted(), ("road", "sky"), [[0, 0, 0], [9, 9, 9]], names)
    assert Name.compared < 10 * len(names)


def test_a_file_that_is_read_is_not_replaced_by_any_path_to_it(tmp_path):
    original = tmp_path / "in" / "a.png"
    original.parent.mkdir()
    original.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(original.parent)
    for output in (original, tmp_path / "link" / "a.png", tmp_path / "in" / ".." / "in" / "a.png"):
        with pytest.raises(ConfigError, match=r"in/a\.png is read, .* Give another --out"):
            refuse_replacing([tmp_path / "other.png", output], [tmp_path / "b.png", original])
    refuse_replacing([tmp_path / "other.png"], [original, tmp_path / "gone.png"])


def test_earlier_results_below_the_images_are_no_source_and_none_go_above(tmp_path):
    images = tmp_path / "data" / "images"
    names = ("a.png", "out/labels/a.png")
    source = Source(images, "folder", tuple(images / name for name in names), count=2)
    assert without_outputs(source, images / "out").names == ("a.png",)
    assert without_outputs(source, tmp_path / "elsewhere") == source
    with pytest.raises(ConfigError, match="is the folder of the images itself"):
        without_outputs(source, images)
    with pytest.raises(ConfigError, match="holds the folder of the images itself"):
        without_outputs(source, tmp_path / "data")  # whose `labels` may be annotations


def test_images_beside_earlier_results_stay_in_the_source(tmp_path):
    """``segkd predict RUN data --out data/val`` left the images of data/val out without a word."""
    names = ("train/a.png", "val/b.png", "val/labels/train/a.png", "val/legend.png")
    source = Source(tmp_path, "folder", tuple(tmp_path / name for name in names), count=4)
    kept = without_outputs(source, tmp_path / "val")
    assert kept.names == ("train/a.png", "val/b.png") and kept.count == 2
    results = Source(tmp_path, "folder", source.files[2:], count=2)
    with pytest.raises(ConfigError, match="all images there are results of an earlier prediction"):
        without_outputs(results, tmp_path / "val")
