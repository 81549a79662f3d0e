import numpy as np
import pytest

from segkd.errors import DataError
from segkd.metrics.culane import read_lanes


@pytest.mark.parametrize(
    "text, lanes",
    [
        ("", []),
        ("\n", [[]]),
        ("1 2 3 4\n\n5 6\n", [[[1, 2], [3, 4]], [], [[5, 6]]]),
        ("1 2 3 4", [[[1, 2], [3, 4]]]),
        ("1 2 3\n", [[[1, 2]]]),
        ("1 2 nan 4 5 6\n", [[[1, 2]]]),
        ("1 2 3 inf\n", [[[1, 2]]]),
        ("1 2 x 4\n7 8\n", [[[1, 2]], [[7, 8]]]),
        ("1 2\r\n\r\n", [[[1, 2]], []]),
        ("1.5.2 3 4,5\n", [[[1.5, 0.2], [3, 4]]]),
        ("1-2 +3 -4e1\n", [[[1, -2], [3, -40]]]),
        ("1 2 3e 4\n", [[[1, 2]]]),
        ("1_0 2\n", [[]]),
        ("1 2 1e999 4\n", [[[1, 2]]]),
        ("0x10 2\n", [[]]),
    ],
)
def test_text_is_read_like_a_stream(text, lanes):
    found = [lane.tolist() for lane in read_lanes(text.encode())]
    assert found == [np.float32(lane).tolist() for lane in lanes]


def test_files_and_texts(tmp_path):
    file = tmp_path / "a.lines.txt"
    file.write_text("1 2 3 4\n")
    for source in (file, str(file), "1 2 3 4\n", "1 2 3 4", b"1 2 3 4\n"):
        [lane] = read_lanes(source)
        assert lane.dtype == np.float32 and lane.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match=r"b\.lines\.txt: cannot be read: No such file"):
        read_lanes(str(tmp_path / "b.lines.txt"))


def test_strict_reading_names_file_and_line(tmp_path):
    file = tmp_path / "a.lines.txt"
    file.write_text("1 2 3 4\n1 2 three 4\n")
    with pytest.raises(DataError, match=r"a\.lines\.txt, line 2: '1 2 three 4'"):
        read_lanes(file, strict=True)
    assert len(read_lanes("1 2\n\n", strict=True)) == 2
    with pytest.raises(DataError, match="line 1"):
        read_lanes("1 2 3\n", strict=True)
