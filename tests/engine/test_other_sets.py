"""``eval.others``: sets that a run never sees are scored at its end, with the student's classes."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch
from toy_lanes import ToyBdd, ToyLanes, ToyTusimple, oracle, toy_set
from toy_recipes import toy_recipe
from toy_run import CLASSES, ToyData, teacher_net, toy_config

from segkd import registry
from segkd.api import evaluate
from segkd.config.other_sets import OtherSet
from segkd.config.schema import EvalConfig, RunConfig
from segkd.data.base import DataConfig, Sample
from segkd.engine import recipe_report
from segkd.engine.other_sets import open_other
from segkd.engine.recipe import run_recipe
from segkd.engine.run import train_run
from segkd.engine.setup import open_dataset
from segkd.errors import ConfigError
from segkd.evaluation.evaluator import evaluate_network
from segkd.runtime import Runtime


class Renamed(ToyData):
    """The toy set with its classes in another order, under the same names."""

    name = "toy_renamed"
    classes = CLASSES[::-1]

    class Config(ToyData.Config):
        pass

    def read(self, index):
        sample = super().read(index)
        label = np.where(sample.label == 255, 255, 3 - sample.label)
        return Sample(sample.image, label.astype(np.uint8), sample.name)


class Coarse(ToyData):
    """Three classes: sky, ground (road and car), and one that the student does not know."""

    name = "toy_coarse"
    classes = ("sky", "street", "moon")
    palette = ToyData.palette[:3]

    class Config(ToyData.Config):
        pass

    def read(self, index):
        sample = ToyData(self.config, self.split).read(index)
        label = np.full_like(sample.label, 255)
        for mine, theirs in ((0, 0), (1, 1), (3, 2)):
            label[sample.label == mine] = theirs
        return Sample(sample.image, label, sample.name)


@pytest.fixture(autouse=True)
def known_sets(monkeypatch):
    for one in (Renamed, Coarse):
        registry.datasets.add(one)
    for name in ("comparison_plot", "draw_pictures"):
        monkeypatch.setattr(recipe_report, name, lambda *args, **options: None)


def others(**sets):
    return {"every": 0, "others": sets}


def opened(tmp_path, **keys):
    config = toy_config(tmp_path, eval=others(far=keys))
    own = open_dataset(config, "val")
    return open_other("far", config.eval.others["far"], config, own)


def test_a_run_scores_other_sets_as_segkd_eval_does(tmp_path):
    sets = others(more={"images": 11}, train={"split": "train"}, renamed={"name": "toy_renamed"})
    summary = train_run(toy_config(tmp_path / "run", eval=sets))
    stored = json.loads((tmp_path / "run/summary.json").read_text())
    assert stored["others"] == summary["others"] and list(stored["others"]) == list(sets["others"])
    for name, override in (("more", "data.images=11"), ("train", "data.val_split=train")):
        expected = evaluate(tmp_path / "run", overrides=[override])
        assert stored["others"][name]["miou"] == pytest.approx(expected.miou)
        assert stored["others"][name]["images"] == expected.images
    assert stored["others"]["more"]["images"] == 11
    # The same images; only the numbers of the classes differ.
    assert stored["others"]["renamed"]["miou"] == pytest.approx(stored["miou"])
    log = (tmp_path / "run/log.txt").read_text()
    assert "other set renamed: toy_renamed val, 7 images; classes in another order" in log
    assert "other sets: more mIoU" in log


def test_without_other_sets_nothing_changes(tmp_path):
    assert "others" not in train_run(toy_config(tmp_path / "run"))


def test_a_recipe_ends_in_a_table_with_the_gap_to_the_teacher(tmp_path):
    recipe = toy_recipe(tmp_path)
    runs = {
        name: run.model_copy(
            update={
                "config": RunConfig.model_validate(
                    run.config.model_dump(mode="json")
                    | {"eval": others(more={"images": 5}, train={"split": "train"})},
                    context={"own_parts": True},
                )
            }
        )
        for name, run in recipe.runs.items()
    }
    result = run_recipe(recipe.model_copy(update={"runs": runs}))
    with open(tmp_path / "toys/report/others.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "alone", "distilled"]
    own = [s["others"] for name, s in result["runs"].items() if "distilled" in name]
    for key in ("more", "train"):
        mean = sum(one[key]["score"] for one in own) / len(own)
        assert float(rows["distilled"][f"other/{key}"]) == pytest.approx(mean)
    table = (tmp_path / "toys/report/others.md").read_text()
    gap = 100 * (float(rows["teacher"]["mean"]) - float(rows["alone"]["mean"]))
    assert f"{gap:+.2f}" in table and "the others are only scored" in table
    taught = next(s for name, s in result["runs"].items() if "distilled" in name)
    assert taught["teachers"]["main"]["others"].keys() == {"more", "train"}


def test_other_classes_are_mapped_and_the_rest_is_void(tmp_path):
    table = {"sky": "sky", "street": "road", "moon": None}
    found = opened(tmp_path, name="toy_coarse", classes={"map": table})
    assert found.dataset.classes == CLASSES and found.missing == ("car", "tree")
    assert "void: moon" in found.about and "not scored: car, tree" in found.about
    for index in range(len(found.dataset)):
        raw = ToyData(found.dataset.config, "val").read(index).label
        label = found.dataset.read(index).label
        assert set(np.unique(label)) <= {0, 1, 255}
        assert ((label == 0) == (raw == 0)).all() and ((label == 1) == (raw == 1)).all()


def test_classes_that_a_set_lacks_are_not_part_of_its_score(tmp_path):
    found = opened(tmp_path, name="toy_coarse", classes={"map": {"sky": "sky", "street": "road"}})
    network, config = teacher_net(), toy_config(tmp_path)
    result = evaluate_network(network, found.dataset, config.eval, Runtime.single())
    labelled = [result.iou[name] for name in ("sky", "road")]
    facts = found.facts(result)
    assert facts["score"] == pytest.approx(sum(labelled) / 2)
    assert facts["missing_classes"] == ["car", "tree"]


def test_transforms_change_images_the_same_way_every_time(tmp_path):
    plain = opened(tmp_path)
    changed = opened(tmp_path, augment=[{"RandomBrightnessContrast": {"p": 1.0}}])
    turned = opened(tmp_path, augment=[{"HorizontalFlip": {"p": 1.0}}])
    first, again = changed.dataset.read(2), changed.dataset.read(2)
    assert (first.image == again.image).all() and (first.image != plain.dataset.read(2).image).any()
    assert (first.label == plain.dataset.read(2).label).all()
    assert (turned.dataset.read(2).label == plain.dataset.read(2).label[:, ::-1]).all()


def test_augmentation_of_the_training_is_not_that_of_other_sets(tmp_path):
    data = toy_config(tmp_path).data.model_copy(update={"augment": [{"HorizontalFlip": {}}]})
    assert OtherSet().data(data).augment == []


def test_keys_of_the_own_set_are_defaults_and_of_another_one_they_are_not(tmp_path):
    plain = toy_config(tmp_path).data.model_dump() | {"images": 4, "resize": (32, 48)}
    own = ToyData.Config.model_validate(plain)
    assert OtherSet.model_validate({"split": "train"}).data(own).images == 4
    another = OtherSet.model_validate({"name": "toy_coarse"}).data(own)
    assert another.images == 7 and another.resize == (32, 48) and isinstance(another, DataConfig)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"name": "toy_coarse"},
            r"has 3 classes, the student 4, and 2 .*\(street, moon\).*map: names",
        ),
        ({"name": "toy_coarse", "classes": {"map": {"sun": "sky"}}}, "the set has no class 'sun'"),
        ({"name": "toy_coarse", "classes": {"map": {"sky": "sea"}}}, "the data has no class 'sea'"),
        ({"name": "lanes"}, "is a set for lanes, but the run's own is for segmentation"),
        ({"augment": [{"RandomFogg": {}}]}, r"eval.others.far.augment.*RandomFog"),
        (
            {"name": "toy_coarse", "classes": {"from": ["a"], "map": {"sky": "sky"}}},
            "not the classes of 'toy_coarse'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_training(tmp_path, keys, text):
    with pytest.raises(ConfigError, match=text):
        opened(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"imagse": 3}, "unknown key.*images"),
        ({"images": "many"}, "valid integer"),
        ({"name": "toyy"}, "toyy"),
    ],
)
def test_mistakes_in_the_keys_are_found_with_the_config(tmp_path, keys, text):
    with pytest.raises(ValueError, match=text):
        toy_config(tmp_path, eval=others(far=keys))


def test_a_network_that_is_trained_is_left_as_it_was(tmp_path):
    """Scores of other sets come after the last step: the student is the same without them."""
    train_run(toy_config(tmp_path / "with", eval=others(more={"images": 11})))
    train_run(toy_config(tmp_path / "without"))
    both = [
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["student"]
        for name in ("with", "without")
    ]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])


def lanes_opened(tmp_path, kind, **keys):
    data = {"name": kind.name, "batch_size": 1, "workers": 0}
    config = toy_config(tmp_path, data=data, eval=others(far={"images": 3, **keys}))
    return open_other("far", config.eval.others["far"], config, toy_set(kind))


@pytest.mark.parametrize("kind", [ToyLanes, ToyTusimple, ToyBdd])
def test_lanes_in_changed_images_are_scored_where_they_are(tmp_path, kind):
    noise = [{"GaussNoise": {"std_range": [0.004, 0.004], "p": 1.0}}]
    plain, noisy = (lanes_opened(tmp_path, kind, augment=one) for one in ([], noise))
    assert not np.array_equal(plain.dataset.read(0).image, noisy.dataset.read(0).image)
    scores = [
        one.facts(evaluate_network(oracle(), one.dataset, EvalConfig(), Runtime.single()))
        for one in (plain, noisy)
    ]
    assert scores[1]["images"] == 3
    assert scores[1]["score"] == pytest.approx(scores[0]["score"], abs=0.05)
    assert scores[0]["score"] > 0
    assert pickle.loads(pickle.dumps(noisy.dataset)).metric == kind.metric  # as workers get it


def test_transforms_that_move_lanes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^eval\.others\.far\.augment: Affine may move lanes"):
        lanes_opened(tmp_path, ToyLanes, augment=[{"Affine": {"translate_percent": 0.1}}])
