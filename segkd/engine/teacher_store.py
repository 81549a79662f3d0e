"""A teacher of a config by itself, and the folder of its predictions."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.engine.setup import open_dataset
from segkd.engine.sources import sources
from segkd.errors import ConfigError, did_you_mean
from segkd.inference.store import PredictionStore
from segkd.models.teacher import build_teachers
from segkd.runtime import Runtime


def run_with_teacher(
    config: str, overrides: Sequence[str], teacher: str | None
) -> tuple[RunConfig, str]:
    """The run of a config, or the first run of a recipe, that has a teacher; and its name.

    Args:
        config: path or name.
        overrides: ``key=value`` texts.
        teacher: name of the teacher; None: the only one.

    Raises:
        ConfigError: there is none of this name, or several without a name given.
    """
    loaded = load_config(config, overrides)
    runs = [loaded.run] if loaded.run else []
    if loaded.recipe is not None:
        runs = [planned.config for planned in expand(loaded.recipe)]
    names = list(dict.fromkeys(name for run in runs for name in run.teachers))
    if teacher is None and len(names) != 1:
        what = f"has the teachers {', '.join(names)}: name one with --teacher"
        raise ConfigError(f"{config} {what if names else 'has no teachers: add `teachers:` to it'}")
    wanted = teacher or names[0]
    found = next((run for run in runs if wanted in run.teachers), None)
    if found is None:
        raise ConfigError(f"--teacher: {config} has no '{wanted}'.{did_you_mean(wanted, names)}")
    return found, wanted


def open_store(
    run: RunConfig,
    name: str,
    folder: Path,
    *,
    stride: int = 4,
    top_k: int | None = None,
    data: Dataset | None = None,
) -> tuple[nn.Module, PredictionStore]:
    """A teacher on its device, and the folder of its predictions.

    Args:
        run: with the teacher.
        name: of the teacher.
        folder: of the predictions.
        stride, top_k: see ``PredictionStore``.
        data: gives the classes; None: the run's evaluation split.

    Raises:
        SegKDError: the teacher cannot be opened, or has stored predictions itself.
    """
    data = data or open_dataset(run, run.data.val_split)
    teachers = build_teachers(
        run.teachers,
        {name: ["logits"]},
        len(data.classes),
        classes=data.classes,
        dataset=run.data.name,
    )
    if not teachers.has_classes(name):
        raise ConfigError(
            f"teachers.{name}: has features without classes, so it predicts nothing. Name a "
            "teacher with classes"
        )
    if teachers.stores():
        raise ConfigError(
            f"teachers.{name}: has stored predictions already: only a network, an ONNX file or a "
            "function can predict further images"
        )
    runtime = Runtime.start(run.runtime.device, run.runtime.precision)
    module = teachers.alone(name).to(runtime.device)
    parts = [name, *run.teachers[name].ensemble]
    source = {
        part: run.teachers[part].model_dump(mode="json", exclude_defaults=True) for part in parts
    }
    beginnings = tuple(f"teachers.{part}." for part in parts)
    digests = {key: one for key, one in sources(run).items() if key.startswith(beginnings)}
    store = PredictionStore(
        folder,
        tuple(data.classes),
        source,
        stride,
        top_k,
        run.data.resize,
        runtime.device,
        tuple(sorted(teachers.unknown(name))),
        digests=digests,
    )
    return module, store
