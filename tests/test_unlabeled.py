"""Images without labels from the command line, the doctor, Python, and beside lane sets."""

import csv
import json

import cv2
import numpy as np
import pytest
import test_bad_input
import torch
from resuming import make_trainer
from toy_lanes import SIZE
from toy_run import CLASSES, teacher_net, toy_config

import segkd
from segkd.config.schema import ModelConfig
from segkd.engine.run import train_run
from segkd.errors import DataError
from segkd.models.build import build_network
from segkd.structures import Outputs

work, call = test_bad_input.work, test_bad_input.call  # fixtures
TEACHER = "teachers={main: {arch: toy}}"
KD = ["methods={kd: {}}", TEACHER, "data.unlabeled.root=frames"]


@pytest.fixture
def frames(work):
    """Three images beside the run of ``work``."""
    (work / "frames").mkdir()
    draw = np.random.default_rng(1)
    for number in range(3):
        image = draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        cv2.imwrite(f"frames/{number}.jpg", image)
    return work


def test_a_run_counts_its_images(frames, call):
    code, text = call("train", "run.yaml", *KD)
    assert code == 0, text
    assert "4 labelled and 3 unlabelled images; each step has 1 images of the training" in text
    summary = json.loads((frames / "runs" / "run" / "summary.json").read_text())
    assert summary["training_images"] == {"labelled": 4, "unlabelled": 3}


def test_the_doctor_counts_them_too(frames, call, quick_imports):
    code, text = call("doctor", "run.yaml", *KD, "--json")
    assert code == 0, text
    found = {one["about"]: one for one in json.loads(text)["findings"]}
    assert (
        "4 labelled and 3 unlabelled images; each step has 1" in found["unlabelled images"]["text"]
    )
    assert found["memory"]["level"] == "ok"


def test_the_doctor_warns_of_images_in_two_sets(frames, call, quick_imports):
    arguments = [*KD[:2], "data.unlabeled.root=data/images", "--json", "--quick"]
    code, text = call("doctor", "run.yaml", *arguments)
    warnings = [one for one in json.loads(text)["findings"] if one["level"] == "warning"]
    texts = [one["text"] for one in warnings if one["about"] == "unlabelled images"]
    assert code == 0 and len(texts) == 2
    assert texts[0].startswith("4 of 4 unlabelled images are also in the training split")
    assert "evaluation split" in texts[1]


def other_size(folder):
    cv2.imwrite("frames/0.jpg", np.zeros((40, 48, 3), np.uint8))


def no_image(folder):
    (folder / "frames" / "1.jpg").write_text("no image")


def no_mask(folder):
    (folder / "data" / "masks" / "1.png").unlink()


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["data.unlabeled.root=nowhere"], "there is no such folder: nowhere"),
        (None, ["data.unlabeled.root=runs.py"], "there is no such folder: runs.py"),
        (None, ["data.unlabeled.list=few.txt"], "there is no list file few.txt"),
        (None, ["data.unlabeled.sahre=0.3"], "unknown key 'sahre'"),
        (None, ["data.unlabeled.share=2"], "data.unlabeled.share: got 2, expected"),
        (None, ["data.unlabeled.share=many"], "data.unlabeled.share: got 'many', expected"),
        (None, ["data.unlabeled={split: trian}"], "no split 'trian'. Did you mean 'train'"),
        (None, ["data.unlabeled={name: camvd, split: x}"], "Did you mean 'camvid'"),
        (None, ["data.unlabeled={split: val, foo: 1}"], "data.unlabeled.foo: unknown key"),
        (None, ["data.unlabeled={split: val, flip: 1}"], "`flip` is a key of `data`"),
        (None, ["data.unlabeled=frames"], "data.unlabeled: got 'frames', expected"),
        (None, ["data.batch_size=1"], "each micro-step needs one of both"),
        (None, ["optim.accumulate=2"], "1 unlabelled and 1 other images: each micro-step"),
        (None, ["methods.kd.pseudo_labels=1.5"], "methods.kd.pseudo_labels: got 1.5"),
        (None, ["data.labels=some"], "expected 'required', 'optional' or 'none'"),
        (None, ["data.labels=none"], "the training images have none. Set task.weight=0"),
        (other_size, ["data.crop=null", "data.scale=[1,1]"], "differ in size"),
        (no_image, ["steps=3"], "1.jpg: cannot be read"),
        (no_mask, [], "data.labels=optional"),
    ],
)
def test_mistakes_are_told_in_one_message(frames, call, prepare, arguments, message):
    if prepare:
        prepare(frames)
    code, text = call("train", "run.yaml", *KD, *arguments)
    assert code == 2 and message in text and "Traceback" not in text, text
    assert text.count("error:") == 1


