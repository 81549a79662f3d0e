"""Teachers: frozen for good, ensembles of unequal strides, black boxes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_run import teacher_net

from segkd.config.schema import TeacherConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.methods.base import Needs
from segkd.models.frozen import BlackBox, Teacher
from segkd.models.module import wrap
from segkd.models.teacher import build_teachers, open_networks

LOGITS = Needs(teacher=("logits",), accepts_log_prob=True)


def network(stride=4, seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=stride, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5)
    )
    module = nn.Sequential(body, nn.Conv2d(5, 3, 1))
    return wrap(module, 3, taps={"stage1": "0.2"}, divisor=stride)


def teachers(ensembles=None, taps=None, **networks):
    configs = {name: TeacherConfig(ensemble=parts) for name, parts in (ensembles or {}).items()}
    taps = taps or {name: ["logits"] for name in (*configs, *networks)}
    return build_teachers(configs, taps, 3, networks=networks)


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)


def test_a_teacher_stays_as_it_is(images):
    teacher = Teacher(network(), ["stage1"])
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    parent = nn.ModuleList([teacher]).train()
    outputs, again = teacher(images), teacher(images)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert not any(tensor.requires_grad for tensor in outputs.tensors())
    assert torch.equal(outputs.logits, again.logits), "dropout is off"
    assert outputs.features.keys() == {"stage1"}
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


def test_outputs_may_take_part_in_a_training_graph(images):
    logits = Teacher(network())(images).logits
    weight = torch.ones((), requires_grad=True)
    (weight * logits).square().sum().backward()
    assert weight.grad is not None


def test_gradient_by_features_reaches_no_parameter(images):
    teacher = Teacher(network(), ["stage1"], gradient=True)
    outputs = teacher(images)
    (gradient,) = torch.autograd.grad(outputs.logits.sum(), outputs.features["stage1"])
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_only_teachers_that_are_listened_to_run(images):
    calls = []
    spare, used = network(), network()
    spare.register_forward_hook(lambda *_: calls.append("spare"))
    found = teachers(taps={"used": ["stage1"], "spare": set(), "": set()}, used=used, spare=spare)
    assert found(images).keys() == {"used"}
    assert calls == [] and found.names == ["used", "spare"]


def test_ensemble_averages_probabilities_at_the_smallest_size(images):
    fine, coarse = network(2), network(8, seed=1)
    calls = []
    fine.register_forward_hook(lambda *_: calls.append("fine"))
    found = teachers({"both": ["fine", "coarse"]}, fine=fine, coarse=coarse)
    outputs = found(images)
    assert calls == ["fine"], "a member that is used alone as well runs once"
    both = outputs["both"]
    assert both.kind == "log_prob" and not both.features
    assert both.logits.shape == (2, 3, 2, 3)
    small = F.avg_pool2d(outputs["fine"].logits.softmax(1), 4)
    expected = (small + outputs["coarse"].logits.softmax(1)) / 2
    torch.testing.assert_close(both.logits.exp(), expected)
    torch.testing.assert_close(found.alone("both")(images).logits, both.logits)
    assert found.alone("both").divisor == 8


def test_ensemble_of_an_ensemble_and_a_black_box(images):
    def certain(images):
        answer = torch.zeros(len(images), 3, 4, 6)
        answer[:, 1] = 2.0
        return answer

    found = teachers(
        {"all": ["pair", "box"], "pair": ["a", "b"]},
        taps={"all": ["logits"]},
        a=network(),
        b=network(seed=1),
        box=BlackBox(certain, 3, stride=4),
    )
    everything = found(images)
    assert everything.keys() == {"all"}
    probabilities = everything["all"].logits.exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 4, 6))
    assert (probabilities[:, 1] > 0.5).all()
    assert found.alone("box")(images).logits.isfinite().all()


def test_black_box_that_answers_no_distribution(images):
    with pytest.raises(SegKDError, match=r"expected probabilities \(B, 3, h, w\)"):
        BlackBox(lambda images: torch.randn(2, 4, 4, 4), 3)(images)


def test_taps_of_a_network_and_of_an_ensemble():
    plain = network()
    found = teachers({"both": ["a", "b"]}, a=plain, b=network(8))
    tapped = found.tapped("a", Needs(teacher=("stage1",)))
    assert tapped.info["stage1"].channels == 5
    assert tapped.norm_before("stage1") is plain.module[0][1]
    info = found.tapped("both", LOGITS).info["logits"]
    assert (info.channels, info.stride) == (3, 8)


@pytest.mark.parametrize(
    ("needs", "hint"),
    [
        (Needs(teacher=("stage1",), accepts_log_prob=True), "is an ensemble and has no features"),
        (Needs(teacher=("logits",)), "returns probabilities"),
    ],
)
def test_what_an_ensemble_cannot_give(needs, hint):
    found = teachers({"both": ["a", "b"]}, a=network(), b=network())
    with pytest.raises(ConfigError, match=hint):
        found.tapped("both", needs)


@pytest.mark.parametrize(
    ("ensembles", "hint"),
    [
        ({"both": ["a", "c"]}, "no teacher 'c'"),
        ({"x": ["y", "a"], "y": ["x"]}, "x, y contain each other"),
        ({"x": ["x"]}, "contain each other"),
    ],
)
def test_impossible_ensembles(ensembles, hint):
    with pytest.raises(ConfigError, match=hint):
        teachers(ensembles, a=network())


def test_teachers_that_do_not_fit():
    with pytest.raises(ConfigError, match="it has 3 classes, the data has 4"):
        build_teachers({}, {}, 4, networks={"a": network()})
    with pytest.raises(ConfigError, match=r"wrap\(module"):
        build_teachers({}, {}, 3, networks={"a": nn.Conv2d(3, 3, 1)})
    with pytest.raises(ConfigError, match=r"teachers\.a: unknown arch"):
        build_teachers({"a": TeacherConfig(arch="unett")}, {}, 3)


def test_weights_that_are_no_numbers_are_named(tmp_path):
    """Teacher, tensor and file; a network of the caller's own as well."""
    broken = network()
    with torch.no_grad():
        broken.module[0][0].weight[0, 0, 0, :2] = torch.nan
    with pytest.raises(
        CheckpointError, match=r"teachers\.a: its tensor \S*0\.0\.weight is NaN in 2"
    ):
        build_teachers({}, {}, 3, networks={"a": broken})
    toy = teacher_net()
    state = toy.state_dict()
    state["classifier.bias"][1] = torch.inf
    torch.save(state, tmp_path / "w.pth")
    config = TeacherConfig(arch="toy", options={"width": 8}, checkpoint=str(tmp_path / "w.pth"))
    with pytest.raises(CheckpointError) as caught:
        build_teachers({"b": config}, {}, 4)
    assert str(caught.value).startswith(f"teachers.b: {tmp_path}/w.pth")
    assert "its tensor classifier.bias is infinite in 1 of 4 values" in str(caught.value)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(images, half):
    assert Teacher(network(), half=half)(images).logits.dtype == half


def test_a_black_box_of_the_caller_is_mapped_in_a_copy():
    box = BlackBox(lambda images: images[:, 0].long() % 2, 2)
    table = {"from": ["a", "b"], "map": {"a": "c", "b": "d"}}
    configs = {"main": TeacherConfig(black_box={"function": "any:one"}, classes=table)}
    for _ in range(2):  # as in two trainings
        opened = open_networks(configs, {"main": box}, 3, ["c", "d", "e"])
        found = build_teachers(configs, {"main": ["logits"]}, 3, networks=opened, classes="cde")
        assert found.members["main"].num_classes == 3
        assert found.members["main"].answer is box.answer
    assert box.num_classes == 2 and box.class_map is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_mapped_teacher_is_exact_within_an_autocast_of_the_run(images, half):
    matrix = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    sure = network()
    with torch.no_grad():
        sure.module[1].bias.copy_(torch.tensor([0.0, 3.0, 30.0]))
    teacher = Teacher(sure, class_map=matrix)
    expected = teacher(images).logits
    with torch.autocast("cpu", half):
        found = teacher(images).logits
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
