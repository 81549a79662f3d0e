import json
from pathlib import Path

import numpy as np
import pytest
from lane_trees import SIZE, lane, put_image, put_list, put_mask

from segkd.data.base import Sample
from segkd.data.bdd100k import BDD100K, BDD100KConfig, borders_of, centre_lines
from segkd.data.check import check_dataset
from segkd.data.loader import train_loader
from segkd.data.unlabeled import labels_as_told
from segkd.errors import DataError


def opened(root: Path, split: str = "train", **keys) -> BDD100K:
    return BDD100K(BDD100KConfig(name="bdd100k", root=root, **keys), split)


def label(
    vertices,
    types: str | None = None,
    direction: str = "parallel",
    kind: str = "single white",
    newer: bool = False,
):
    points = np.asarray(vertices, float).tolist()
    line = {"vertices": points, "types": types or "L" * len(points), "closed": False}
    attributes = {"laneDirection": direction, "laneStyle": "solid", "laneTypes": kind}
    if newer:  # the type is the category alone
        del attributes["laneTypes"]
    return {"id": "1", "category": kind, "attributes": attributes, "poly2d": [line]}


def put_set(
    root: Path, frames: dict[str, list], file: str = "labels/lane/polygons/lane_train.json"
):
    for name in frames:
        put_image(root / "images/100k/train" / name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    entries = [{"name": name, "labels": labels} for name, labels in frames.items()]
    (root / file).write_text(json.dumps(entries))


def centres(*labels) -> list[np.ndarray]:
    return centre_lines(borders_of({"name": "a.jpg", "labels": list(labels)}, "x.json"))


def test_two_borders_become_their_centre_line():
    (line,) = centres(label([[600, 300], [100, 700]]), label([[140, 700], [608, 300]]))
    assert line[[0, -1]].tolist() == [[120, 700], [604, 300]]
    assert line[:, 1].tolist() == sorted(line[:, 1], reverse=True)


@pytest.mark.parametrize("value", [None, 7, True, "x", ["x"], [[None, 1]], {"a": 1}])
@pytest.mark.parametrize("key", ["name", "labels", "label", "attributes", "poly2d", "vertices"])
def test_values_of_a_wrong_type_are_named_with_file_and_image(tmp_path, key, value):
    put_set(tmp_path, {"a.jpg": [label([[600, 300], [100, 700]])]})
    path = tmp_path / "labels/lane/polygons/lane_train.json"
    frames = json.loads(path.read_text())
    line = frames[0]["labels"][0]
    if key == "label":
        frames[0]["labels"] = [value]
    else:
        owner = {"name": frames[0], "labels": frames[0], "vertices": line["poly2d"][0]}
        owner.get(key, line)[key] = value
    path.write_text(json.dumps(frames))
    fine = [("labels", None), ("attributes", None)]  # nothing is annotated
    fine += [("name", "x"), ("label", {"a": 1}), ("attributes", {"a": 1})]  # something else is
    if (key, value) in fine:
        return
    with pytest.raises(DataError, match=r"lane_train\.json, (frame 1|a\.jpg).*Fetch"):
        opened(tmp_path).annotation(0)


def test_every_point_has_its_letter(tmp_path):
    put_set(tmp_path, {"a.jpg": [label([[600, 300], [100, 700]], types="L")]})
    with pytest.raises(DataError, match=r"label 1: 2 vertices have 1 types; expected one letter"):
        opened(tmp_path).annotation(0)


def test_the_nearest_border_is_the_partner():
    """Two markings close to each other: borders at 100 and 110, at 122 and 132."""
    borders = [label([[x, 700], [x, 600]]) for x in (110, 122, 100, 132)]
    assert sorted(line[0, 0] for line in centres(*borders)) == [105, 127]


def test_borders_far_apart_or_of_other_length_stay_alone():
    assert len(centres(label([[100, 700], [300, 400]]), label([[400, 700], [350, 400]]))) == 2
    assert len(centres(label([[100, 700], [300, 400]]), label([[110, 690], [130, 660]]))) == 2
    assert len(centres(label([[100, 400], [300, 300]]), label([[130, 400], [330, 300]]))) == 2


@pytest.mark.parametrize("rows", [(260, 135), (225, 100)], ids=["far end", "near end"])
def test_a_border_may_end_equally_early_at_both_ends(rows):
    """So high in the image that all rows allow the same distance; points are 10 px apart."""
    border = np.array([[100.0, 260], [100, 100]])
    assert len(centre_lines([border, border + np.array([8, 0])])) == 1
    assert len(centre_lines([border, np.array([[108.0, rows[0]], [108, rows[1]]])])) == 2


@pytest.mark.parametrize("newer", [False, True])
def test_lines_across_the_road_are_no_lanes(newer):
    across = label([[0, 600], [700, 600]], direction="vertical", newer=newer)
    crosswalk = label([[0, 600], [700, 640]], kind="crosswalk", newer=newer)
    assert centres(across, crosswalk, {"category": "car"}) == []
    assert len(centres(label([[0, 600], [700, 640]], newer=newer))) == 1


def test_bezier_pieces_are_followed():
    (line,) = centres(label([[0, 600], [0, 500], [100, 400], [200, 400], [300, 300]], "LCCCL"))
    half = 0.375 * 500 + 0.375 * 400 + 0.125 * (600 + 400)  # y of the curve at t = 0.5
    assert abs(np.interp(half, line[::-1, 1], line[::-1, 0]) - (0.375 * 100 + 0.125 * 200)) < 1
    assert line[-1].tolist() == [300, 300] and line[0].tolist() == [0, 600]


def test_a_label_without_types_is_named():
    broken = label([[0, 600], [10, 500]])
    del broken["poly2d"][0]["types"]
    with pytest.raises(DataError, match=r"x\.json, a\.jpg, label 1: poly2d has no key types"):
        centres(broken)


@pytest.mark.parametrize(
    "file", ["labels/lane/polygons/lane_train.json", "labels/bdd100k_labels_images_train.json"]
)
def test_painted_lanes(tmp_path, file):
    lines = [label(lane(50)), label(lane(110)), label([[0, 30], [20, 30]], direction="vertical")]
    put_set(tmp_path, {"a.jpg": lines, "b.jpg": []}, file)
    dataset = opened(tmp_path)
    sample, annotation = dataset.read(0), dataset.annotation(0)
    assert dataset.classes == ("background", "lane") and set(np.unique(sample.label)) == {0, 1}
    assert len(annotation.lanes) == 2 and annotation.size == SIZE
    width = [(m[40] > 0).sum() / 2 for m in (sample.label, annotation.pixels)]
    assert 7 < width[0] < 11 and 2 <= width[1] <= 4  # 8 and 2 px, slanted
    assert not dataset.read(1).label.any() and dataset.read(1).lanes == (None,)
    assert not dataset.annotation(1).pixels.any()
    report = check_dataset(dataset)
    assert report.ok and report.exist.tolist() == [1]


def test_lines_of_one_slot_survive_the_loader(tmp_path):
    put_set(tmp_path, {"a.jpg": [label(lane(50)), label(lane(110))]})
    dataset = opened(tmp_path, scale=(1, 1), flip=1.0)
    keys = {"batch_size": 2, "seed": 0, "start": 0, "stop": 1}
    (batch,) = train_loader(dataset, config=dataset.config, **keys)
    points = batch.extra["lanes"][0, 0].numpy()
    assert batch.extra["exist"].tolist() == [[1], [1]] and points.shape == (13, 2)
    assert np.isnan(points).all(axis=1).tolist() == [False] * 6 + [True] + [False] * 6
    mask = batch.labels[0].numpy()
    assert all(mask[round(y), round(x)] == 1 for x, y in points if np.isfinite(x))


def test_lists_and_masks_of_enet_sad(tmp_path):
    put_image(tmp_path / "images/100k/train/a.jpg")
    mask = np.zeros(SIZE, np.uint8)
    mask[20:40, 30:34] = 255
    put_mask(tmp_path / "train_label/final_train/a.png", mask)
    line = "/train_img/train/a.jpg /train_label/final_train/a.png 1 1 1 1"
    put_list(tmp_path, "train_gt_bdd.txt", [line])
    dataset = opened(tmp_path, cut_top=5)
    sample: Sample = dataset.read(0)
    assert np.array_equal(sample.label, (mask[5:] > 0)) and sample.lanes == (None,)
    assert np.array_equal(dataset.annotation(0).pixels, mask > 0)
    assert check_dataset(dataset).ok
    (tmp_path / "train_label/final_train/a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: the annotation is missing"):
        dataset.annotation(0)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert BDD100K.expected_tree in str(caught.value)
    put_image(tmp_path / "images/100k/train/a.jpg")
    with pytest.raises(DataError, match=r"nothing found at .*lane_train\.json"):
        opened(tmp_path)
    put_set(tmp_path, {"b.jpg": []})
    with pytest.raises(DataError, match=r"lane_train\.json: has no entry for a\.jpg"):
        opened(tmp_path).read(0)
    (tmp_path / "labels/lane/polygons/lane_train.json").write_text('[{"labels": []}]')
    with pytest.raises(DataError, match="frame 1: the key name is missing"):
        opened(tmp_path)


def test_the_data_is_binary():
    with pytest.raises(ValueError, match="num_lanes"):
        BDD100KConfig(name="bdd100k", num_lanes=4)


def test_images_without_an_entry_are_unlabelled_where_labels_are_optional(tmp_path):
    put_set(tmp_path, {"a.jpg": [label([[600, 300], [100, 700]])]})
    put_image(tmp_path / "images/100k/train/b.jpg")
    dataset = opened(tmp_path, labels="optional")
    data = labels_as_told(dataset, dataset.config)
    assert len(data) == 2 and data.unlabelled == 1
    assert [data.read(index).label is None for index in range(2)] == [False, True]
