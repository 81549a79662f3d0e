"""The Python interface: the commands as functions, also for the caller's modules and datasets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from segkd.config.load import (
    foreign_evaluation,
    load_config,
    require_read,
    stored_evaluation,
)
from segkd.config.read_keys import evaluation_keys, keys_beside_dataset, limit_given_threads
from segkd.config.recipe import expand
from segkd.config.schema import EvaluationConfig, ForeignEvaluationConfig, RunConfig
from segkd.data.arrays import Arrays
from segkd.data.base import DataConfig, Dataset
from segkd.data.lane_base import is_lane_set
from segkd.data.unlabeled import Images
from segkd.engine.recipe import run_recipe
from segkd.engine.run import train_run
from segkd.engine.setup import open_dataset
from segkd.errors import ConfigError
from segkd.evaluation.evaluator import Outcome, evaluate_network
from segkd.export.student import export as export
from segkd.inference.lane_view import note_on_size
from segkd.inference.student import Student, opened
from segkd.inference.student import predict as predict
from segkd.models.build import build_network, network_from_file
from segkd.models.class_names import no_names
from segkd.models.given import with_classes
from segkd.models.network import Network
from segkd.pipeline.budget import Budget, number_of
from segkd.pipeline.distill import Distilled
from segkd.pipeline.distill import distill as run_distill
from segkd.pipeline.request import OWN_MODULE, Given, Request, network_of
from segkd.publish import save_pretrained as save_pretrained
from segkd.runtime import Runtime

Config = str | Path | Mapping[str, Any] | RunConfig
Data = Dataset | Sequence[Any]


def train(
    config: Config | None = None,
    student: nn.Module | Student | None = None,
    teachers: nn.Module | Student | Mapping[str, nn.Module | Student] | None = None,
    train_set: Data | None = None,
    val_set: Data | None = None,
    unlabeled_set: Dataset | Sequence[Any] | None = None,
    *,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    **values: Any,
) -> dict[str, Any]:
    """Trains a run, or all runs of a recipe.

    Args:
        config: path or name of a config, plain values, or a RunConfig; None: the quick start.
        student: a ``Network``, or a module that takes normalised images (B, 3, H, W) and returns
            logits (B, K, h, w) (see ``segkd.models.module.wrap`` for taps).
        teachers: networks by name, or a single one, which is called ``main``. In a recipe they
            are those of runs that have ``methods:`` but no ``teachers:``.
        train_set, val_set: a ``Dataset``, or a sequence of pairs: image (H, W, 3) uint8 RGB and
            label (H, W) of class ids.
        unlabeled_set: images without labels: a ``Dataset`` or a sequence of images (H, W, 3)
            uint8 RGB. ``data={"unlabeled": {"share": 0.5}}`` sets their share of each step.
        classes: names of the classes, if a set is a sequence.
        overrides: as on the command line, e.g. ``["optim.lr=0.01"]``.
        values: keys of the config, e.g. ``steps=100, optim={"lr": 0.01}``.

    Returns:
        The summary of the run (its summary.json), or the comparison of the recipe.

    Raises:
        SegKDError: says what is wrong and how to fix it.
    """
    if isinstance(teachers, nn.Module | Student):
        teachers = {"main": teachers}
    given = {
        "student": student,
        "teachers": teachers,
        "train_set": train_set,
        "val_set": val_set,
        "unlabeled_set": unlabeled_set,
    }
    own = {name: part for name, part in given.items() if part is not None}
    loaded = load_config(_plain(config, own), overrides, values=values, own_parts=bool(own))
    if loaded.run:
        return train_run(loaded.run, **_own_parts(own, classes, loaded.run))
    assert loaded.recipe is not None  # a config is a run or a recipe
    others = [name for name in own if name != "teachers"]
    if others:
        raise ConfigError(
            f"{', '.join(others)}: only for a single run, but {config} is a recipe. Give the "
            "config of one run"
        )
    first = expand(loaded.recipe)[0].config
    return run_recipe(loaded.recipe, **_own_parts(own, classes, first))


def distill(
    teacher: str | Path | nn.Module | Student,
    student: str | nn.Module = "",
    data: str | Path = "",
    *,
    unlabeled: str | Path | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    baseline: bool = True,
    max_params: int | str | None = None,
    max_latency_ms: float | None = None,
    overrides: Sequence[str] = (),
) -> Distilled:
    """From images and a teacher to a small student, its report and its ONNX file.

    As `segkd distill`: the same call goes on where it was stopped.

    Args:
        teacher: a run folder or checkpoint, ``pretrained:NAME``, ``hf:ID_OR_FOLDER``, an ONNX
            file, ``module:function``, ``train:ARCH/ENCODER`` (unless ``student`` is a module),
            or a network (see ``train``).
        student: ``ARCH``, ``ARCH/ENCODER``, a checkpoint, or a module, which is copied for each
            run; empty: the default, or by the budget.
        data: folder of images with masks or without, a config with a block ``data:``, or the name
            of a dataset.
        unlabeled: folder of images without masks, in addition.
        out: folder of everything; default: ``runs/distill_NAME`` of the data.
        steps: of training; default: by the number of images.
        baseline: also train the student without the teacher.
        max_params, max_latency_ms: budget instead of ``student``: the best candidate is taken.
        overrides: ``key=value`` of each run, e.g. ``["optim.lr=0.0005"]``.

    Returns:
        Paths, scores, and ``student``, which predicts.

    Raises:
        SegKDError: says what is wrong and how to fix it.
    """
    if not data:
        raise ConfigError("data is missing: the folder of your images, e.g. data='fields'")
    request = Request(
        teacher=OWN_MODULE if isinstance(teacher, nn.Module | Student) else str(teacher),
        data=str(data),
        student=OWN_MODULE if isinstance(student, nn.Module) else str(student),
        unlabeled=str(unlabeled or ""),
        out=None if out is None else Path(out),
        steps=steps,
        baseline=baseline,
        budget=Budget(
            None if max_params is None else number_of(str(max_params), "max_params"),
            max_latency_ms,
        ),
        overrides=tuple(overrides),
    )
    given = Given(
        student if isinstance(student, nn.Module) else None,
        teacher if isinstance(teacher, nn.Module | Student) else None,
    )
    return run_distill(request, given=given)


def evaluate(
    source: str | Path | nn.Module | Student,
    dataset: Data | None = None,
    *,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    predictions: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Outcome:
    """Evaluates a student on the validation split of its training, or on another dataset.

    Args:
        source: a run folder, a checkpoint, ``pretrained:NAME``, a Student or a network; or a
            weights file of another program, whose network is given by ``overrides``:
            ``["student.arch=espnetv2", …]``.
        dataset: required for a network; default: the configured one. Or a sequence of pairs:
            image (H, W, 3) uint8 RGB and label (H, W) of class ids.
        classes: names of the classes, if ``dataset`` is a sequence of pairs.
        overrides: keys of ``data``, ``eval`` and ``runtime``, e.g. ``["eval.flip=true"]``; also of
            ``student``, and ``data.name``, for a weights file of another program. Keys that an
            evaluation does not read are refused.
        progress: called as ``progress(done, total)``.
        predictions: for lanes: folder for detected lanes in the official format of the dataset.
        tell: called with lines about reordered classes and matched weights.

    Returns:
        A ``Result`` with the IoU of each class, or a ``LaneResult`` with the official score.

    Raises:
        SegKDError: says what is wrong and how to fix it.
    """
    config, module = _subject(source, overrides, dataset)
    _require_read(overrides, config, dataset)
    if dataset is None:
        data = open_dataset(config, config.data.val_split)
    else:
        data = _dataset(dataset, classes, config.data, "dataset")
    if isinstance(config, ForeignEvaluationConfig):
        module = _foreign(config, data, tell)
    assert module is not None  # of any other source
    network = network_of(module, len(data.classes))
    if isinstance(network, Network):
        what = str(source) if isinstance(source, str | Path) else f"the given {network.title}"
        network = with_classes(network, data.classes, what)
        for note in (network.classes_match, _about_size(network, data)):
            if tell is not None and note and not isinstance(config, ForeignEvaluationConfig):
                tell(f"{what}: {note}")
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    network = network.to(runtime.device)
    return evaluate_network(
        network,
        data,
        config.eval,
        runtime,
        workers=config.data.workers,
        progress=progress,
        predictions=Path(predictions) if predictions else None,
    )


def load_student(source: str | Path, module: nn.Module | None = None) -> Student:
    """A trained student with ``predict``, ``classes``, ``palette`` and ``network``.

    ``student.predict(image)`` segments an image, an array (H, W, 3) uint8 RGB or a path;
    ``student.network(images)`` returns the ``Outputs`` of uint8 images (B, 3, H, W).

    Args:
        source: a run folder, a checkpoint, an exported ``.onnx``, or ``pretrained:NAME``.
        module: the wrapped module, if the student is one; its weights are overwritten.

    Raises:
        CheckpointError: not a student file, or it does not fit the module.
    """
    return Student(opened(source, module))


def _about_size(network: Network, data: Dataset) -> str:
    """What to know of the size of images, if lanes are scored on another set than the student's."""
    payload = network.info.payload
    if "lanes" not in payload or not is_lane_set(data) or data.name == payload.get("dataset"):
        return ""
    facts, config = payload["lanes"] | {"resize": network.info.resize}, data.config
    return note_on_size(facts, data.annotation(0).size, config.cut_top, config.resize)


