"""Computes the numbers that ``tests/stored_values.json`` holds, and writes that file.

    python tests/store_values.py            # all of them, anew
    python tests/store_values.py run/kd_cwd # one group

Losses of all methods, whole trainings, metrics, augmentation and drawn scenes, in float64 on the
CPU. The file was written by version 0.1.0 (commit 516a395) and says what a change of structure must
not change. It is written anew only where a number is meant to change, and the commit says why.

Nothing depends on torch's initial weights: inputs, networks and the parts of methods get theirs
from numpy. What is left of torch's random numbers are draws inside of a training (dropout, the
places of a critic's penalty, adapters that the engine makes).
"""

import csv
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import torch
from torch import Tensor, nn

import segkd
from segkd import registry
from segkd.config.schema import ModelConfig
from segkd.data.base import DataConfig
from segkd.data.transforms import TrainTransform
from segkd.methods.base import BuildContext, Context, Method, TapInfo
from segkd.metrics import boundary, confusion, culane, tusimple
from segkd.models.build import build_network
from segkd.structures import Batch, Outputs, Term

FILE = Path(__file__).with_name("stored_values.json")
F64 = torch.float64
Values = dict[str, float | int | str]


# -- the losses of each method ---------------------------------------------------------------------

IMAGES, K, CELL = 4, 5, 32
SIZE = (2 * CELL, 3 * CELL)
STRIDES = {"stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 32}
# Beside the defaults of all methods: parts that no default reaches.
VARIANTS: dict[str, dict] = {
    "cirkd": {"anchors": 2, "weights": {"channel": 1.0}},
    "cs_kd": {"pairs": "random"},
    "cwd": {"tap": "stage4"},
    "dist": {"features": True},
    "dkd": {"temperature": 2.0},
    "holistic": {"loss": "hinge"},
    "kd": {"temperature": 3.0, "mask": "not_padding"},
    "ld": {"weights": {"position": 1.0}},
    "rkd": {"nodes": "grid", "grid": (2, 3)},
    "sad": {"normalize": "softmax", "detach": False},
}


def method_values(name: str, **keys) -> Values:
    """Terms with their counts and the gradients' length, twice: the second time with full banks."""
    kind = registry.methods.get(name)
    method: Method = kind(kind.Config.model_validate(keys))
    student = tap_infos(method.needs.student, 3, lambda stride: stride)
    teacher = tap_infos(method.needs.teacher, 6, lambda stride: min(2 * stride, 8))
    torch.manual_seed(0)
    method.build(BuildContext(student, teacher, K))
    method = method.double()
    fill(method, f"method {name}")
    images = len(method.prepare(make_batch(), context_of(method, make_batch(), 0)))
    outputs = random_outputs(student, "student", images)
    target = random_outputs(teacher, "teacher", images) if method.needs.teacher else None
    if method.inner_parameters():  # spectral norms find their vectors by being used
        fill_vectors(method)
        for _ in range(20):
            batch = make_batch()
            method.inner_loss(outputs.detach(), target, batch, context_of(method, batch, 0))
    found: Values = {}
    for turn in range(2):
        batch = method.prepare(make_batch(), context_of(method, make_batch(), turn))
        terms = method.loss(outputs, target, batch, context_of(method, batch, turn))
        found |= {f"{turn}/{key}": value for key, value in told(terms).items()}
        leaves = [leaf for leaf in outputs.tensors() if leaf.requires_grad]
        found[f"{turn}/gradient"] = gradient_length(terms, [*leaves, *method.trained_parameters()])
        own = method.inner_parameters()
        if own:
            others = [None if side is None else side.detach() for side in (outputs, target)]
            terms = method.inner_loss(*others, batch, context_of(method, batch, turn))
            found |= {f"{turn}/own {key}": value for key, value in told(terms).items()}
            found[f"{turn}/own gradient"] = gradient_length(terms, own)
        with torch.no_grad():
            method.after_step(outputs, target, batch, context_of(method, batch, turn))
    return found


def told(terms: dict[str, Term]) -> Values:
    found: Values = {}
    for name, term in terms.items():
        found[name] = term.value.item()
        if term.count is not None:
            found[f"{name} count"] = term.count.item()
    return found


def gradient_length(terms: dict[str, Term], leaves: list[Tensor]) -> float:
    total = sum(term.value for term in terms.values())
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return length([gradient for gradient in gradients if gradient is not None])


def length(tensors: list[Tensor]) -> float:
    """Root of the sum of squares, exactly summed: in whatever order tensors come."""
    values = (value for tensor in tensors for value in tensor.detach().double().flatten().tolist())
    return math.sqrt(math.fsum(value * value for value in values))


def tap_infos(taps: tuple[str, ...], channels: int, stride_of: Callable) -> dict[str, TapInfo]:
    infos = {"logits": TapInfo(K, stride_of(4))}
    for number, tap in enumerate(sorted(set(taps) - {"logits"})):
        stride = STRIDES.get(tap.removesuffix(":pre"), 4 if tap == "head" else 8)
        infos[tap] = TapInfo(channels + number, stride_of(stride))
    return infos


def random_outputs(infos: dict[str, TapInfo], who: str, images: int) -> Outputs:
    values = {}
    for tap, info in infos.items():
        shape = (images, info.channels, SIZE[0] // info.stride, SIZE[1] // info.stride)
        value = torch.from_numpy(draw(who, tap).standard_normal(shape))
        values[tap] = value.requires_grad_(who == "student")
    return Outputs(values.pop("logits"), values)


def make_batch() -> Batch:
    """Images with padding, void pixels, and lanes that exist in some."""
    rng = draw("batch")
    cells = rng.integers(0, K, (IMAGES, SIZE[0] // CELL, SIZE[1] // CELL))
    labels = torch.from_numpy(np.kron(cells, np.ones((1, CELL, CELL), np.int64)))
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[1, :, :CELL], labels[1, :CELL, 2 * CELL :] = False, 255
    inside[2, CELL:], labels[2, 10:20] = False, 255
    images = torch.from_numpy(rng.integers(0, 256, (IMAGES, 3, *SIZE), dtype=np.uint8))
    exist = (torch.arange(1, K) < K - torch.arange(IMAGES)[:, None]).float()
    return Batch(images, labels, inside, torch.arange(IMAGES), extra={"exist": exist})


def context_of(method: Method, batch: Batch, turn: int) -> Context:
    def generator(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 * turn + number)

    return Context(
        batch,
        step=turn,
        total_steps=10,
        mask=method.config.mask,
        generator=generator(99),
        image_generators=[generator(index) for index in batch.index.tolist()],
        task_loss=task_loss,
        student_forward=colours,
    )


def colours(images: Tensor) -> Outputs:
    """A student whose logits are the colours of patches."""
    return Outputs(nn.functional.adaptive_avg_pool2d(images.to(F64), (16, 24)) / 64)


def task_loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    labels = Context(batch).labels_at(*outputs.logits.shape[-2:])
    value = nn.functional.cross_entropy(outputs.logits, labels, ignore_index=255)
    return {"cross_entropy": Term(value, (labels != 255).sum(dtype=F64))}


# -- whole trainings -------------------------------------------------------------------------------

CLASSES = ("sky", "road", "car", "tree")


class Plain(nn.Module):
    """A network that knows nothing of segkd: five stages, no random layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, width, width, 2 * width, 2 * width, 3 * width)
        self.stages = nn.Sequential(*map(_stage, channels, channels[1:]))
        self.head = nn.Sequential(nn.Conv2d(3 * width, 2 * width, 1), nn.ReLU())
        self.classifier = nn.Conv2d(2 * width, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.head(self.stages(images)))


def _stage(before: int, after: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(after, momentum=0.5)  # so that few steps are enough to evaluate with
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), norm, nn.ReLU())


def plain(width: int, who: str) -> Plain:
    network = Plain(width)
    fill(network, who)
    return network


def pairs(count: int, who: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noisy quarters of four colours, with a void stripe."""
    colours = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142], [107, 142, 35]])
    found = []
    for index in range(count):
        rng = draw("pairs", who, str(index))
        label = np.kron(rng.permutation(4).reshape(2, 2), np.ones((32, 48), np.int64))
        image = (colours[label] + rng.normal(0, 30, (64, 96, 3))).clip(0, 255).astype(np.uint8)
        label[: 4 * (index % 3)] = 255
        found.append((image, label.astype(np.uint8)))
    return found


DATA = {"name": "arrays", "batch_size": 4, "workers": 0, "crop": [64, 96], "color_jitter": 0.3}
FEATURES = ("at", "fitnets", "fsp", "mgd", "ofd", "pkd", "review_kd", "sp", "fgd", "dist")
RUNS: dict[str, dict] = {
    "kd_cwd": {"methods": {"kd": {}, "cwd": {"weight": "paper", "warmup": 2}}},
    "cirkd_crd": {"methods": {"cirkd": {}, "crd": {}}, "student_width": 5},
    "holistic": {"methods": {"holistic": {}, "pairwise": {}}},
    "features": {
        "methods": {name: {} for name in FEATURES},
        "steps": 2,
    },
    "unlabelled": {
        "methods": {"dkd": {"pseudo_labels": 0.3}, "kd": {}, "tf_kd": {}},
        "data": DATA | {"unlabeled": {"share": 0.5}},
    },
    "auto_weight": {"methods": {"kd": {"weight": {"auto": 0.3}}, "at": {"weight": {"auto": 0.1}}}},
    "options": {
        "methods": {"kd": {"start": 1}},
        "ema": 0.9,
        "optim": {"name": "adamw", "lr": 1e-3, "clip": 0.5, "accumulate": 2},
        "schedule": {"name": "cosine", "warmup": 2, "min_lr_ratio": 0.1},
        "eval": {"flip": True, "scales": [0.5, 1.0], "sliding": [64, 64], "boundary": True},
    },
    "lanes": {
        "methods": {"sad": {}},
        "data": {
            "name": "lanes",
            "size": [64, 160],
            "train_images": 6,
            "val_images": 4,
            "batch_size": 2,
            "workers": 0,
            "rotation": 5.0,
        },
        "eval": {"lanes": {"threshold": 0.2, "existence": 0.0}},
        "task": {"losses": {"cross_entropy": {"background": 0.4}, "lane_iou": {}, "existence": {}}},
    },
}
DTYPES = {"cirkd_crd": torch.float32}  # the engine keeps banks in float32


def run_values(name: str) -> Values:
    """All losses of all steps, the final scores, and all that was learned, summed up."""
    keys = {"steps": 4, "data": DATA, "optim": {"lr": 0.05}, "eval": {}} | RUNS[name]
    width = keys.pop("student_width", 4)
    with default_dtype(DTYPES.get(name, F64)), tempfile.TemporaryDirectory() as folder:
        keys |= {
            "out": folder,
            "seed": 3,
            "eval": {"every": 0, **keys["eval"]},
            "log": {"every": 1, "tensorboard": False},
            "runtime": {"device": "cpu", "threads": 1},
        }
        if name == "lanes":
            own = {"student": lane_student()}
        else:
            own = {
                "student": plain(width, "student"),
                "train_set": pairs(6, "train"),
                "val_set": pairs(3, "val"),
                "classes": CLASSES,
            }
            if name == "unlabelled":
                own["unlabeled_set"] = [image for image, _ in pairs(5, "unlabelled")]
            own["teachers"] = {"main": plain(8, "teacher")}
        summary = segkd.train(keys, **own)
        return run_facts(Path(folder), summary)


def run_facts(folder: Path, summary: dict) -> Values:
    kept = ("score", "best_score", "pixel_accuracy", "tp", "fp", "fn")
    found: Values = {key: summary[key] for key in kept if key in summary}
    if "boundary" in summary:
        found["boundary"] = summary["boundary"]["miou"]
    found |= {f"teacher {name}": facts["score"] for name, facts in summary["teachers"].items()}
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):  # rounded to six digits; what was learned is not
            step = row.pop("step")
            found |= {
                f"{step}/{key}": float(value)
                for key, value in row.items()
                if value and not key.startswith("seconds/")
            }
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    for part in ("student", "objective"):
        tensors = [value for value in state[part].values() if value.is_floating_point()]
        if tensors:
            found[f"length of the {part}"] = length(tensors)
    return found


