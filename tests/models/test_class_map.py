"""Teachers that know other classes than the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_run import CLASSES, teacher_net, toy_config

from segkd.config.schema import ClassMap, TeacherConfig
from segkd.data.prediction_crops import cells, extra_key
from segkd.data.predictions import read_prediction
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.errors import ConfigError
from segkd.inference.store import PredictionStore
from segkd.methods.kd import kd_loss
from segkd.models.black_box import open_black_box
from segkd.models.class_map import (
    LeftOver,
    class_matrix,
    class_table,
    counted,
    log_shares,
    mapped,
    source_classes,
)
from segkd.models.frozen import BlackBox, average
from segkd.models.label_sets import label_set
from segkd.runtime import Runtime
from segkd.structures import Batch, Outputs

GIVEN = ["heaven", "street", "lorry", "car", "unicorn"]
TABLE = {"heaven": "sky", "street": "road", "lorry": "car", "car": "car", "unicorn": None}
TREE = CLASSES.index("tree")


def own_map(**keys):
    return ClassMap.model_validate({"from": GIVEN, "map": TABLE, **keys})


def test_probabilities_of_one_class_are_added_and_the_rest_is_normalised():
    table = class_table(own_map(), CLASSES, "toy")
    logits = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0]).view(1, 5, 1, 1)
    p = logits.flatten().softmax(0).tolist()
    shares = [p[0], p[1], p[2] + p[3], 1e-8]
    expected = torch.tensor([share / sum(shares) for share in shares])
    found = log_shares(mapped(logits.softmax(1), table.matrix())).exp()
    torch.testing.assert_close(found.flatten(), expected)
    assert table.unused == ["unicorn"] and table.unknown == ["tree"]
    assert table.text() == (
        "4 of its 5 classes are mapped (map): sky <- heaven; road <- street; car <- lorry, car; "
        "left over (renormalised, void above 0.9): unicorn; unknown to it: tree"
    )
    assert table.facts()["map"] == TABLE and table.facts()["unknown"] == ["tree"]


def test_nineteen_classes_as_eleven():
    theirs, ours = label_set("cityscapes").classes, label_set("camvid").classes
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(19, generator=draw)
    p = p / p.sum()
    by_name = dict(zip(theirs, p.tolist(), strict=True))
    groups = {"sky": ["sky"], "building": ["building"], "pole": ["pole"], "road": ["road"]}
    groups |= {"pavement": ["sidewalk"], "tree": ["vegetation", "terrain"]}
    groups |= {"sign symbol": ["traffic light", "traffic sign"], "fence": ["wall", "fence"]}
    groups |= {"car": ["car", "truck", "bus", "train"], "pedestrian": ["person"]}
    groups |= {"bicyclist": ["rider", "motorcycle", "bicycle"]}
    expected = torch.tensor([sum(by_name[one] for one in groups[name]) for name in ours])
    matrix = class_matrix(ClassMap(source="cityscapes"), ours, "camvid")
    found = log_shares(mapped(p.view(1, 19, 1, 1), matrix)).exp().flatten()
    torch.testing.assert_close(found, expected)


def test_the_data_may_have_another_name_order_or_spelling():
    ours = list(label_set("camvid").classes)
    plain = class_matrix(ClassMap(source="cityscapes"), ours, "camvid")
    named = ClassMap.model_validate({"from": "cityscapes", "to": "camvid"})
    assert torch.equal(class_matrix(named, ours, "folder"), plain)
    respelled = [name.title().replace(" ", "_") for name in ours[::-1]]
    assert torch.equal(class_matrix(named, respelled, "folder"), plain.flip(0))
    assert torch.equal(class_matrix(ClassMap(source="cityscapes"), respelled, ""), plain.flip(0))
    assert len(source_classes(ClassMap(source="bdd100k"))) == 19


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [True, True, False]),
        ({"most_left_over": 0.5}, [True, False, False]),
        ({"most_left_over": 1}, None),
        ({"left_over": "void"}, [True, False, False]),
    ],
)
def test_positions_where_much_is_left_over_are_void(keys, expected):
    table = class_table(own_map(**keys), CLASSES, "toy")
    left = torch.tensor([0.3, 0.6, 0.95])
    shares = torch.stack([0.5 * (1 - left), 0.5 * (1 - left), 0 * left, 0 * left, left])
    found = counted(shares.view(1, 5, 1, 3), table.matrix(), table.left_over)
    assert (found if expected is None else found.flatten().tolist()) == expected
    box = BlackBox(lambda images: shares.view(1, 5, 1, 3), 5)
    box.map_classes(table.matrix(), table.left_over)
    outputs = box(torch.zeros(1, 3, 1, 3, dtype=torch.uint8))
    known = None if expected is None else [[expected]]
    assert (None if outputs.known is None else outputs.known.tolist()) == known
    assert outputs.unknown == (TREE,)


def test_names_are_drafted_on_the_fly_without_guesses():
    config = ClassMap.model_validate({"from": ["Streets", "police car", "trees"], "map": "names"})
    table = class_table(config, CLASSES, "toy")
    assert table.table == {"Streets": "road", "police car": None, "trees": "tree"}
    assert "not used, as it is a guess: car <- police car" in table.text()
    assert "drafted from names" in table.text()


def test_a_table_may_be_a_file(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("heaven: sky\nstreet: road\nlorry: car\ncar: car\nunicorn:\n")
    found, expected = (
        class_matrix(ClassMap.model_validate({"from": GIVEN, "map": table}), CLASSES, "toy")
        for table in (str(path), TABLE)
    )
    assert torch.equal(found, expected)
    path.write_text("- heaven\n")
    with pytest.raises(ConfigError, match="expected lines `teacher's class: class`"):
        class_matrix(ClassMap.model_validate({"from": GIVEN, "map": str(path)}), CLASSES, "toy")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"map": {"streat": "road"}}, "the teacher has no class 'streat'. Did you mean 'street'"),
        ({"map": {"street": "raod"}}, "the data has no class 'raod'. Did you mean 'road'"),
        ({"map": {"street": None}}, "no class of the teacher is mapped"),
        ({"map": None}, "segkd has no table from .*heaven.*`segkd data map A B --write FILE`"),
        ({"map": "no/such.yaml"}, "no/such.yaml: cannot be read"),
        ({"from": "cityscapes", "map": None}, "no table to the classes of the data, .*'sky'"),
        ({"from": "cityscapes", "map": None, "to": "camvid"}, "they are not those of camvid"),
        ({"from": "cityscapes", "map": None, "to": "camvids"}, "Did you mean 'camvid'"),
        ({"from": "cityscape"}, "classes of 'cityscape'. Did you mean 'cityscapes'"),
        (
            {"from": ["gizmo", "gadget"], "map": "names"},
            "no class of the teacher is mapped .*gadget",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(keys, message):
    config = own_map(**keys)
    with pytest.raises(ConfigError, match=message):
        class_matrix(config, list(CLASSES), "toy")


def test_a_run_learns_from_logits_and_features_of_such_a_teacher(tmp_path):
    network = other_teacher()
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    methods = {"kd": {}, "fitnets": {"tap": "stage4"}}
    config = toy_config(tmp_path, teachers=teachers, methods=methods)
    parts = assemble(config, Runtime.single(), teachers={"main": network})
    outputs = parts.teachers(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["main"]
    assert outputs.kind == "log_prob" and outputs.logits.shape[1] == 4
    torch.testing.assert_close(outputs.logits.exp().sum(1), torch.ones(2, 4, 6))
    assert outputs.tap("stage4").shape[1] == 16
    of_logits = toy_config(tmp_path, teachers=teachers, methods={"cwd": {}})
    with pytest.raises(ConfigError, match="has other classes than the data and returns prob"):
        assemble(of_logits, Runtime.single(), teachers={"main": network})


@pytest.mark.parametrize("top_k", [None, 2])
def test_stored_predictions_remember_what_the_teacher_cannot_know(tmp_path, top_k):
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    config = toy_config(tmp_path, teachers=teachers, methods={"kd": {}})
    live = assemble(config, Runtime.single(), teachers={"main": other_teacher()}).teachers
    unknown = tuple(live.unknown("main"))
    store = PredictionStore(tmp_path / "kept", tuple(CLASSES), {}, 8, top_k, unknown=unknown)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    store.begin()
    store.add(live.alone("main"), "a.png", image)
    keys = {"black_box": {"predictions": str(tmp_path / "kept"), "stride": 8}}
    box = open_black_box("main", TeacherConfig.model_validate(keys), 4, CLASSES)
    assert box.unknown == (TREE,)
    kept = read_prediction(store.file("a.png"), 4)
    places = np.mgrid[0:32, 0:48] + 0.5
    found = cells(kept, (places[0], places[1]), (32, 48), 8, 4)
    parts = {
        extra_key("main", part): torch.as_tensor(getattr(found, part))[None]
        for part in ("listed", "tail", "known")
    }
    outputs = box.from_batch("main", parts)
    assert outputs.unknown == (TREE,)
    shares = outputs.logits.exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 4, 6))
    assert (shares[:, TREE] < 1e-6).all()
    if top_k is None:
        pixels = torch.as_tensor(image.transpose(2, 0, 1).copy())[None]
        expected = live(pixels)["main"].logits.exp()
        torch.testing.assert_close(shares, expected, atol=1e-3, rtol=0)
    else:
        assert outputs.tail.sum() > 0 and not outputs.tail[:, TREE].any()
    box.map_classes(torch.eye(4)[[3, 0, 1, 2]])  # the data has the classes in another order
    assert box.unknown == ([3, 0, 1, 2].index(TREE),)


def other_teacher():
    """A toy teacher of GIVEN."""
    network = teacher_net()
    network.classifier = torch.nn.Conv2d(24, 5, 1)
    network.num_classes = 5
    return network


def test_a_class_that_the_teacher_cannot_know_is_not_taught(tmp_path):
    """The gradient of a run is that of KL over the known classes, on pixels that belong to them."""
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    config = toy_config(tmp_path, teachers=teachers, methods={"kd": {"temperature": 2.0}})
    parts = assemble(config, Runtime.single(), teachers={"main": other_teacher()})
    assert "nothing" not in "".join(parts.warnings)
    assert any("no class of it maps to tree" in text for text in parts.warnings)
    labels = torch.tensor([0, 1, 2, TREE, 255, 255]).repeat_interleave(8).expand(2, 8, 48)
    student = torch.randn(2, 4, 1, 6)
    student[:, :, 0, 4], student[:, :, 0, 5] = torch.eye(4)[TREE] * 9, torch.eye(4)[1] * 9
    student.requires_grad_()
    images = torch.randint(0, 256, (2, 3, 8, 48), dtype=torch.uint8)
    # Without labels the student says what a pixel is.
    batch = Batch(images, labels, labels >= 0, torch.arange(2))
    unlabelled = replace(batch, labels=torch.full_like(labels, 255), labelled=labels[:, 0, 0] < 0)
    outputs = parts.teachers(images)["main"]
    assert outputs.unknown == (TREE,)
    known = [k for k in range(4) if k != TREE]
    for one, places in ((batch, [0, 1, 2]), (unlabelled, None)):
        if places is None:
            places = [
                i for i in range(6) if i != 4 and not (student[:, :, 0, i].argmax(1) == TREE).any()
            ]
            keep = student.argmax(1) != TREE
        else:
            keep = torch.zeros(2, 1, 6, dtype=torch.bool).index_fill(2, torch.tensor(places), True)
        (term,) = [
            t.term
            for t in parts.objective.terms(Outputs(student), {"main": outputs}, one, 0)
            if t.entry == "kd"
        ]
        expected = kd_loss(student[:, known], outputs.logits[:, known], mask=keep, temperature=2.0)
        torch.testing.assert_close(term.value, expected, rtol=1e-4, atol=1e-5)
        assert int(term.count) == int(keep.sum())
        (gradient,) = torch.autograd.grad(term.value, student)
        assert not gradient[:, TREE].any() and gradient[:, known].any()


def test_features_of_such_a_teacher_have_all_positions(tmp_path):
    """What is void for its probabilities is not so for its features."""
    shares = {"from": GIVEN, "map": {"car": "car"}, "left_over": "void"}
    teachers = {"main": {"arch": "toy", "classes": shares}}
    config = toy_config(
        tmp_path, teachers=teachers, methods={"fitnets": {"tap": "stage4"}, "kd": {}}
    )
    network = other_teacher()
    torch.nn.init.zeros_(network.classifier.weight)
    network.classifier.bias = torch.nn.Parameter(torch.tensor([5.0, 0, 0, 0, 0]))
    parts = assemble(config, Runtime.single(), teachers={"main": network})
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    outputs = parts.teachers(images)
    assert not outputs["main"].known.any()
    labels = torch.full((2, 32, 48), CLASSES.index("car"))
    batch = Batch(images, labels, labels >= 0, torch.arange(2))
    student = parts.student(images, taps=parts.taps)
    found = {t.entry: t.term for t in parts.objective.terms(student, outputs, batch, 0)}
    assert found["kd"].count == 0 and found["fitnets"].count > 0


def test_members_of_an_ensemble_complete_each_other():
    one = torch.tensor([0.5, 0.3, 0.2, 0.0]).view(1, 4, 1, 1)
    other = torch.tensor([0.1, 0.0, 0.5, 0.4]).view(1, 4, 1, 1)
    parts = [
        Outputs(one.clamp_min(1e-8).log(), unknown=(3,)),
        Outputs(other.clamp_min(1e-8).log(), unknown=(1,)),
    ]
    found = average(parts)
    # The first gets the other's 0.4 of the last class, the second 0.3 of the second.
    mine = [0.6 * 0.5, 0.6 * 0.3, 0.6 * 0.2, 0.4]
    theirs = [0.7 * 0.1, 0.3, 0.7 * 0.5, 0.7 * 0.4]
    expected = torch.tensor([(a + b) / 2 for a, b in zip(mine, theirs, strict=True)])
    torch.testing.assert_close(found.logits.exp().flatten(), expected)
    assert found.unknown == ()
    assert average([parts[0], parts[0]]).unknown == (3,)


def test_the_run_says_and_stores_what_becomes_of_each_class(tmp_path):
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    config = toy_config(tmp_path / "run", teachers=teachers, methods={"kd": {}}, steps=1)
    summary = train_run(config, teachers={"main": other_teacher()})
    facts = summary["teachers"]["main"]
    assert facts["class_map"]["map"] == TABLE and facts["class_map"]["unknown"] == ["tree"]
    assert 0 <= facts["miou_of_known"] <= 1 and facts["miou_of_known"] > facts["miou"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "teacher main: 4 of its 5 classes are mapped (map): sky <- heaven" in log
    assert "WARNING: teachers.main: no class of it maps to tree" in log
    assert "of the classes it knows" in log


def test_a_network_of_another_number_of_classes_is_refused(tmp_path):
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    config = toy_config(tmp_path, teachers=teachers, methods={"kd": {}})
    with pytest.raises(ConfigError, match="it has 4 classes, `classes` names 5"):
        assemble(config, Runtime.single(), teachers={"main": teacher_net()})


def test_a_rule_and_its_threshold_do_not_contradict():
    with pytest.raises(ValueError, match="Set one of both"):
        own_map(left_over="void", most_left_over=0.5)
    assert LeftOver() == class_table(own_map(), CLASSES, "toy").left_over


def test_the_config_survives_a_round_trip():
    config = TeacherConfig(arch="toy", classes={"from": "cityscapes", "map": {"road": "road"}})
    assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model().classes == []
