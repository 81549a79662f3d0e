import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segkd import cli
from segkd.data.cityscapes import TO_TRAIN_ID
from segkd.errors import ConfigError, DataError
from segkd.evaluation.segmentation_files import paired, score_files
from segkd.inference.label_formats import CITYSCAPES, format_of

cv2 = pytest.importorskip("cv2")
SIZE = (40, 64)
IDS = [0, 3, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 33]


def write(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), ids.astype(np.uint8))


def tree(folder, images=3):
    """Label ids of two cities; predictions in one folder, some of them of ids not evaluated."""
    for number in range(images):
        draw = np.random.default_rng(number)
        label = draw.choice(IDS, SIZE)
        guess = np.where(draw.random(SIZE) < 0.5, label, draw.choice([*IDS, 4, 30], SIZE))
        city, stem = ("aachen", "ulm")[number % 2], f"_{number:06d}_000019"
        write(folder / "gtFine" / city / f"{city}{stem}_gtFine_labelIds.png", label)
        write(folder / "guess" / f"{city}{stem}_pred_labelIds.png", guess)
    return folder / "gtFine", folder / "guess"


def official(labels, predictions):
    """Class and category scores of cityscapesscripts on the same files."""
    theirs = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", exc_type=ImportError
    )
    args = SimpleNamespace(**vars(theirs.args))
    args.evalInstLevelScore = args.JSONOutput = False
    args.quiet, args.evalLabels = True, []
    args.predictionPath, args.predictionWalk = str(predictions), None
    files = sorted(map(str, labels.rglob("*_gtFine_labelIds.png")))
    theirs.CSUPPORT = False
    return theirs.evaluateImgLists(
        [theirs.getPrediction(args, file) for file in files], files, args
    )