def _plain(config: Config | None, own: Mapping[str, Any]) -> str | Path | Mapping[str, Any] | None:
    """The config as ``load_config`` takes it; objects of the caller need not be configured."""
    if isinstance(config, RunConfig):
        return config.model_dump(mode="json")
    if isinstance(config, str | Path) or (config is None and not own):
        return config
    plain = dict(config or {})
    if "student" in own:
        plain.setdefault("student", {"arch": "module"})
    if "train_set" in own:
        plain.setdefault("data", {"name": Arrays.name})
    return plain


def _dataset(data: Data, classes: Sequence[str], config: DataConfig, what: str) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if not classes:
        raise ConfigError(
            f"{what}: a sequence of pairs has no class names: give classes=['road', …]"
        )
    return Arrays(data, classes, config=config, split=what)


def _own_parts(own: Mapping[str, Any], classes: Sequence[str], run: RunConfig) -> dict[str, Any]:
    """Objects of the caller as networks and datasets."""
    parts: dict[str, Any] = {
        name: _dataset(own[name], classes, run.data, name)
        for name in ("train_set", "val_set")
        if name in own
    }
    if not own.keys() & {"student", "teachers", "unlabeled_set"}:
        return parts
    split = run.data.val_split if run.data.all_unlabelled else run.data.train_split
    dataset = next(iter(parts.values()), None) or open_dataset(run, split)
    if "unlabeled_set" in own:
        given = own["unlabeled_set"]
        parts["unlabeled_set"] = given if isinstance(given, Dataset) else Images(given, dataset)
    num_classes = len(dataset.classes)
    if "student" in own:
        parts["student"] = network_of(own["student"], num_classes)
    if "teachers" in own:
        teachers = own["teachers"].items()
        parts["teachers"] = {name: network_of(module, num_classes) for name, module in teachers}
    return parts