def lane_student() -> nn.Module:
    """ENet-SAD with an existence branch, as in 0.1; its dropout draws from torch."""
    options = {"stages": 4, "share": True, "version": 1}  # 0.1 itself had no `version`: remove it
    config = ModelConfig(arch="enet", options=options, exist_head={})
    network = build_network(config, 5)
    fill(network, "enet")
    return network


# -- metrics, augmentation, drawn scenes -----------------------------------------------------------


def metric_values() -> Values:
    rng = draw("metrics")
    label = np.kron(rng.integers(0, 6, (6, 8)), np.ones((10, 12), np.int64))
    wrong = rng.random(label.shape) < 0.2
    prediction = np.where(wrong, rng.integers(0, 6, label.shape), np.roll(label, 2, 1))
    label[:3], label[label == 5] = 255, 255
    label, prediction = torch.from_numpy(label), torch.from_numpy(prediction)
    matrix = confusion.confusion(prediction, label, 6, 255)
    counts = boundary.boundary_counts(prediction, label, 6, 255)
    found: Values = {
        "mIoU": confusion.mean_iou(matrix),
        "pixel accuracy": confusion.pixel_accuracy(matrix),
        "mean accuracy": confusion.mean_accuracy(matrix),
        "boundary IoU": boundary.mean_boundary_iou(counts),
        "boundary pixels": int(counts.sum()),
        "confusion": digest(matrix.numpy()),
    }
    return found | culane_values() | tusimple_values()