def test_equals_cityscapesscripts(tmp_path):
    labels, predictions = tree(tmp_path)
    result = score_files(labels, predictions, workers=1)
    expected = official(labels, predictions)
    ours, categories = result.iou, result.categories
    for name in CITYSCAPES.classes:
        value = expected["classScores"][name]
        assert ours[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name
    assert math.isnan(ours["motorcycle"]) and 0 < ours["bicycle"] < 1  # id 32 occurs nowhere
    for name, value in categories.items():
        assert value == pytest.approx(expected["categoryScores"][name], rel=1e-12), name
    facts = result.to_dict()
    assert facts["miou"] == pytest.approx(expected["averageScoreClasses"], rel=1e-12)
    assert facts["category_miou"] == pytest.approx(expected["averageScoreCategories"], rel=1e-12)
    assert facts["iou"]["motorcycle"] is None and facts["images"] == 3


def test_several_processes_count_the_same(tmp_path):
    labels, predictions = tree(tmp_path)
    seen = []
    result = score_files(labels, predictions, workers=2, progress=lambda *at: seen.append(at))
    assert np.array_equal(result.matrix, score_files(labels, predictions, workers=1).matrix)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_missing_prediction_is_named_and_all_wrong(tmp_path):
    labels, predictions = tree(tmp_path)
    whole = score_files(labels, predictions, workers=1)
    next(predictions.glob("ulm*")).unlink()
    write(predictions / "bonn_000009_000019.png", np.zeros(SIZE))
    result = score_files(labels, predictions, workers=1)
    assert result.missing == ["ulm_000001_000019_gtFine_labelIds.png"]
    assert result.unused == 1 and result.miou < whole.miou
    assert np.array_equal(result.matrix.sum(1), whole.matrix.sum(1))  # every pixel still counts


def test_two_predictions_for_one_label_are_refused(tmp_path):
    labels, predictions = tree(tmp_path)
    write(predictions / "more" / "ulm_000001_000019.png", np.zeros(SIZE))
    with pytest.raises(DataError, match=r"ulm_000001.*two predictions"):
        score_files(labels, predictions, workers=1)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((20, 32)), r"ulm_000001_000019_pred_labelIds.png is 20x32, but .*40x64"),
        (np.full(SIZE, 77), r"ulm_000001.*values 77 that are unknown in cityscapes.*label ids"),
        (np.full((*SIZE, 3), (1, 2, 3)), r"ulm_000001.*holds colours, expected ids"),
    ],
)
def test_bad_predictions_are_named(tmp_path, ids, message):
    labels, predictions = tree(tmp_path)
    write(predictions / "ulm_000001_000019_pred_labelIds.png", ids)
    with pytest.raises(DataError, match=message):
        score_files(labels, predictions, workers=1)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    labels, predictions = tree(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there are no files \*_gtFine_labelIds.png"):
        score_files(tmp_path / "empty", predictions)
    with pytest.raises(DataError, match="none of 0 files there"):
        score_files(labels, tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        score_files(labels, tmp_path / "nowhere")


def test_voc_palette_ade20k_and_camvid(tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    label = draw.integers(0, 11, SIZE).astype(np.uint8)
    guess = np.where(draw.random(SIZE) < 0.3, 0, label).astype(np.uint8)
    label[0], label[1] = 11, 0
    for name, void in (("camvid", 11), ("voc", 255), ("ade20k", 0)):
        form, shift = format_of(name), int(name == "ade20k")
        truth = np.where(label == 11, void, label + shift).astype(np.uint8)
        folders = [tmp_path / name / part for part in ("labels", "guess")]
        for folder, ids in zip(folders, (truth, guess + shift), strict=True):
            folder.mkdir(parents=True)
            picture = Image.fromarray(ids, "P" if name == "voc" else "L")
            if name == "voc":
                picture.putpalette(draw.integers(0, 256, 768).astype(np.uint8).tobytes())
            picture.save(folder / "2007_000032.png")
        result = score_files(*folders, form, workers=1)
        counted = label != 11
        for k in range(11):
            both = (counted & (label == k) & (guess == k)).sum()
            either = (counted & ((label == k) | (guess == k))).sum()
            assert result.matrix[k, k] == both
            assert result.iou[form.classes[k]] == pytest.approx(both / either)
        assert result.categories == {} and "category_iou" not in result.to_dict()


def test_a_folder_of_colours_declared_in_yaml(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        "masks: colors\nignore_colors: [[0, 0, 0]]\nsplits: {val: {images: x}}\n"
        "classes: [{name: road, colors: [[128, 64, 128]]}, {name: car, colors: [[0, 0, 142]]}]\n"
        "mask_ending: _mask.png\n"
    )
    colours = np.array([[128, 64, 128], [0, 0, 142], [0, 0, 0]], np.uint8)
    label, guess = np.zeros((2, 8, 8), int)
    label[:, 4:], label[0], guess[:, 6:] = 1, 2, 1
    write(tmp_path / "labels/a/one_mask.png", colours[label][..., ::-1])
    write(tmp_path / "guess/a/one.png", colours[guess][..., ::-1])
    result = score_files(tmp_path / "labels", tmp_path / "guess", format_of("folder", spec))
    assert result.iou == {"road": 28 / 42, "car": 14 / 28}


def test_predictions_of_class_ids(tmp_path):
    labels, predictions = tree(tmp_path)
    whole = score_files(labels, predictions, workers=1)
    for path in predictions.iterdir():
        ids = TO_TRAIN_ID[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        write(tmp_path / "classes" / path.name.replace("_pred_labelIds", "_leftImg8bit"), ids)
    by_class = replace(CITYSCAPES, class_ids=True)
    found = score_files(labels, tmp_path / "classes", by_class, workers=1)
    assert np.array_equal(found.matrix, whole.matrix)
    with pytest.raises(DataError, match="With --class-ids write 0 to 18"):
        score_files(labels, predictions, by_class, workers=1)


def test_what_predict_writes_for_a_folder_is_found(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        "classes: [{name: road, ids: [7]}, {name: car, ids: [26]}]\nmask_ending: _mask.png\n"
        "image_ending: _photo.jpg\nsplits: {val: {images: x}}\n"
    )
    write(tmp_path / "labels/one_mask.png", np.array([[7, 7, 26, 255]]))
    write(tmp_path / "guess/one_photo.png", np.array([[0, 1, 1, 1]]))
    form = replace(format_of("folder", spec), class_ids=True)
    found = score_files(tmp_path / "labels", tmp_path / "guess", form)
    assert found.iou == {"road": 1 / 2, "car": 1 / 2} and not found.missing


def test_formats_that_do_not_exist():
    with pytest.raises(ConfigError, match="Did you mean 'cityscapes'"):
        format_of("cityscape")
    with pytest.raises(ConfigError, match="--spec FILE"):
        format_of("folder")
    with pytest.raises(ConfigError, match="--spec FILE"):
        format_of("voc", Path("x.yaml"))


def test_the_command_prints_tables_and_json(tmp_path, capfd):
    labels, predictions = tree(tmp_path)
    arguments = ["score", "segmentation", "--labels", str(labels)]
    arguments += ["--predictions", str(predictions), "--workers", "1"]

    def call(*more):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, *more])
        return stop.value.code or 0, *capfd.readouterr()

    code, out, err = call()
    result = score_files(labels, predictions, workers=1)
    assert code == 0 and "3/3" in err
    for row in (f"mean {100 * result.miou:13.2f}", "construction", "motorcycle", "3 images"):
        assert row.split()[0] in out
    assert f"{100 * result.iou['road']:.2f}" in out and f"{100 * result.miou:.2f}" in out
    facts = json.loads(call("--json")[1])
    assert facts == json.loads(json.dumps(result.to_dict()))
    next(predictions.glob("aachen*")).unlink()
    assert "1 labels have no prediction" in call()[2]
    assert call("--dataset", "folder")[0] == 2


def folders(tmp_path, labels, predictions):
    """Label maps of 4 x 8 pixels of classes 0 and 1, by name."""
    for kind, names in (("labels", labels), ("guess", predictions)):
        for name in names:
            write(tmp_path / kind / name, np.arange(32).reshape(4, 8) % 2)
    return paired(tmp_path / "labels", tmp_path / "guess", format_of("camvid"))


def test_a_missing_prediction_is_not_replaced_by_that_of_an_image_of_the_same_name(tmp_path):
    pairs, unused = folders(tmp_path, ["a/0.png", "b/0.png"], ["a/0.png"])
    assert [found and found.parent.name for _, found in pairs] == ["a", None] and unused == 0
    with pytest.raises(DataError, match=r"would be the prediction for .* which have the same name"):
        folders(tmp_path / "flat", ["a/0.png", "b/0.png"], ["0.png"])
    pairs, _ = folders(tmp_path / "one", ["a/0.png", "b/1.png"], ["0.png", "1.png"])
    assert all(found is not None for _, found in pairs)


def test_two_labels_of_one_image_are_refused(tmp_path):
    """One of them was scored, whichever came last."""
    labels, predictions = tree(tmp_path)
    write(labels / "old" / "ulm_000001_000019_gtFine_labelIds.png", np.zeros(SIZE))
    with pytest.raises(DataError, match=r"old/ulm_000001.* and .*ulm/ulm_000001.* two labels of"):
        score_files(labels, predictions, workers=1)
