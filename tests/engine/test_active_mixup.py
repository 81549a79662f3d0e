"""Active mixup: pairs, images, scores, rounds, and a run that goes on where it was."""

import csv
import json

import cv2
import numpy as np
import pytest
import test_bad_input
import torch
from toy_run import teacher_net, toy_config

from segkd import registry
from segkd.config.schema import TeacherConfig
from segkd.data.reading import read_image
from segkd.engine import active_mixup as module
from segkd.engine.active_mixup import (
    WEIGHTS,
    active_mixup,
    confidence,
    least_confident,
    pair_at,
    pair_count,
)
from segkd.engine.mixup_plan import MixupPlan, mixed
from segkd.errors import ConfigError
from segkd.models.build import network_from_file

work, call = test_bad_input.work, test_bad_input.call  # fixtures
DRAW = np.random.default_rng(0)


def test_weights_are_those_of_the_paper():
    assert WEIGHTS == (0.3, 0.34, 0.38, 0.42, 0.46, 0.5, 0.54, 0.58, 0.62, 0.66, 0.7)


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_index_rotation_has_each_pair_once(count):
    rotated = [(j, (j - i) % count) for i in range(1, (count - 1) // 2 + 1) for j in range(count)]
    assert [pair_at(number, count) for number in range(pair_count(count))] == rotated
    unordered = {frozenset(pair) for pair in rotated}
    assert len(unordered) == len(rotated) and all(len(pair) == 2 for pair in unordered)
    assert count % 2 == 0 or len(unordered) == count * (count - 1) // 2


def test_a_thousand_images_have_the_papers_number_of_pairs():
    assert pair_count(1000) == 499_000


def test_mixed_images_are_rounded_to_bytes():
    first, second = DRAW.integers(0, 256, (2, 4, 10, 3), np.uint8)
    found = mixed(first, second, 0.34)
    assert found.dtype == np.uint8
    for position in np.ndindex(found.shape):
        exact = 0.34 * int(first[position]) + 0.66 * int(second[position])
        assert abs(int(found[position]) - exact) <= 0.5 + 1e-4
    cut = mixed(first, second, 0.3, "cutmix")
    assert (cut[:, :3] == first[:, :3]).all() and (cut[:, 3:] == second[:, 3:]).all()
    other = mixed(first, DRAW.integers(0, 256, (8, 20, 3), np.uint8), 0.5)
    assert other.shape == first.shape


def test_the_score_is_the_least_mean_of_the_largest_probability():
    student = teacher_net().eval()
    images = DRAW.integers(0, 256, (3, 16, 24, 3), np.uint8)
    pairs = [(0, 1), (2, 0)]
    for pair, found in zip(
        pairs, least_confident(student, lambda i: images[i], pairs), strict=True
    ):
        scores = {}
        for weight in WEIGHTS:
            image = mixed(images[pair[0]], images[pair[1]], weight)
            logits = student(torch.from_numpy(image).permute(2, 0, 1)[None]).logits[0].detach()
            highest = [
                float(logits[:, i, j].softmax(0).max()) for i, j in np.ndindex(*logits.shape[1:])
            ]
            scores[weight] = sum(highest) / len(highest)
        assert (found.first, found.second) == pair
        assert found.weight == min(scores, key=scores.get)
        assert found.confidence == pytest.approx(min(scores.values()), abs=1e-5)


def test_padding_does_not_count():
    student = teacher_net().eval()
    image = torch.from_numpy(DRAW.integers(0, 256, (1, 3, 9, 24), np.uint8))
    logits = student(image[:, :, [*range(9), *[8] * 7]]).logits[:, :, :1]
    expected = logits.softmax(1).amax(1).mean()
    torch.testing.assert_close(confidence(student, image)[0], expected)


@pytest.fixture
def config(tmp_path):
    data = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "images": 5}
    teachers = {"t": {"arch": "toy", "options": {"width": 8}}}
    return toy_config(tmp_path / "unused", data=data, teachers=teachers, methods={"kd": {}})


def test_rounds_add_the_least_confident_pairs(tmp_path, config):
    plan = MixupPlan(tmp_path / "out", rounds=2, queries=3, pool=6)
    lines = []
    rows = active_mixup(config, "t", plan, lines.append)
    assert [(row["round"], row["images"]) for row in rows] == [(0, 5), (1, 8), (2, 11)]
    assert "5 real images, 11 queries in all" in lines[0]
    seen = set()
    for number in (1, 2):
        listed = (plan.out / f"round{number}.txt").read_text().split()
        assert listed[5 + 3 * (number - 1) :] == [f"round{number}/{i:05d}" for i in range(3)]
        with open(plan.out / f"round{number}.csv") as file:
            chosen = list(csv.DictReader(file))
        values = [float(row["confidence"]) for row in chosen]
        assert values == sorted(values) and len(values) == 3
        for place, row in enumerate(chosen):
            pair = int(row["first"]), int(row["second"])
            assert pair not in seen
            seen.add(pair)
            first, second = (read_image(plan.out / f"images/real/{i:05d}.png") for i in pair)
            image = read_image(plan.out / f"images/round{number}/{place:05d}.png")
            assert (image == mixed(first, second, float(row["weight"]))).all()
            assert (plan.out / f"predictions/probabilities/round{number}/{place:05d}.npz").exists()
    summary = json.loads((plan.out / "runs/round2/summary.json").read_text())
    assert summary["training_images"] == {"labelled": 0, "unlabelled": 11}
    one, two = (network_from_file(plan.out / f"runs/round{n}")[0] for n in (0, 1))
    before = one.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in two.state_dict().items())