def culane_values() -> Values:
    total = culane.Counts()
    for image in range(12):
        rng = draw("culane", str(image))
        y = np.arange(590.0, 250.0, -10.0)
        truth = [
            np.stack([x + slope * (590 - y), y], 1)
            for x, slope in zip(rng.uniform(100, 1500, 4), rng.uniform(-1, 1, 4), strict=True)
        ]
        shifts = rng.normal(0, 12, len(truth))
        found = [
            lane + np.array([shift, 0]) for lane, shift in zip(truth[:3], shifts, strict=False)
        ]
        total = total + culane.Counts(*culane.evaluate_image(truth, [*found, truth[3][:2] + 40]))
    return {"culane F1": total.f1, "culane tp": total.tp, "culane fp": total.fp}


def tusimple_values() -> Values:
    rng = draw("tusimple")
    rows = np.arange(160, 720, 10)
    truth = np.array([x + s * (rows - 160) for x, s in ((200, 1.0), (600, 0.1), (900, -0.6))])
    truth[0, 40:] = -2
    guesses = truth + rng.normal(0, 12, truth.shape)
    names = ("accuracy", "FP", "FN")
    numbers = tusimple.evaluate_image(guesses, truth, rows, run_time=10)
    return {f"tusimple {name}": number for name, number in zip(names, numbers, strict=True)}


