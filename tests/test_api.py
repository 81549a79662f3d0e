"""The Python interface with the caller's own networks and data."""

import numpy as np
import pytest
import torch
from exported import toy_student
from test_bad_input import student_file
from torch import nn
from toy_run import CLASSES, ToyData, teacher_net

import segkd
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.module import wrap
from segkd.models.network import Network


def pairs(count=4):
    draw = np.random.default_rng(0)
    label = np.kron(np.arange(4).reshape(2, 2), np.ones((16, 24), np.uint8)).astype(np.uint8)
    return [(draw.integers(0, 255, (32, 48, 3), np.uint8), label) for _ in range(count)]


def settings(out):
    return {
        "out": str(out),
        "steps": 2,
        "data": {"name": "toy", "batch_size": 2, "workers": 0},
        "runtime": {"device": "cpu", "threads": 1},
        "log": {"tensorboard": False},
    }


class Own(nn.Module):
    """Nothing of segkd: normalised images in, logits out."""

    def __init__(self, width=4):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, len(CLASSES), 1)
        )

    def forward(self, images):
        return self.net(images)


def test_the_interface_is_lazy_and_complete():
    names = {"SegKDError", "train", "evaluate", "load_student", "save_pretrained"}
    names |= {"predict", "export", "distill"}
    assert names == set(segkd.__all__)
    assert names | {"lanes", "__version__"} <= set(dir(segkd))
    assert all(getattr(segkd, name) is not None for name in dir(segkd))
    assert callable(segkd.train)
    assert callable(segkd.export), "also after the package of that name was imported"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = segkd.trian


def test_a_configured_run_is_trained_evaluated_and_loaded(tmp_path):
    config = settings(tmp_path) | {"student": {"arch": "toy"}}
    summary = segkd.train(config, steps=3, overrides=["optim.lr=0.02"])
    assert summary["steps"] == 3
    assert "lr: 0.02" in (tmp_path / "config.yaml").read_text()
    result = segkd.evaluate(tmp_path, overrides=["eval.batch_size=2"])
    assert result.miou == pytest.approx(summary["miou"])
    assert isinstance(segkd.load_student(tmp_path).network, Network)


def test_own_modules_and_arrays_are_trained_and_loaded_again(tmp_path):
    torch.manual_seed(0)
    student, teacher = Own(), Own(8)
    config = settings(tmp_path) | {"methods": {"kd": {"teacher": "main"}}}
    config["data"]["name"] = "arrays"
    summary = segkd.train(
        config,
        student=student,
        teachers=teacher,
        train_set=pairs(),
        val_set=pairs(2),
        classes=CLASSES,
    )
    assert list(summary["teachers"]) == ["main"]
    loaded = segkd.load_student(tmp_path, Own())
    trained = student.state_dict()
    assert all(
        torch.equal(w, trained[key]) for key, w in loaded.network.module.state_dict().items()
    )
    assert segkd.evaluate(loaded, pairs(2), classes=CLASSES).miou == pytest.approx(summary["miou"])
    with pytest.raises(CheckpointError, match=r"does not fit"):
        segkd.load_student(tmp_path, Own(5))


def test_a_module_is_loaded_as_it_was_wrapped(tmp_path):
    module = Own()
    module.wide = nn.Identity()
    keys = {"taps": {"stage4": "net.1"}, "logits": "net.2", "divisor": 2, "normalize": "none"}
    student = wrap(module, len(CLASSES), **keys)
    config = settings(tmp_path) | {"data": {"name": "arrays", "batch_size": 2, "workers": 0}}
    segkd.train(config, student=student, train_set=pairs(), val_set=pairs(), classes=CLASSES)
    loaded = segkd.load_student(tmp_path, Own()).network
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        outputs = (one.eval()(images, ["stage4"]) for one in (student, loaded))
        one, two = (torch.cat([found.logits, found.tap("stage4")], 1) for found in outputs)
    assert loaded.divisor == 2 and torch.equal(one, two)
    with pytest.warns(UserWarning, match=r"wrap\(…, normalize='none'\)"):
        segkd.load_student(tmp_path, wrap(Own(), len(CLASSES)))


def test_own_parts_need_no_configuration_of_their_own(tmp_path):
    summary = segkd.train(
        student=Own(),
        train_set=pairs(),
        val_set=pairs(2),
        classes=CLASSES,
        steps=1,
        out=str(tmp_path),
        data={"batch_size": 2, "workers": 0},
        log={"tensorboard": False},
        runtime={"device": "cpu"},
    )
    assert summary["steps"] == 1