def test_it_goes_on_where_it_was_and_queries_nothing_twice(tmp_path, config, monkeypatch):
    plan = MixupPlan(tmp_path / "whole", rounds=1, queries=2, pool=4)
    whole = active_mixup(config, "t", plan, lambda line: None)
    plan = MixupPlan(tmp_path / "parts", rounds=1, queries=2, pool=4)
    queries, stop = [], 6
    add = module.PredictionStore.add

    def counted(self, teacher, name, image):
        queries.append(name)
        if len(queries) == stop:
            raise KeyboardInterrupt
        add(self, teacher, name, image)

    monkeypatch.setattr(module.PredictionStore, "add", counted)
    with pytest.raises(KeyboardInterrupt):
        active_mixup(config, "t", plan, lambda line: None)
    stop = 0
    assert active_mixup(config, "t", plan, lambda line: None) == whole
    assert len(queries) == 5 + 2 + 1 and len(set(queries)) == 7
    name = "round1/00001"
    files = [tmp_path / f"{one}/images/{name}.png" for one in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_random_pairs_are_the_baseline(tmp_path, config):
    plan = MixupPlan(tmp_path / "out", rounds=1, queries=3, select="random", images=4)
    rows = active_mixup(config, "t", plan, lambda line: None)
    assert rows[-1]["images"] == 7
    assert "1.0" in (plan.out / "round1.csv").read_text()


FIRST = {"rounds": 1, "queries": 2, "images": 4}
OTHERS = {
    "images": ({"images": 5}, "--images: 4 -> 5"),
    "queries": ({"queries": 3}, "--queries: 2 -> 3"),
    "mix": ({"mix": "cutmix"}, "--mix: mixup -> cutmix"),
    "select": ({"select": "random"}, "--select: confidence -> random"),
}


@pytest.fixture
def done(tmp_path, config):
    plan = MixupPlan(tmp_path / "out", **FIRST)
    return plan, active_mixup(config, "t", plan, lambda line: None)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("recorded", [True, False], ids=["plan", "files"])
@pytest.mark.parametrize(("options", "text"), OTHERS.values(), ids=OTHERS)
def test_other_options_are_refused_in_a_folder_that_was_begun(
    options, text, recorded, done, config
):
    plan, _ = done
    if not recorded:  # a folder of the former version
        plan.file.unlink()
    before = contents(plan.out)
    with pytest.raises(ConfigError) as caught:
        active_mixup(config, "t", MixupPlan(plan.out, **{**FIRST, **options}))
    assert text in str(caught.value) and "choose another folder: --out" in str(caught.value)
    assert contents(plan.out) == before


@pytest.mark.parametrize(
    ("options", "text"), [({"pool": 30}, "--pool: 20 -> 30"), ({"stride": 2}, "--stride: 4 -> 2")]
)
def test_what_files_do_not_tell_is_in_the_plan(options, text, done, config):
    with pytest.raises(ConfigError, match=text):
        active_mixup(config, "t", MixupPlan(done[0].out, **{**FIRST, **options}))


def test_the_same_plan_goes_on_also_without_its_file_and_with_more_rounds(done, config):
    plan, rows = done
    same = MixupPlan(plan.out, **FIRST, pool=20)  # the default, written out
    assert active_mixup(config, "t", same, lambda line: None) == rows
    plan.file.unlink()
    (plan.out / "round0.txt").write_text("real/00000\n" * 9)  # overwritten by other options
    assert active_mixup(config, "t", plan, lambda line: None) == rows
    assert len((plan.out / "round0.txt").read_text().split()) == 4
    more = MixupPlan(plan.out, **{**FIRST, "rounds": 2})
    assert active_mixup(config, "t", more, lambda line: None)[:2] == rows


def test_rounds_are_not_extended_to_more_steps(done, config):
    plan, _ = done
    before = contents(plan.out)
    longer = config.model_copy(update={"steps": config.steps + 2})
    with pytest.raises(ConfigError, match="depends on another run"):
        active_mixup(longer, "t", plan, str)
    assert contents(plan.out) == before


def test_options_of_mixing_may_be_corrected_before_pairs_are_chosen(tmp_path, config):
    with pytest.raises(ConfigError, match="1 rounds of --queries 50 need 50: lower it to"):
        active_mixup(config, "t", MixupPlan(tmp_path / "out", rounds=1, queries=50), str)
    plan = MixupPlan(tmp_path / "out", rounds=1, queries=2, select="random", mix="cutmix")
    assert [row["images"] for row in active_mixup(config, "t", plan, str)] == [5, 7]
    plan.file.write_text("[1")
    with pytest.raises(ConfigError, match=r"is damaged: .* Delete it"):
        active_mixup(config, "t", plan, str)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"queries": 50}, "3 rounds of --queries 50 need 150: lower it to"),
        ({}, {"queries": 2, "pool": 1}, "--pool 1: the 2 pairs of --queries are chosen among"),
        ({"methods": {}}, {}, "only a teacher: add one"),
        ({"methods": {"cwd": {}}}, {}, "methods.cwd: needs logits or .*methods.cwd=null"),
        ({"methods": {"unix": {}}}, {}, "methods.unix: makes new images"),
        ({"methods": {"kd": {"teacher": "u"}}}, {}, "its teacher is 'u'.*'t' alone. Leave it out"),
        ({}, {"images": 2}, "needs 3 images to mix or more, got 2"),
        ({"out": True}, {"rounds": 1, "queries": 2}, "has stored predictions already"),
    ],
)
def test_what_it_cannot_do(tmp_path, config, changes, options, message):
    if "methods" in changes:
        kinds = {name: registry.methods.get(name).Config for name in changes["methods"]}
        methods = {name: kinds[name](**keys) for name, keys in changes["methods"].items()}
        config = config.model_copy(update={"methods": methods})
    if "out" in changes:
        (tmp_path / "stored").mkdir()
        cv2.imwrite(str(tmp_path / "stored/a.png"), np.zeros((4, 4), np.uint8))
        stored = TeacherConfig(black_box={"predictions": tmp_path / "stored"})
        config = config.model_copy(update={"teachers": {"t": stored}})
    with pytest.raises(ConfigError, match=message):
        active_mixup(config, "t", MixupPlan(tmp_path / "out", **options), lambda line: None)
    assert not list(tmp_path.glob("out/*.*"))  # nothing was queried