def augmentation_values() -> Values:
    """Crop, scale, flip and colour; of lanes rotation and points as well."""
    found: Values = {}
    config = DataConfig(name="arrays", crop=(48, 80), scale=(0.5, 2.0), color_jitter=0.5)
    transform = TrainTransform(config, 255)
    (image, label), *_ = pairs(1, "augmentation")
    for seed in range(4):
        parts = transform(image, label, seed)
        names = ("image", "label", "inside")
        found |= {f"{seed}/{key}": digest(part) for key, part in zip(names, parts, strict=True)}
        found[f"{seed}/image sum"] = int(parts[0].sum(dtype=np.int64))
    roads = drawn("lanes", rotation=10.0, crop=[96, 160])
    sample = roads.read(0)
    transform = TrainTransform(roads.config, 255)
    image, label, inside, lanes = transform.with_lanes(sample.image, sample.label, sample.lanes, 7)
    points = np.concatenate([lane for lane in lanes if lane is not None])
    found["lanes/image"], found["lanes/label"] = digest(image), digest(label)
    found["lanes/inside"] = int(inside.sum())
    found["lanes/points"] = math.fsum(points[~np.isnan(points)].tolist())
    return found


def scene_values(name: str) -> Values:
    found: Values = {}
    for split, index in (("train", 0), ("val", 3)):
        sample = drawn(name, split=split).read(index)
        found[f"{split}/image sum"] = int(sample.image.sum(dtype=np.int64))
        found[f"{split}/label sum"] = int(sample.label.sum(dtype=np.int64))
        found[f"{split}/image"] = digest(sample.image)
        found[f"{split}/label"] = digest(sample.label)
        if sample.lanes is not None:
            points = np.concatenate([lane for lane in sample.lanes if lane is not None])
            found[f"{split}/points"] = math.fsum(points[~np.isnan(points)].tolist())
    return found


