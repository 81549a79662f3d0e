"""Runs the networks of a report: results image by image, and latencies."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from segkd.config.load import dump_config, load_evaluation, require_read
from segkd.config.read_keys import evaluation_keys
from segkd.config.schema import EvaluationConfig, RunConfig
from segkd.data.base import Dataset
from segkd.data.loader import eval_loader
from segkd.engine.setup import open_dataset
from segkd.errors import DataError, SegKDError
from segkd.report.collect import Collection
from segkd.report.latency import latencies
from segkd.report.look import Look, cached_look, chosen_images, file_states, look, look_key
from segkd.report.networks import Actor, cast
from segkd.runtime import Runtime, limit_threads

_SAME_NUMBERS = ("data.root=", "data.workers=", "eval.batch_size=", "runtime.")
Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass
class Evidence:
    """Networks and their results.

    Attributes:
        config: of the evaluation.
        runtime: device and precision.
        dataset: None if it is not available, or of another task.
        actors: teacher, student baseline and student, as far as available; the student last.
        looks: results by fingerprint of a network.
        complete: whether the networks were evaluated as the runs are, on all images.
        as_trained: whether the user asked for no other evaluation than that of the runs.
        seconds: latency for one image, by name of the network.
        size: (H, W) of that image.
        notes: what could not be done, and why.
    """

    config: EvaluationConfig
    runtime: Runtime
    dataset: Dataset | None = None
    actors: list[Actor] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    complete: bool = True
    as_trained: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def actor(self, role: str) -> Actor | None:
        """The first network of a role."""
        return next((actor for actor in self.actors if actor.role == role), None)

    def look_of(self, name: str) -> Look | None:
        """The results of a network by its name."""
        found = (a for a in self.actors if a.name == name and a.fingerprint in self.looks)
        return next((self.looks[actor.fingerprint] for actor in found), None)

    @property
    def reference(self) -> Actor | None:
        """The network that the student is compared with: the baseline, else the teacher."""
        return None if self.actor("") is None else self.actor("baseline") or self.actor("teacher")


def gather(
    collection: Collection,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    latency: bool = True,
    bar: Bar,
) -> Evidence:
    """Runs the networks of a report; cached results are used again.

    Args:
        collection: the runs.
        folder: of the report; results are cached in it.
        overrides: keys of ``data``, ``eval`` and ``runtime``.
        limit: number of images to evaluate; default: all.
        latency: whether to measure latencies.
        bar: opens a progress bar with a title.

    Raises:
        ConfigError: invalid overrides.
    """
    run = collection.student.shown.config
    config = _config(run, overrides)
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    limit_threads(config.runtime.threads, run.data.workers)
    evidence = Evidence(config, runtime)
    try:
        dataset = open_dataset(config, config.data.val_split)
        evidence.actors, evidence.notes = cast(collection)
        evidence.size = size = _first_size(dataset)
    except (SegKDError, OSError) as error:
        evidence.notes.append(f"The validation images could not be opened: {error}")
        return evidence
    for actor in evidence.actors:
        actor.network.to(runtime.device)
    _note_overrides(evidence, overrides)
    if collection.task == "segmentation":
        _look_at_all(evidence, dataset, folder / "cache", limit, bar)
    if latency and evidence.actors:
        networks = {actor.name: actor.network for actor in evidence.actors}
        try:
            evidence.seconds = latencies(networks, size, runtime)
        except SegKDError as error:  # one that is evaluated in windows may take no other size
            evidence.notes.append(f"Latencies could not be measured: {error}")
    return evidence


def _note_overrides(evidence: Evidence, overrides: Sequence[str]) -> None:
    """Notes keys with which the report's evaluation is another one than that of the runs."""
    others = [one for one in overrides if not one.startswith(_SAME_NUMBERS)]
    if others:
        evidence.as_trained = False
        evidence.notes.append(
            "Classes, confusions, images and boundaries are of an evaluation with "
            f"{' '.join(others)}; the result is that of the training."
        )


def _look_at_all(
    evidence: Evidence, dataset: Dataset, kept: Path, limit: int | None, bar: Bar
) -> None:
    config, runtime = evidence.config, evidence.runtime
    scored = min(len(dataset), config.eval.limit or len(dataset))
    indices = chosen_images(scored, limit)
    evidence.complete = len(indices) == scored and evidence.as_trained
    evidence.dataset = dataset
    files = file_states(dataset, indices)
    for actor in list(evidence.actors):

        def make(actor: Actor = actor) -> Look:
            with bar(f"report: {actor.name}") as advance:
                return look(actor.network, dataset, config, runtime, indices, advance)

        key = look_key(actor.fingerprint, config, indices, files)
        try:
            evidence.looks[actor.fingerprint] = cached_look(kept, key, make)
        except SegKDError as error:
            evidence.notes.append(f"'{actor.name}' could not be evaluated: {error}")
            evidence.actors.remove(actor)


def _config(run: RunConfig, overrides: Sequence[str]) -> EvaluationConfig:
    """The evaluation of the run, with the user's overrides."""
    plain = yaml.safe_load(dump_config(run))
    text = yaml.safe_dump({key: plain[key] for key in EvaluationConfig.model_fields})
    config = load_evaluation(text, overrides)
    require_read(overrides, evaluation_keys(config.data), "this report")
    return config


def _first_size(dataset: Dataset) -> tuple[int, int]:
    """(H, W) of the first image, of those that can be read."""
    for batch, _ in eval_loader(dataset):
        height, width = batch.images.shape[2:]
        return height, width
    raise DataError(f"none of split '{dataset.split}' can be read")
