"""Classes of files in another order, with other names, or without names."""

import numpy as np
import pytest
import torch
from exported import images
from resuming import make_trainer
from torch import nn
from toy_run import CLASSES, ToyData, teacher_net, toy_config

import segkd
from segkd import checkpoint
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError
from segkd.evaluation.evaluator import Result
from segkd.models.build import build_network, network_from_file
from segkd.models.class_names import match_classes, order_of
from segkd.models.module import wrap

ORDER = [2, 0, 3, 1]  # the file's class at each place: car, sky, tree, road
THEIRS = [CLASSES[i] for i in ORDER]


def saved(path, network, classes=THEIRS, order=ORDER):
    """A student file whose classifier answers ``network``'s classes in another order."""
    rows = torch.tensor(order)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = state[key][rows]
    payload = {
        "format": "segkd-student-1",
        "model": network.config.model_dump(mode="json"),
        "weights": state,
        "classes": list(classes),
        "palette": [[number, 0, 0] for number in range(len(classes))],
    }
    checkpoint.save(path, payload)
    return path


def test_names_are_compared_as_people_write_them():
    assert order_of(["Traffic-Light", "a"], ["a", "traffic light"], "f") == [1, 0]
    assert order_of(["Car", "road"], ["car", "Road"], "f") == [0, 1]
    for given, wanted, message in (
        (["a", "b"], ["a", "c"], r"only in the file: b; only in the data: c; the file has 2"),
        (["a", "b"], ["a", "b", "c"], r"only in the data: c; the file has 2, the data has 3"),
        (["a", "a", "b"], ["a", "b", "b"], "other classes"),
    ):
        with pytest.raises(CheckpointError, match=message):
            order_of(given, wanted, "f")


def test_outputs_follow_the_names(tmp_path):
    network = teacher_net().eval()
    path = saved(tmp_path / "t.pt", network)
    given = images(2)
    with torch.no_grad():
        wanted = network(given).logits
        raw = network_from_file(path)[0](given).logits
        built = build_network(ModelConfig(checkpoint=str(path)), 4, CLASSES).eval()
        assert torch.equal(raw, wanted[:, ORDER])
        assert torch.equal(built(given).logits, wanted)
    assert "road" in built.classes_match or "sky" in built.classes_match


@pytest.mark.parametrize("arch", ["enet", "erfnet", "fpn", "unet", "deeplabv3", "segformer"])
def test_every_kind_of_classifier_is_reordered(arch):
    torch.manual_seed(0)
    network = build_network(ModelConfig(arch=arch), 4).eval()
    given = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = network(given).logits
        match_classes(network, CLASSES, THEIRS, "f")
        after = network(given).logits
    assert torch.allclose(after, before[:, ORDER], atol=1e-6)
    assert network.classes == tuple(THEIRS)


def test_a_run_maps_its_teacher_and_says_so(tmp_path):
    path = saved(tmp_path / "t.pt", teacher_net())
    config = toy_config(
        tmp_path / "run", teachers={"main": {"checkpoint": str(path)}}, methods={"kd": {}}
    )
    trainer = make_trainer(config)
    (warning,) = trainer.parts.warnings
    assert warning.startswith("teachers.main: its classes were reordered by name")
    with torch.no_grad():
        found = trainer.parts.teachers(images(2))["main"].logits
        assert torch.equal(found, teacher_net().eval()(images(2)).logits)
    other = saved(tmp_path / "o.pt", teacher_net(), ["sky", "road", "car", "pole"])
    config = toy_config(tmp_path / "run", teachers={"main": {"checkpoint": str(other)}})
    with pytest.raises(CheckpointError, match=r"teachers\.main: .*only in the file: pole"):
        make_trainer(config)


def test_a_student_that_begins_from_a_file_is_mapped_once(tmp_path):
    path = saved(tmp_path / "t.pt", teacher_net())
    config = toy_config(tmp_path / "run", student={"checkpoint": str(path)}, steps=1)
    summary = segkd.train(config)
    network = network_from_file(summary["name"])[0]
    assert network.classes == CLASSES and network.config.classes == []


def test_weights_without_names(tmp_path):
    network = teacher_net()
    state = {k: v[ORDER] if "classifier" in k else v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    keys = {"arch": "toy", "options": {"width": 8}, "checkpoint": str(tmp_path / "w.pth")}

    def run(**more):
        config = toy_config(tmp_path / "run", teachers={"main": keys | more}, methods={"kd": {}})
        trainer = make_trainer(config)
        with torch.no_grad():
            return trainer.parts.warnings, trainer.parts.teachers(images(2))["main"].logits

    with torch.no_grad():
        wanted = network.eval()(images(2)).logits
    warnings, plain = run()
    assert len(warnings) == 1 and "teachers.main.classes=[NAME, …]" in warnings[0]
    assert torch.equal(plain, wanted[:, ORDER])
    warnings, named = run(classes=THEIRS)
    assert torch.equal(named, wanted) and "reordered by name" in warnings[0]


class Scaled(nn.Conv2d):
    """A classifier with a factor per class after it."""

    def __init__(self):
        super().__init__(4, 4, 1)
        self.factor = nn.Parameter(torch.arange(1.0, 5.0).view(4, 1, 1))

    def forward(self, maps):
        return super().forward(maps) * self.factor


@pytest.mark.parametrize(
    "classifier",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
        Scaled,
    ],
)
def test_a_classifier_that_is_not_its_rows_is_refused(classifier):
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), classifier())
    network = wrap(module, 4)
    with pytest.raises(CheckpointError, match="cannot be reordered"):
        match_classes(network, THEIRS, CLASSES, "it")
    match_classes(network, CLASSES, CLASSES, "it")  # nothing to do