def _subject(
    source: str | Path | nn.Module | Student, overrides: Sequence[str], dataset: Data | None
) -> tuple[EvaluationConfig, nn.Module | None]:
    """Configuration and network of a source.

    The network is None for a file of another program, whose configuration says how to build it.
    """
    limit_given_threads(overrides)  # before the network: sessions of exported files keep their own
    if isinstance(source, Student):
        source = source.network
    if isinstance(source, nn.Module):
        if dataset is None:
            raise ConfigError("evaluate(network) needs a dataset: evaluate(network, dataset)")
        payload = source.info.payload if isinstance(source, Network) else {}
        return stored_evaluation(payload, overrides), source
    config = foreign_evaluation(source, overrides)
    if config is not None:
        return config, None
    network, payload = network_from_file(source)
    return stored_evaluation(payload, overrides), network


def _require_read(overrides: Sequence[str], config: EvaluationConfig, dataset: Data | None) -> None:
    """Raises ConfigError for an override that the evaluation would not read."""
    if dataset is None:
        read, data = evaluation_keys(config.data), config.data.name
    elif isinstance(dataset, Dataset):
        read, data = keys_beside_dataset(type(dataset)), dataset.name
    else:
        read, data = keys_beside_dataset(Arrays, ("resize", "on_error")), Arrays.name
    if isinstance(config, ForeignEvaluationConfig):
        read = ("student", *read)
    require_read(overrides, read, f"an evaluation on '{data}'")


def _foreign(
    config: ForeignEvaluationConfig, data: Dataset, tell: Callable[[str], None] | None
) -> Network:
    """A network with the weights of another program."""
    network = build_network(config.student, len(data.classes), data.classes)
    if network.match is None:
        raise ConfigError(
            f"student: {config.student.checkpoint} was written by segkd and contains the "
            "configuration of its network. Remove the keys `student.…`"
        )
    lines = [network.match, network.normalization, network.normalization.warning]
    lines += [network.classes_match]
    if not config.student.classes:
        lines.append(f"WARNING: {no_names('student', config.student.checkpoint, data.classes)}")
    for line in lines:
        if tell and str(line):
            tell(str(line))
    return network