def test_the_commands(work, call):
    teachers = "teachers={t: {arch: toy}, u: {arch: toy}}"
    code, text = call("query", "run.yaml", "data/images", teachers, "--out", "kept")
    assert code == 2 and "has the teachers t, u: name one with --teacher" in text
    code, text = call("query", "run.yaml", "data/images", teachers, "--teacher", "v")
    assert code == 2 and "has no 'v'" in text
    code, text = call(
        *("query", "run.yaml", "data/images", teachers, "--teacher", "t", "--out", "kept")
    )
    assert code == 0 and "4 new predictions of t, 0 were there" in text, text
    stored = "teachers={t: {black_box: {predictions: kept}}}"
    code, text = call("train", "run.yaml", "methods={kd: {}}", stored)
    assert code == 0, text
    one = "teachers={t: {arch: toy}}"
    code, text = call(
        *("active-mixup", "run.yaml", "methods={kd: {}}", one, "--out", "mixed"),
        *("--rounds", "1", "--queries", "2"),
    )
    assert code == 0 and "round 1: 6 images, 6 queries so far, mIoU" in text, text
    code, text = call("active-mixup", "run.yaml", one, "--mix", "blend")
    assert code == 2 and "--mix: got 'blend'. Known: mixup, cutmix" in text


def test_a_query_notices_a_teacher_that_was_trained_anew(work, call):
    code, text = call("train", "run.yaml", "out=first", "methods={}")
    assert code == 0, text
    asked = ("query", "run.yaml", "data/images", "teachers={t: {checkpoint: first}}")
    code, text = call(*asked, "--out", "kept")
    assert code == 0 and "4 new predictions" in text and "note:" not in text, text
    code, text = call(*asked, "--out", "kept")
    assert code == 0 and "0 new predictions of t, 4 were there" in text, text
    code, text = call("train", "run.yaml", "out=other", "methods={}", "seed=5")
    assert code == 0, text
    best = "checkpoints/best.pt"
    (work / "first" / best).write_bytes((work / "other" / best).read_bytes())
    code, text = call(*asked, "--out", "kept")
    assert code == 2 and "kept holds predictions of teachers.t.checkpoint as it was before" in text
    code, text = call(*asked, "--out", "others", "--top-k", "99")
    assert code == 0 and "note: --top-k 99: there are" in text, text