def drawn(name: str, split: str = "train", **keys):
    kind = registry.datasets.get(name)
    return kind(kind.Config.model_validate({"name": name, **keys}), split)


# -- all of them -----------------------------------------------------------------------------------


def groups() -> dict[str, Callable[[], Values]]:
    """By name, what computes a group of values."""
    plain_methods = [m.name for m in registry.methods if m.__module__.startswith("segkd.")]
    found: dict[str, Callable[[], Values]] = {
        f"method/{name}": partial(method_values, name) for name in plain_methods
    }
    found |= {
        f"variant/{name}": partial(method_values, name, **VARIANTS[name]) for name in VARIANTS
    }
    found |= {f"run/{name}": partial(run_values, name) for name in RUNS}
    found["metrics"], found["augmentation"] = metric_values, augmentation_values
    found |= {f"scene/{name}": partial(scene_values, name) for name in ("streets", "lanes")}
    return found


def draw(*parts: str) -> np.random.Generator:
    seed = hashlib.sha256("/".join(parts).encode()).digest()[:8]
    return np.random.default_rng(int.from_bytes(seed))


def fill(module: nn.Module, who: str) -> None:
    """Parameters from numpy, in the module's order: matrices of unit gain, vectors near 1 or 0."""
    for number, (name, parameter) in enumerate(module.named_parameters()):
        rng = draw("weights", who, str(number))
        values = rng.standard_normal(tuple(parameter.shape))
        if parameter.ndim > 1:
            values *= math.sqrt(parameter.shape[0] / parameter.numel())
        else:
            values = 0.1 * values + (0.0 if name.endswith("bias") else 1.0)
        parameter.data.copy_(torch.from_numpy(np.asarray(values)))


def fill_vectors(module: nn.Module) -> None:
    """The vectors that spectral norms start from: one, so that torch need not draw them."""
    for name, buffer in module.named_buffers():
        if name.endswith(("._u", "._v")):
            buffer.fill_(len(buffer) ** -0.5)


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Whatever is made inside has parameters of this kind."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


_OF_A_PROCESSOR = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags")


def machine() -> str:
    """A name for what decides the last digit: processor and libraries.

    Virtual machines call processors of several generations by one name; their model numbers and
    instructions tell them apart.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        processor = "".join(line for line in lines if line.startswith(_OF_A_PROCESSOR))
    except OSError:
        processor = platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    facts = f"{processor} {capability} {torch.__version__} {np.__version__}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    stored = json.loads(FILE.read_text()) if FILE.exists() and wanted else {"values": {}}
    stored["machine"] = machine()
    for name, compute in groups().items():
        if not wanted or name in wanted:
            stored["values"][name] = compute()
    FILE.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
