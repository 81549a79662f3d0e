"""Checks of one run: folder, data, networks and methods, a trial step."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from segkd import checkpoint, registry
from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.cpus import available_cpus
from segkd.data.augment_list import build_augment
from segkd.data.base import Dataset
from segkd.data.reading import check_sample
from segkd.data.survey import differing_sizes, survey
from segkd.data.unlabeled import Joined, labels_as_told
from segkd.doctor.environment import SHARED_MEMORY_REPAIR, shared_memory
from segkd.doctor.finding import Finding, Level, reported
from segkd.doctor.memory import existing_above, trial_step
from segkd.doctor.parts import assembled, networks
from segkd.doctor.pulls import pulls
from segkd.engine.match import foreseen
from segkd.engine.other_sets import open_other
from segkd.engine.run_folder import RunFolder
from segkd.engine.setup import open_dataset, open_training_set
from segkd.engine.stand_in import stand_in, without_compile
from segkd.engine.unlabeled import counted, overlaps

_PREFETCHED = 2  # batches of each loader process
_BYTES_A_PIXEL = 3 + 8 + 1  # image, label, padding mask


@dataclass(frozen=True)
class PlannedCheck:
    """A run to check.

    Attributes:
        config: as configured.
        stand_in: with untrained networks instead of those of earlier runs.
        in_recipe: whether it is one of several runs.
        alone: whether it depends on none of them.
        steps: how its number of steps follows from `match`; empty without it.
    """

    config: RunConfig
    stand_in: RunConfig
    in_recipe: bool = False
    alone: bool = True
    steps: str = ""


def planned_runs(config: str | None, overrides: Sequence[str]) -> dict[str, PlannedCheck]:
    """The run of a config, or each run of a recipe with its first seed, by name.

    Args:
        config: path or name of a config; None: the quick start.
        overrides: ``key=value`` texts.

    Raises:
        ConfigError: an invalid config.
    """
    loaded = load_config(config, overrides)
    if loaded.run is not None:
        return {"": PlannedCheck(loaded.run, without_compile(loaded.run))}
    assert loaded.recipe is not None  # a config is a run or a recipe
    plan = expand(loaded.recipe)
    first = {planned.name: planned for planned in reversed(plan)}
    checks = {}
    for name in loaded.recipe.runs:
        trained, steps = foreseen(loaded.recipe, first[name])
        tried = without_compile(stand_in(first[name], plan))
        alone = not first[name].depends_on
        checks[name] = PlannedCheck(trained, tried, True, alone, steps)
    return checks


def examine_run(
    name: str, run: PlannedCheck, *, quick: bool, announce: Callable[[str], None]
) -> Iterator[Finding]:
    """Yields findings about a run.

    Args:
        name: name of the run, a prefix of what each finding is about; may be empty.
        run: the run.
        quick: skip trial steps.
        announce: called with what is checked next.
    """
    prefix = f"{name}: " if name else ""
    if run.steps:
        yield Finding("ok", f"{prefix}steps", run.steps)
    for findings in _examine(run, quick, lambda what: announce(prefix + what)):
        for one in findings:
            yield Finding(one.level, prefix + one.about, one.text, one.repair)


def _examine(
    run: PlannedCheck, quick: bool, announce: Callable[[str], None]
) -> Iterator[list[Finding]]:
    """The findings, part by part."""
    announce("folder and data")
    found: list[Finding] = []
    finished = _examine_folder(run, found)
    yield found
    if finished:
        return
    found = []
    sets = _examine_data(run.config, found)
    _examine_plan(run.config, _size(run.config, sets[0]) if sets else None, found)
    if sets:
        _examine_others(run.config, sets[1], found)
    yield found
    if sets is None:
        text = "were not checked, since the data cannot be used"
        yield [Finding("warning", "networks and methods", text)]
        return
    announce("networks and methods")
    found = []
    student = networks(run.stand_in, sets[0].classes, _size(run.config, sets[0]), found)
    parts = None
    if student is not None:
        parts = assembled(run.stand_in, student, sets, found, in_recipe=run.in_recipe)
    yield found
    if parts is None or quick:
        return
    announce("a trial step")
    found = []
    with reported("trial step", found):
        trial_step(run.stand_in, parts, found)
    yield found
    if run.config.methods and not any(one.level == "error" for one in found):
        announce("gradients of each method")
        found = []
        with reported("trial steps", found):
            pulls(run.stand_in, parts, found)
        yield found


def _examine_folder(run: PlannedCheck, found: list[Finding]) -> bool:
    """Checks the run folder and write access; returns whether the run is finished."""
    config, folder = run.config, RunFolder(run.config, extend=run.alone)
    with reported("run folder", found):
        folder.check_same()
        if folder.finished() is not None:
            found.append(Finding("ok", "run folder", f"{folder.path}: finished, not repeated"))
            return True
        if folder.last.exists():
            step = checkpoint.load(folder.last)["step"]
            text = f"{folder.path}: resuming from step {step} of {config.steps}"
            found.append(Finding("ok", "run folder", text))
        else:
            found.append(Finding("ok", "run folder", f"{folder.path}: a new run"))
    above = existing_above(folder.path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "not a folder" if not above.is_dir() else "no write access"
        text = f"cannot write into {folder.path}: {above}: {why}"
        found.append(Finding("error", "run folder", text, "Choose another one: out=FOLDER"))
    return False


def _examine_data(config: RunConfig, found: list[Finding]) -> tuple[Dataset, Dataset] | None:
    """Checks that all images exist and a few can be read; None if not."""
    data = config.data
    train = None if data.all_unlabelled else _examine_split(config, data.train_split, found)
    val = _examine_split(config, data.val_split, found)
    if val is None or (train is None and not data.all_unlabelled):
        return None
    if train is not None and train.classes != val.classes:
        text = (
            f"training split and evaluation split differ in classes: {len(train.classes)} and "
            f"{len(val.classes)}"
        )
        found.append(Finding("error", "data", text, "Declare the same classes for both"))
        return None
    both = _with_unlabelled(config, train, val, found)
    seen = survey(both) if config.task.weight > 0 and both is not None else []
    seen += differing_sizes(val, config.eval.batch_size, config.eval.limit)
    found += [Finding(one.level, "data", f"{one.file}: {one.text}", one.repair) for one in seen]
    if both is None or any(one.level == "error" for one in seen):
        return None
    return both, val


def _examine_others(config: RunConfig, own: Dataset, found: list[Finding]) -> None:
    """Checks each set under ``eval.others``, and reads some of its images."""
    for name, other in config.eval.others.items():
        with reported(f"eval.others.{name}", found):
            opened = open_other(name, other, config, own)
            _read_some(opened.dataset, config.data.on_error == "skip", found)
            text = f"{opened.dataset.name} {opened.dataset.split}: {len(opened.dataset)} images"
            text += f"; {opened.about}" if opened.about else ""
            found.append(Finding("ok", f"eval.others.{name}", text))


def _examine_split(config: RunConfig, split: str, found: list[Finding]) -> Dataset | None:
    """A split of the configured dataset; None if it has no images."""
    problems: list[Finding] = []
    opened = None
    with reported("data", problems):
        dataset = open_dataset(config, split)
        text = f"{config.data.name} {split}: {len(dataset)} images"
        if len(dataset) == 0:
            repair = f"See: segkd data check {config.data.name}"
            problems.append(Finding("error", "data", text, repair))
        else:
            training = split == config.data.train_split
            shown = labels_as_told(dataset, config.data) if training else dataset
            _read_some(shown, config.data.on_error == "skip", problems)
            classes = f", {len(dataset.classes)} classes"
            found.append(Finding("ok", "data", text + classes))
            opened = dataset
    found += problems
    return opened


def _with_unlabelled(
    config: RunConfig, train: Dataset | None, val: Dataset, found: list[Finding]
) -> Dataset | None:
    """The training set of the run, with unlabelled images; None if it cannot be built."""
    problems: list[Finding] = []
    dataset = None
    with reported("data.unlabeled", problems):
        dataset = open_training_set(config, val, train)
        if dataset.unlabelled:
            text = counted(dataset, config.data.batch_size)
            found.append(Finding("ok", "unlabelled images", text))
            for text in overlaps(dataset, val):
                repair = "Remove them from one of the sets"
                found.append(Finding("warning", "unlabelled images", text, repair))
            part = dataset.other if isinstance(dataset, Joined) else dataset
            _read_some(part, config.data.on_error == "skip", problems)
    found += problems
    return dataset


def _read_some(dataset: Dataset, skip: bool, problems: list[Finding]) -> None:
    """Reads the first, the middle and the last sample."""
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        broken: list[Finding] = []
        with reported("data", broken):
            check_sample(dataset, index, dataset.read(index))
        for one in broken:
            level: Level = "warning" if skip else "error"
            problems.append(Finding(level, one.about, one.text, one.repair))


def _examine_plan(config: RunConfig, size: tuple[int, int] | None, found: list[Finding]) -> None:
    """Checks batch, workers, shared memory, transforms, and teachers without checkpoint."""
    batch, micro = config.data.batch_size, config.optim.accumulate
    if batch % micro:
        text = f"data.batch_size={batch} cannot be divided among {micro} micro-steps"
        found.append(Finding("error", "batch", text, f"Use a multiple of {micro}"))
    cores = available_cpus()
    if config.data.workers >= cores > 1:
        text = f"data.workers={config.data.workers} leaves none of {cores} cores to the training"
        repair = f"data.workers={max(cores - 1, 0)}"
        found.append(Finding("warning", "workers", text, repair))
    _examine_shared_memory(config, size, found)
    if config.data.augment:
        lanes = registry.datasets.get(config.data.name).task == "lanes"
        with reported("augment", found):
            augment = build_augment(config.data.augment, 255, lanes, size)
            found.append(Finding("ok", "augment", augment.described()))
    for name, teacher in config.teachers.items():
        if teacher.is_network and not (teacher.checkpoint or teacher.library):
            text = "has no checkpoint: its weights are random"
            repair = f"teachers.{name}.checkpoint=FILE_OR_RUN"
            found.append(Finding("warning", f"teacher {name}", text, repair))


def _examine_shared_memory(
    config: RunConfig, size: tuple[int, int] | None, found: list[Finding]
) -> None:
    """Checks the space in /dev/shm for the batches of loader processes."""
    free = shared_memory()
    if free is None or size is None or not config.data.workers:
        return
    images = config.data.batch_size // config.optim.accumulate
    ready = config.data.workers * _PREFETCHED + 1
    needed = ready * images * size[0] * size[1] * _BYTES_A_PIXEL
    if needed > free:
        text = (
            f"{config.data.workers} loader processes keep up to {needed / 2**20:.0f} MiB of "
            f"batches in /dev/shm, {free / 2**20:.0f} MiB are free"
        )
        found.append(Finding("error", "shared memory", text, SHARED_MEMORY_REPAIR))


def _size(config: RunConfig, dataset: Dataset) -> tuple[int, int] | None:
    """(H, W) of training images; None if unknown."""
    if config.data.crop or config.data.resize:
        return config.data.crop or config.data.resize
    found: list[Finding] = []
    with reported("data", found):
        height, width = dataset.read(0).image.shape[:2]
        return height, width
    return None