def test_images_of_another_size_are_cropped_alike(frames, call):
    other_size(frames)
    code, text = call("train", "run.yaml", *KD)
    assert code == 0, text


def test_a_split_without_some_masks(frames, call):
    no_mask(frames)
    arguments = ["data.labels=optional", "data.val_split=whole", *KD[:2]]
    (frames / "spec.yaml").write_text(
        test_bad_input.SPEC + "  whole: {images: images, masks: masks, list: whole.txt}\n"
    )
    (frames / "data" / "whole.txt").write_text("0\n3\n")
    code, text = call("train", "run.yaml", *arguments)
    assert code == 0 and "3 labelled and 1 unlabelled images" in text, text


# -- Python ----------------------------------------------------------------------------------------


def test_own_images_without_labels(tmp_path):
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 255, (32, 48, 3), np.uint8) for _ in range(3)]
    labels = [draw.integers(0, 4, (32, 48), np.uint8) for _ in range(3)]
    keys = {
        "student": {"arch": "toy"},
        "methods": {"kd": {}},
        "steps": 2,
        "out": str(tmp_path / "run"),
        "data": {"name": "arrays", "batch_size": 4, "workers": 0, "unlabeled": {"share": 0.25}},
        "runtime": {"device": "cpu", "threads": 1},
        "log": {"tensorboard": False},
    }
    sets = {"train_set": list(zip(images, labels, strict=True)), "unlabeled_set": images[:2]}
    sets |= {"val_set": sets["train_set"], "classes": CLASSES, "teachers": teacher_net()}
    summary = segkd.train(keys, **sets)
    assert summary["training_images"] == {"labelled": 3, "unlabelled": 2}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "each step has 3 images of the training split and 1 of the unlabelled set" in log
    with pytest.raises(DataError, match="unlabeled_set: has no images"):
        segkd.train(keys | {"out": str(tmp_path / "other")}, **sets | {"unlabeled_set": []})


# -- lanes -----------------------------------------------------------------------------------------


@pytest.fixture
def roads(tmp_path):
    (tmp_path / "roads").mkdir()
    draw = np.random.default_rng(1)
    for number in range(3):
        image = draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "roads" / f"{number}.png"), image)
    return tmp_path / "roads"


def lane_config(out, roads, share, **task):
    data = {"name": "toy_lanes", "batch_size": 4, "workers": 0, "resize": [64, 160]}
    losses = {"cross_entropy": {}, "lane_iou": {}, "existence": {}, "dice": {}}
    return toy_config(
        out,
        steps=2,
        data=data | {"rotation": 5.0, "unlabeled": {"root": str(roads), "share": share}},
        student={"arch": "toy", "exist_head": {"tap": "stage5"}},
        task={"losses": losses, **task},
        methods={"ld": {"threshold": 0.1}, "kd": {}},
    )


def lane_teacher():
    torch.manual_seed(1)
    return build_network(ModelConfig(arch="toy"), 5)


def test_lane_losses_leave_out_what_is_unknown(tmp_path, roads):
    config = lane_config(tmp_path / "run", roads, 0.5)
    trainer = make_trainer(config, teachers={"main": lane_teacher()})
    batch = next(iter(trainer._loader(0, 1, workers=0)))
    outputs = trainer.student.eval()(batch.images, taps=trainer.parts.taps)
    found = trainer.objective.task(outputs, batch)
    known = [0, 2]
    alone = batch.replace(
        images=batch.images[known],
        labels=batch.labels[known],
        not_padding=batch.not_padding[known],
        index=batch.index[known],
        extra={key: value[known] for key, value in batch.extra.items()},
        labelled=None,
    )
    own = Outputs(outputs.logits[known], exist=outputs.exist[known])
    expected = trainer.objective.task(own, alone)
    assert batch.labelled.tolist() == [True, False, True, False]
    assert found["existence"].count == 2 * 4
    for name, term in expected.items():
        torch.testing.assert_close(found[name].value, term.value)
        assert found[name].count == term.count > 0, name


def test_a_lane_run_without_labels_is_scored_by_f1(tmp_path, roads):
    config = lane_config(tmp_path / "run", roads, 1.0, weight=0)
    summary = train_run(config, teachers={"main": lane_teacher()})
    assert summary["score_name"] == "F1"
    assert summary["training_images"] == {"labelled": 0, "unlabelled": 3}
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [float(row["ld/ld"]) > 0 for row in csv.DictReader(file) if row["ld/ld"]] == [True]
