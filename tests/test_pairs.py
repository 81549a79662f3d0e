"""Any method starts, with its defaults, on any pair of networks."""

import copy
import functools

import pytest
import torch
from torch import nn
from toy_run import ToyData, toy_config

from segkd import registry
from segkd.config.schema import ModelConfig
from segkd.engine import new_model
from segkd.engine.setup import assemble
from segkd.engine.step_record import StepRecord
from segkd.errors import ConfigError
from segkd.models.build import build_network
from segkd.models.module import wrap
from segkd.registry import smp_architectures
from segkd.runtime import Runtime
from segkd.structures import Batch

K = len(ToyData.classes)
METHODS = [name for name in registry.methods.names() if not name.startswith("toy_")]
# Only one method of a run can rewrite its batches.
REWRITING = [n for n in METHODS if registry.methods.get(n)().needs.rewrites_batch]
TOGETHER = [n for n in METHODS if n not in REWRITING]
GROUPS = [TOGETHER, *([name] for name in REWRITING)]
CNN, MIT, VIT = "resnet18", "mit_b0", "tu-vit_tiny_patch16_224"
NO_MIT = {"linknet", "unetplusplus"}  # smp refuses
OF_SMP = [(arch, CNN) for arch in smp_architectures() if arch != "dpt"]
OF_SMP += [(arch, MIT) for arch, _ in OF_SMP if arch not in NO_MIT]
OF_SMP += [("dpt", VIT)]
OF_TORCHVISION = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
]
OWN = ["enet", "erfnet", "own"]
NAMES = [*OWN, *OF_TORCHVISION, *(f"{arch}-{encoder}" for arch, encoder in OF_SMP)]
# Default sizes are those of large images.
SMALL = {
    "cirkd": {"pixel_queue": 80, "region_queue": 20},
    "crd": {"dim": 8, "queue": 16},
    "holistic": {"width": 4},
    "mhgd": {"width": 8},
    "review_kd": {"width": 8},
}


