"""Names of written files."""

from segkd.inference.output_names import ambiguous_stems
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
