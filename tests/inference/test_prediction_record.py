"""What `segkd predict` wrote is scored as what it is, or refused."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from segkd.data.cityscapes import CLASSES, TO_LABEL_ID
from segkd.errors import CheckpointError, ConfigError, DataError
from segkd.evaluation.segmentation_files import score_files
from segkd.inference.label_formats import CITYSCAPES, format_of
from segkd.inference.prediction_files import PredictionFiles, Wanted
from segkd.inference.prediction_record import as_recorded, label_maps

TRUTH = np.arange(19, dtype=np.uint8).repeat(20).reshape(19, 20)
NAME = "ulm_000001_000019"


def labels(root):
    path = root / "gtFine/ulm" / f"{NAME}_gtFine_labelIds.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), TO_LABEL_ID[TRUTH])
    return root / "gtFine"


def predicted(root, format, classes=CLASSES, label=TRUTH):
    palette = np.arange(3 * len(classes), dtype=np.uint8).reshape(-1, 3)
    files = PredictionFiles(root / "out", Wanted(format=format), classes, palette)
    files.write_facts()
    files.write(f"{NAME}_leftImg8bit.png", np.zeros((*label.shape, 3), np.uint8), label)
    return root / "out"


def score(root, out, form=CITYSCAPES):
    folder = label_maps(out)
    form, told = as_recorded(form, folder)
    return score_files(labels(root), folder, form, workers=1), told


@pytest.mark.parametrize("format", ["labels", "palette", "cityscapes"])
def test_every_format_is_read_as_it_was_written(format, tmp_path):
    result, told = score(tmp_path, predicted(tmp_path, format))
    assert result.miou == 1 and result.unused == 0 and "format.json says" in told


def test_the_order_of_the_classes_is_that_of_the_record(tmp_path):
    classes = CLASSES[::-1]
    out = predicted(tmp_path, "labels", classes, 18 - TRUTH)
    assert score(tmp_path, out)[0].miou == 1


def test_contradictions_are_refused(tmp_path):
    out = predicted(tmp_path, "cityscapes") / "labels"
    with pytest.raises(ConfigError, match=r"holds ids of cityscapes.*without --class-ids"):
        as_recorded(replace(CITYSCAPES, class_ids=True), out)
    other = predicted(tmp_path / "b", "labels", tuple("abcdefghijklmnopqrs"))
    with pytest.raises(CheckpointError, match="other classes"):
        as_recorded(CITYSCAPES, other / "labels")
    (other / "format.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="does not say what the label maps hold"):
        as_recorded(CITYSCAPES, other / "labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "format is null; expected a text"),
        ('{"format": null, "classes": []}', "format is null; expected a text"),
        ('{"format": "labels", "classes": null}', "classes is null; expected a list of names"),
        ('{"format": "labels", "classes": "abc"}', "classes is a text; expected a list of names"),
        ('{"format": "labels", "classes": [null]}', "classes is a list of other things"),
        ('{"format": "x", "classes": []}', "unknown format 'x'"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("\x81", "is not valid UTF-8"),
    ],
)
def test_a_record_of_wrong_types_is_named_with_its_key(text, message, tmp_path):
    folder = predicted(tmp_path, "labels")
    (folder / "format.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"format\.json.*{message}.*"):
        as_recorded(CITYSCAPES, folder / "labels")


def test_class_ids_without_a_record_are_noticed(tmp_path):
    out = predicted(tmp_path, "labels")
    (out / "format.json").unlink()
    with pytest.raises(DataError, match=r"holds ids 0 to 18.*Add --class-ids"):
        as_recorded(CITYSCAPES, out / "labels")
    assert as_recorded(replace(CITYSCAPES, class_ids=True), out / "labels")[1] == ""
    cv2.imwrite(str(out / "labels" / f"{NAME}_leftImg8bit.png"), TO_LABEL_ID[TRUTH])
    assert as_recorded(CITYSCAPES, out / "labels") == (CITYSCAPES, "")


@pytest.mark.parametrize("first", [0, 1])
def test_class_ids_of_ade20k_without_a_record_are_told(first, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "a.png"), TRUTH + first)
    form = format_of("ade20k")
    assert as_recorded(form, tmp_path) == (form, "")
    told = [one.message for one in caplog.records]
    assert len(told) == (not first) and all(text.endswith("add --class-ids") for text in told)
    as_recorded(replace(form, class_ids=True), tmp_path)
    cv2.imwrite(str(tmp_path / "b.png"), np.full((2, 2), 150, np.uint8))
    as_recorded(form, tmp_path)
    assert len(caplog.records) == (not first)


def test_older_probabilities_are_not_left_beside_new_label_maps(tmp_path):
    """A `black_box` reads probabilities first, which may be of another student."""
    (tmp_path / "probabilities").mkdir()
    (tmp_path / "probabilities/a.npz").write_bytes(b"x")
    files = PredictionFiles(tmp_path, Wanted(), ("road", "sky"), np.zeros((2, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"probabilities is of an earlier .* --probabilities"):
        files.write_facts()
    assert not (tmp_path / "classes.json").exists()
    wanted = Wanted(probabilities="npz")
    PredictionFiles(tmp_path, wanted, ("road", "sky"), np.zeros((2, 3), np.uint8)).write_facts()


def test_predictions_of_other_classes_are_not_renamed(tmp_path):
    palette = np.zeros((2, 3), np.uint8)
    for wanted in (Wanted(), Wanted(probabilities="npz")):
        folder = tmp_path / str(wanted.probabilities)
        PredictionFiles(folder, wanted, ("road", "car"), palette).write_facts()
        other = PredictionFiles(folder, wanted, ("car", "road"), palette)
        other.write_facts()  # nothing is there yet
        kind = "probabilities" if wanted.probabilities else "labels"
        (folder / kind).mkdir()
        (folder / kind / "a.png").write_bytes(b"x")
        other.write_facts()
        before = (folder / "classes.json").read_bytes()
        with pytest.raises(ConfigError, match="holds predictions of other classes, or in another"):
            PredictionFiles(folder, wanted, ("road", "car"), palette).write_facts()
        assert (folder / "classes.json").read_bytes() == before


def test_annotations_beside_images_are_not_replaced(tmp_path):
    """``segkd predict RUN data/images/a.png --out data`` wrote over data/labels/a.png."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(b"mine")
    given = ("road", "sky"), np.zeros((2, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"labels holds files that `segkd predict` did not write"):
        PredictionFiles(tmp_path, Wanted(), *given).write_facts()
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    PredictionFiles(tmp_path, Wanted(labels=False), *given).write_facts()