class Own(nn.Module):
    """Three blocks down to stride 8, and logits that are up-sampled at the end."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(_block(*c) for c in ((3, 8), (8, 12), (12, 16)))
        self.neck, self.score = nn.Conv2d(16, 8, 1), nn.Conv2d(8, K, 1)

    def forward(self, x):
        size = x.shape[2:]
        for block in self.down:
            x = block(x)
        return nn.functional.interpolate(self.score(self.neck(x).relu()), size)


def _block(before, channels):
    conv = nn.Conv2d(before, channels, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def build(name):
    """A network with random weights."""
    if name == "own":
        return wrap(Own(), K)
    if name in OF_TORCHVISION:
        from torchvision.models import segmentation

        make = getattr(segmentation, name)
        return wrap(make(weights=None, weights_backbone=None, num_classes=K), K)
    arch, _, encoder = name.partition("-")
    return build_network(ModelConfig(arch=arch, **({"encoder": encoder} if encoder else {})), K)


@functools.cache
def shapes_of(name):
    """The network without numbers: its shapes are all that building methods asks for."""
    return build(name).to("meta")


@functools.cache
def shapes_of_peer(described, classes):
    """The same of the network that this JSON describes."""
    return build_network(ModelConfig.model_validate_json(described), classes).to("meta")


def parts_of(folder, student, teacher, methods, options=SMALL):
    config = toy_config(
        folder,
        teachers={"main": {"arch": "toy"}},
        methods={name: options.get(name, {}) for name in methods},
    )
    data = ToyData(config.data, "train")
    own = {"student": student, "teachers": {"main": teacher}}
    return assemble(config, Runtime.single(), train_set=data, val_set=data, **own)


@pytest.fixture(autouse=True)
def peers_on_the_cpu(monkeypatch):
    """Peers are built where there are numbers: MiT encoders read some from tensors they make."""

    def on_the_cpu(config, classes, *names):
        without_numbers = torch.get_default_device().type == "meta"
        with torch.device("cpu"):
            if without_numbers:
                return copy.deepcopy(shapes_of_peer(config.model_dump_json(), classes))
            return build_network(config, classes, *names)

    monkeypatch.setattr(new_model, "build_network", on_the_cpu)


# Each network is the student once and the teacher once, beside one of another family.
HALF = len(NAMES) // 2
RING = list(zip(NAMES, NAMES[HALF:] + NAMES[:HALF], strict=True))


@pytest.mark.parametrize(("student", "teacher"), RING)
def test_every_method_starts_with_its_defaults(tmp_path, student, teacher):
    start_all(tmp_path, shapes_of(student), shapes_of(teacher))


def start_all(folder, student, teacher):
    for group in GROUPS:
        with torch.device("meta"):
            parts = parts_of(folder, student, teacher, group, {})
        assert list(parts.objective.methods) == group


@pytest.mark.slow
@pytest.mark.parametrize("teacher", NAMES)
@pytest.mark.parametrize("student", NAMES)
def test_every_method_starts_on_every_pair(tmp_path, student, teacher):
    start_all(tmp_path, shapes_of(student), shapes_of(teacher))


PAIRS = [
    ("enet", "pspnet-resnet18"),
    ("pspnet-mit_b0", "erfnet"),
    ("own", "segformer-mit_b0"),
    ("lraspp_mobilenet_v3_large", "own"),
    ("erfnet", "dpt-tu-vit_tiny_patch16_224"),
    ("segformer-mit_b0", "deeplabv3_mobilenet_v3_large"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair))
def test_every_default_teaches_the_student(tmp_path, pair):
    torch.manual_seed(0)
    student, teacher = map(build, pair)
    for group in GROUPS:
        names = [name for name in group if name != "ld"]  # which is for lanes
        teach(tmp_path, student, teacher, names)


def peers_of(parts, images):
    """Outputs of the peers of each entry."""
    methods = parts.objective.methods.items()
    return {
        name: {peer: network(images) for peer, network in method.peers().items()}
        for name, method in methods
    }


def teach(folder, student, teacher, methods):
    parts = parts_of(folder, student, teacher, methods)
    images = torch.randint(0, 256, (2, 3, 64, 128), dtype=torch.uint8)
    labels = torch.arange(K).repeat_interleave(64 * 128 // K).view(1, 64, 128).repeat(2, 1, 1)
    batch = Batch(images, labels, labels >= 0, torch.arange(2))
    batch = parts.objective.prepare(batch, 0, everything=True)
    student, teachers = parts.student(batch.images, parts.taps), parts.teachers(batch.images)
    parts.objective.after_step(
        StepRecord(student.detach(), teachers, batch), 0
    )  # which fills the banks
    peers = peers_of(parts, batch.images)
    terms = parts.objective.terms(student, teachers, batch, 0, everything=True, peers=peers)
    for name, method in parts.objective.methods.items():
        values = [w.term.value for w in terms if w.name.startswith(f"{name}/")]
        tensors = [
            student.logits if t == "logits" else student.tap(t) for t in method.taps_with_gradient
        ]
        gradients = torch.autograd.grad(sum(values), tensors, retain_graph=True, allow_unused=True)
        assert values and all(value.isfinite() for value in values), name
        for tap, gradient in zip(method.taps_with_gradient, gradients, strict=True):
            assert gradient is not None and gradient.isfinite().all(), (name, tap)
        assert any(gradient.any() for gradient in gradients), name


def test_every_method_learns_from_a_teacher_of_other_classes_or_says_why(tmp_path):
    """Its features need no map; a method on logits takes probabilities, or names the way out."""
    torch.manual_seed(0)
    names = ["a", "b", "c", "d", "e", "f"]
    table = dict(zip(names, [*ToyData.classes, ToyData.classes[0], None], strict=True))
    student, teacher = build("enet"), build_network(ModelConfig(arch="fpn"), len(names))
    images = torch.randint(0, 256, (2, 3, 64, 128), dtype=torch.uint8)
    labels = torch.arange(K).repeat_interleave(64 * 128 // K).view(1, 64, 128).repeat(2, 1, 1)
    batch = Batch(images, labels, labels >= 0, torch.arange(2))
    refused, taught = set(), set()
    for name in METHODS:
        if name == "ld":  # which is for lanes
            continue
        config = toy_config(
            tmp_path,
            teachers={"main": {"arch": "fpn", "classes": {"from": names, "map": table}}},
            methods={name: SMALL.get(name, {})},
        )
        data = ToyData(config.data, "train")
        own = {"student": student, "teachers": {"main": teacher}}
        try:
            parts = assemble(config, Runtime.single(), train_set=data, val_set=data, **own)
        except ConfigError as error:
            told = "has other classes than the data and returns probabilities. Tap features, or use"
            assert told in str(error)
            refused.add(name)
            continue
        outputs, targets = parts.student(images, parts.taps), parts.teachers(images)
        parts.objective.after_step(StepRecord(outputs.detach(), targets, batch), 0)
        peers = peers_of(parts, images)
        terms = parts.objective.terms(outputs, targets, batch, 0, everything=True, peers=peers)
        assert all(weighted.term.value.isfinite() for weighted in terms), name
        taught.add(name)
    assert {"cwd", "irg"} <= refused
    assert {"kd", "dist", "fitnets", "cirkd", "at", "review_kd", "fgd"} <= taught