def test_an_evaluation_maps_or_refuses(tmp_path):
    network = teacher_net(seed=3)
    data = ToyData(ToyData.Config(name="toy"), "val")
    same = saved(tmp_path / "a.pt", network, CLASSES, [0, 1, 2, 3])
    mixed = saved(tmp_path / "b.pt", network)
    lines = []
    one, two = (segkd.evaluate(path, data, tell=lines.append) for path in (same, mixed))
    assert np.array_equal(one.matrix, two.matrix) and len(lines) == 1
    other = saved(tmp_path / "c.pt", network, ["a", "b", "c", "d"])
    with pytest.raises(CheckpointError, match="only in the file: a, b, c, d"):
        segkd.evaluate(other, data)


def test_an_evaluation_of_an_opened_student_maps_as_that_of_its_file(tmp_path):
    data = ToyData(ToyData.Config(name="toy"), "val")
    path = saved(tmp_path / "b.pt", teacher_net(seed=3))
    student = segkd.load_student(path)
    lines = []
    wanted = segkd.evaluate(path, data)
    for given in (student, student.network):
        assert np.array_equal(wanted.matrix, segkd.evaluate(given, data, tell=lines.append).matrix)
    assert len(lines) == 2 and "reordered by name" in lines[0]
    assert student.classes == tuple(THEIRS), "the caller's network stays as it is"
    other = segkd.load_student(saved(tmp_path / "c.pt", teacher_net(), ["a", "b", "c", "d"]))
    with pytest.raises(CheckpointError, match="only in the file: a, b, c, d"):
        segkd.evaluate(other, data)
    segkd.evaluate(teacher_net(), data)  # has no names: as before


def test_an_evaluation_of_an_opened_student_is_as_configured_in_its_file(tmp_path):
    config = toy_config(tmp_path / "run", steps=1, eval={"limit": 3})
    segkd.train(config)
    data = ToyData(ToyData.Config(name="toy"), "val")
    student = segkd.load_student(tmp_path / "run")
    assert segkd.evaluate(student, data).images == 3
    assert segkd.evaluate(student.network, data, overrides=["eval.limit=2"]).images == 2


def test_a_teacher_that_the_caller_opened_is_mapped_by_its_names(tmp_path):
    student = segkd.load_student(saved(tmp_path / "t.pt", teacher_net()))
    config = toy_config(tmp_path / "run", methods={"kd": {}})
    trainer = make_trainer(config, teachers={"main": student.network})
    (warning,) = trainer.parts.warnings
    assert warning.startswith("teachers.main: its classes were reordered by name")
    with torch.no_grad():
        found = trainer.parts.teachers(images(2))["main"].logits
        assert torch.equal(found, teacher_net().eval()(images(2)).logits)
        assert torch.equal(student.network(images(2)).logits, found[:, ORDER]), "it stays as it is"
    other = segkd.load_student(saved(tmp_path / "o.pt", teacher_net(), ["a", "b", "c", "d"]))
    with pytest.raises(CheckpointError, match=r"teachers\.main: .*only in the file: a, b, c, d"):
        make_trainer(config, teachers={"main": other.network})
    table = {"from": list("dcba"), "map": dict(zip("abcd", CLASSES, strict=True))}
    entry = {"main": {"arch": "toy", "classes": table}}
    config = toy_config(tmp_path / "run", teachers=entry, methods={"kd": {}})
    trainer = make_trainer(config, teachers={"main": other.network})
    with torch.no_grad():
        found = trainer.parts.teachers(images(2))["main"].logits
        assert torch.allclose(found, other.network(images(2)).logits.log_softmax(1), atol=1e-5)


def test_a_student_that_the_caller_opened_learns_on_with_the_datas_classes(tmp_path):
    student = segkd.load_student(saved(tmp_path / "t.pt", teacher_net())).network
    trainer = make_trainer(toy_config(tmp_path / "run"), student=student)
    (warning,) = trainer.parts.warnings
    assert warning.startswith("student: its classes were reordered by name")
    assert student.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(student.eval()(images(2)).logits, teacher_net().eval()(images(2)).logits)
    other = segkd.load_student(saved(tmp_path / "o.pt", teacher_net(), ["a", "b", "c", "d"]))
    trainer = make_trainer(toy_config(tmp_path / "run"), student=other.network)
    assert "its classes were a, b, c, d" in trainer.parts.warnings[0]
    assert other.classes == CLASSES, "what it is trained to"


def test_chance_is_that_of_a_guess():
    draw = np.random.default_rng(0)
    label, guess = draw.integers(0, 5, (2, 400_000))
    ious = [
        ((label == k) & (guess == k)).sum() / ((label == k) | (guess == k)).sum() for k in range(5)
    ]
    result = Result(torch.zeros(5, 5, dtype=torch.int64), tuple("abcde"), 1)
    assert result.chance == 1 / 9 and abs(np.mean(ious) - result.chance) < 0.002
