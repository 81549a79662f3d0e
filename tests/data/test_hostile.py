"""Files of data with bytes cut, changed, put in or taken from elsewhere: read, or one message."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segkd.data.bdd100k import borders_of, centre_lines
from segkd.data.folder import FolderConfig, load_spec
from segkd.data.reading import detail_doubts, header_size, image_doubts, read_ids, read_image
from segkd.errors import SegKDError
from segkd.evaluation.culane_files import Scorer
from segkd.metrics.culane_text import read_list
from segkd.metrics.tusimple import evaluate_files
from segkd.texts import parse_json, read_text

FEW, MANY = 25, 500  # of each kind; docs/reliability.md says how many these are
ANNOTATED = {"raw_file": "a.jpg", "lanes": [[10, 20, -2], [-2, 5, 6]], "h_samples": [1, 2, 3]}
PREDICTED = {"raw_file": "a.jpg", "lanes": [[11, 21, 30]], "run_time": 1.5}
LINE = {"vertices": [[1, 2], [3, 4.5]], "types": "LL", "closed": False}
FRAME = {
    "name": "a.jpg",
    "labels": [{"attributes": {"laneDirection": "parallel"}, "poly2d": [LINE, LINE]}],
}


def picture(ending, mode="RGB", **options):
    draw, file = np.random.default_rng(0), io.BytesIO()
    pixels = Image.fromarray(draw.integers(0, 4, (9, 14, 3), dtype=np.uint8) * 60)
    pixels.convert(mode).save(file, ending, **options)
    return file.getvalue()


def look_at_image(path):
    header_size(path), image_doubts(path), detail_doubts(path), read_image(path)


def look_at_mask(path):
    read_ids(path)


def look_at_spec(path):
    load_spec(FolderConfig(name="folder", spec=path))


def look_at_annotations(path):
    path.with_name("p.json").write_text(json.dumps(PREDICTED))
    evaluate_files(path.with_name("p.json"), path)


def look_at_predictions(path):
    path.with_name("a.json").write_text(json.dumps(ANNOTATED))
    evaluate_files(path, path.with_name("a.json"))


def look_at_frames(path):
    frame = parse_json(read_text(path), str(path))
    if isinstance(frame, dict) and "name" in frame:
        centre_lines(borders_of(frame, str(path)))


def look_at_lanes(path):
    scorer = Scorer(["a.jpg"], path.parent)
    scorer.score_files(path.parent, workers=1)


KINDS = {  # file, its content, what reads it
    "png": ("x.png", picture("PNG"), look_at_image),
    "jpeg": ("x.jpg", picture("JPEG"), look_at_image),
    "progressive": ("x.jpg", picture("JPEG", progressive=True), look_at_image),
    "restarts": ("x.jpg", picture("JPEG", restart_marker_blocks=1), look_at_image),
    "mask": ("x.png", picture("PNG", "P"), look_at_mask),
    "tiff": ("x.tif", picture("TIFF", "P"), look_at_mask),
    "bmp": ("x.bmp", picture("BMP", "P"), look_at_mask),
    "gif": ("x.gif", picture("GIF", "P"), look_at_mask),
    "list": ("l.txt", b"/a/0.jpg /m/0.png 1 0 1 0\n/a/1.jpg\n\n", read_list),
    "spec": (
        "s.yaml",
        b"classes:\n- {name: a, ids: [0, 7]}\n- {name: b}\nignore: [255]\n"
        b"splits:\n  train: {images: i, masks: m}\n",
        look_at_spec,
    ),
    "tusimple": ("t.json", json.dumps(ANNOTATED).encode() + b"\n", look_at_annotations),
    "lanes": ("t.json", json.dumps(PREDICTED).encode() + b"\n", look_at_predictions),
    "bdd100k": ("b.json", json.dumps(FRAME).encode(), look_at_frames),
    "culane": ("a.lines.txt", b"1 2 3 4.5 100 200\n10 580 20 500 30 400\n", look_at_lanes),
}
PIECES = st.sampled_from(
    [
        *(b"", b"\0", b"\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xc4", b"IEND", b"\xff\xfe"),
        *(b"null", b"NaN", b"1e999", b"-", b"[", b"]", b"{", b'"', b"../", b"\n", b"true", b"[]"),
        *(b"9" * 400, b"[" * 2000, b"\xef\xbb\xbf", b"\xc3", "名".encode()),
    ]
)
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 40), PIECES | st.binary(max_size=6))


def changed(data, changes):
    """``data`` with pieces in the place of others, at relative positions."""
    for where, length, piece in changes:
        at = int(where * len(data))
        data = data[:at] + piece + data[at + length :]
    return data


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_with_their_name(kind, examples, tmp_path):
    name, content, look = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    look(path)  # as it is it can be read

    @settings(
        deadline=None,
        derandomize=True,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(changes=st.lists(CHANGES, min_size=1, max_size=3))
    def check(changes):
        path.write_bytes(changed(content, changes))
        try:
            look(path)
        except SegKDError as error:
            assert path.stem in str(error) and len(str(error)) < 1500

    check()
