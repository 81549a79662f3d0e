"""`segkd query`: stores a teacher's predictions of a folder of images."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from segkd.commands.display import progress, say
from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.engine.setup import open_dataset
from segkd.errors import ConfigError, did_you_mean
from segkd.inference.broken import raise_if_broken
from segkd.inference.media import open_source
from segkd.inference.store import PredictionStore
from segkd.models.teacher import build_teachers
from segkd.runtime import Runtime


def query(
    config: str,
    source: Path,
    overrides: Sequence[str],
    *,
    teacher: str | None,
    out: Path | None,
    stride: int,
    top_k: int | None,
) -> None:
    """Predicts the images that have no prediction in ``out`` yet.

    Args:
        config: path or name of a config with ``teachers``.
        source: a folder of images, or one image.
        overrides: ``key=value`` texts.
        teacher: which of them; None: the only one.
        out: folder of the predictions; default: predictions/TEACHER.
        stride: pixels per prediction.
        top_k: number of classes that are kept; None: all.

    Raises:
        SegKDError: no such teacher, no images, or the teacher fails.
    """
    opened = open_source(source)
    if opened.kind == "video":
        raise ConfigError(f"{source} is a video: give an image, or a folder of images")
    run, name = run_with_teacher(config, overrides, teacher)
    folder = (out or Path("predictions") / name).expanduser()
    module, store = open_store(run, name, folder, stride, top_k)
    start = time.perf_counter()
    with progress(f"query {source}") as advance:
        new = store.fill(module, opened, advance)
    rate = new / max(time.perf_counter() - start, 1e-9)
    kept = opened.count - new - len(store.broken)
    say(f"{folder}: {new} new predictions of {name}, {kept} were there; {rate:.1f} per second")
    say(f"in a config: teachers: {{{name}: {{black_box: {{predictions: {folder}}}}}}}")
    raise_if_broken(store.broken, opened.count - len(store.broken))


def run_with_teacher(
    config: str, overrides: Sequence[str], teacher: str | None
) -> tuple[RunConfig, str]:
    """The run of a config, or the first run of a recipe, that has a teacher.

    Raises:
        ConfigError: there is none of this name, or several without a name given.
    """
    loaded = load_config(config, overrides)
    runs = [loaded.run] if loaded.run else []
    if loaded.recipe is not None:
        runs = [planned.config for planned in expand(loaded.recipe)]
    names = list(dict.fromkeys(name for run in runs for name in run.teachers))
    if teacher is None and len(names) != 1:
        what = f"has the teachers {', '.join(names)}" if names else "has no teachers"
        raise ConfigError(f"{config} {what}: name one with --teacher")
    wanted = teacher or names[0]
    found = next((run for run in runs if wanted in run.teachers), None)
    if found is None:
        raise ConfigError(f"--teacher: {config} has no '{wanted}'.{did_you_mean(wanted, names)}")
    return found, wanted


def open_store(
    run: RunConfig, name: str, folder: Path, stride: int, top_k: int | None
) -> tuple[nn.Module, PredictionStore]:
    """A teacher on its device, and the folder of its predictions."""
    data = open_dataset(run, run.data.val_split)
    teachers = build_teachers(
        run.teachers,
        {name: ["logits"]},
        len(data.classes),
        classes=data.classes,
        dataset=run.data.name,
    )
    runtime = Runtime.start(run.runtime.device, run.runtime.precision)
    module = teachers.alone(name).to(runtime.device)
    source = {"teacher": run.teachers[name].model_dump(mode="json", exclude_defaults=True)}
    for part in run.teachers[name].ensemble:
        source[part] = run.teachers[part].model_dump(mode="json", exclude_defaults=True)
    store = PredictionStore(
        folder,
        tuple(data.classes),
        source,
        stride,
        top_k,
        run.data.resize,
        runtime.device,
    )
    return module, store