def test_a_module_that_teaches_stays_as_it_is_also_while_it_learns(tmp_path):
    module, other = Own(), Own(2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    given = {"train_set": pairs(), "val_set": pairs(), "classes": CLASSES}
    config = settings(tmp_path / "a") | {"data": {"name": "arrays", "batch_size": 2, "workers": 0}}
    segkd.train(config, student=other, teachers=module, methods={"kd": {}}, **given)
    assert module.training and all(p.requires_grad for p in module.parameters())
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    config["out"] = str(tmp_path / "b")
    segkd.train(config, student=module, teachers=module, methods={"kd": {}}, **given)
    assert not torch.equal(module.net[0].weight, before["net.0.weight"]), "its copy taught it"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: segkd.train("quickstart", student=Own()), "only for a single run"),
        (
            lambda out: segkd.train(settings(out), student=Own(), train_set=pairs()),
            "train_set: a sequence of pairs has no class names",
        ),
        (lambda out: segkd.evaluate(Own()), "needs a dataset"),
        (lambda out: segkd.train({"steps": 1}), "student: is missing"),
    ],
)
def test_a_mistake_says_what_to_give(tmp_path, call, message):
    with pytest.raises(ConfigError, match=message):
        call(tmp_path)


def test_a_weights_file_of_another_program_is_scored_without_a_run(tmp_path):
    network = teacher_net(normalize="none")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "theirs.pth")
    keys = ["student.arch=toy", "student.normalize=none", "student.options.width=8"]
    keys += ["data.name=toy", "data.workers=0"]
    told = []
    result = segkd.evaluate(tmp_path / "theirs.pth", overrides=keys, tell=told.append)
    data = ToyData(ToyData.Config(name="toy", workers=0), "val")
    assert result.miou == segkd.evaluate(network, data).miou
    assert "tensors matched" in told[0] and "mean 0 0 0, std 1 1 1" in told[1]
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("theirs.pth", [], r"segkd eval FILE student\.arch=… data\.name=…"),
        ("theirs.pth", ["student.arch=toy"], r"data: is missing.*data\.name=cityscapes"),
        ("theirs.pth", ["student.options.width=8", "data.name=toy"], "name the network"),
        ("theirs.pth", ["student=5", "data.name=toy"], "student: got 5"),
        ("theirs.pth", ["student.arch=toi", "data.name=toy"], "Did you mean 'toy'"),
        ("best.pt", ["student.arch=toy", "data.name=toy"], r"Remove the keys `student\.…`"),
    ],
)
def test_what_such_a_file_needs_is_said(tmp_path, file, keys, message):
    torch.save(teacher_net(width=6).state_dict(), tmp_path / "theirs.pth")
    student_file(tmp_path / "best.pt")
    with pytest.raises(SegKDError, match=message):
        segkd.evaluate(tmp_path / file, overrides=keys)


@pytest.mark.parametrize(
    "key",
    [
        "data.batch_size=2",
        "data.train_split=val",
        "eval.every=3",
        "eval.others={more: {images: 5}}",
        "eval.lanes.iou=[0.3]",
        "runtime.deterministic=true",
        "runtime.compile=true",
    ],
)
def test_an_evaluation_refuses_what_it_would_not_read(key):
    name = key.partition("=")[0].removesuffix(".more")
    with pytest.raises(ConfigError, match=f"{name} would change nothing: an evaluation on 'toy'"):
        segkd.evaluate(toy_student(), overrides=[key])


def test_an_evaluation_reads_the_datasets_own_keys_or_those_beside_a_dataset():
    read = ["data.images=3", "data.workers=0", "eval.flip=true", "runtime.precision=fp32"]
    assert segkd.evaluate(toy_student(), overrides=read).images == 3
    data = ToyData(ToyData.Config(name="toy", workers=0), "val")
    with pytest.raises(ConfigError, match=r"data\.images would change nothing"):
        segkd.evaluate(toy_student(), data, overrides=read)
    assert segkd.evaluate(toy_student(), data, overrides=["eval.limit=2"]).images == 2
    resized = segkd.evaluate(
        teacher_net(), pairs(2), classes=CLASSES, overrides=["data.resize=[16,24]"]
    )
    assert resized.images == 2
