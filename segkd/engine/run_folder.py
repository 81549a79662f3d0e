"""The folder of one run: configuration, checkpoints, summary."""

import contextlib
import json
from pathlib import Path

import torch

from segkd.config.load import config_difference, dump_config, load_text
from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig
from segkd.data.base import Dataset
from segkd.engine import checkpoint
from segkd.errors import ConfigError, DataError
from segkd.evaluation.evaluator import Outcome, Result
from segkd.models import weights
from segkd.models.network import Network
from segkd.models.normalization import normalization


class RunFolder:
    """config.yaml, metrics.csv, log.txt, checkpoints/{last,best}.pt and summary.json of a run."""

    def __init__(self, config: RunConfig) -> None:
        if config.out is None:
            raise ConfigError("out: a run needs a folder. Add out=runs/my_run")
        self.config, self.path = config, Path(config.out)
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self._config, self._summary = self.path / "config.yaml", self.path / "summary.json"

    def open(self) -> None:
        """Claims the folder for this configuration.

        Raises:
            ConfigError: it holds a run with another configuration, or cannot be written.
        """
        self.check_same()
        try:
            checkpoint.write_text(self._config, dump_config(self.config))
        except OSError as error:
            raise ConfigError(
                f"out: cannot write into {self.path}: {error.strerror or error}. Choose a folder "
                "that you may write to, with space left: out=FOLDER"
            ) from error

    def finished(self) -> dict | None:
        """The summary, if this very run has been finished before."""
        if not self._summary.exists():
            return None
        self.check_same()
        return json.loads(self._summary.read_text())

    def load_last(self) -> dict | None:
        """The state to go on from; None for a new run."""
        return checkpoint.load(self.last) if self.last.exists() else None

    def save_last(self, state: dict) -> None:
        """Writes everything that is needed to go on."""
        payload = {"format": checkpoint.FORMAT, "config": dump_config(self.config), **state}
        checkpoint.save(self.last, payload)

    def save_best(self, network: Network, dataset: Dataset, *, step: int, result: Outcome) -> None:
        """Writes the student alone: no auxiliary head, nothing of teachers and methods."""
        checkpoint.save(
            self.best,
            {
                "format": weights.FORMAT,
                "model": _bare_model(network),
                "weights": student_weights(network),
                "classes": list(dataset.classes),
                "palette": [[int(value) for value in colour] for colour in dataset.palette],
                "ignore_index": int(dataset.ignore_index),
                "dataset": dataset.name,
                "config": dump_config(self.config),
                "step": step,
                "score_name": result.score_name,
                **scores(float(result.score), result.score_name),
                **_lane_facts(dataset),
            },
        )

    def save_summary(self, summary: dict) -> None:
        checkpoint.write_text(self._summary, json.dumps(summary, indent=2) + "\n")

    def check_same(self) -> None:
        """Raises ConfigError with the difference if it holds a run of another configuration.

        A run that was refused before its first step has left its configuration alone, and may
        start again with a repaired one.
        """
        if not (self._config.exists() and (self.path / "metrics.csv").exists()):
            return
        stored = load_text(self._config.read_text())
        changed = config_difference(_with_statistics(stored), _with_statistics(self.config))
        if changed:
            lines = "\n  ".join(changed)
            raise ConfigError(
                f"{self.path} holds a run with another configuration:\n  {lines}\n"
                "Undo the change to go on with that run, or choose another folder: out=runs/NAME"
            )


def _with_statistics(config: RunConfig) -> RunConfig:
    """The run with the statistics that its networks normalise with, as far as is known here.

    Runs that began when ``imagenet`` was the default of ``normalize`` go on where it still is.
    """

    def resolved(model: ModelConfig | TeacherConfig) -> dict[str, object]:
        whole = model.checkpoint or not model.arch  # the file decides, whatever the encoder's
        facts = ModelConfig(
            arch=model.arch or "any",
            encoder=model.encoder,
            weights=None if whole else model.weights,
            normalize=model.normalize,
        )
        return {"normalize": normalization(facts).key}

    teachers = {
        name: teacher.model_copy(update=resolved(teacher))
        for name, teacher in config.teachers.items()
    }
    student = config.student.model_copy(update=resolved(config.student))
    return config.model_copy(update={"student": student, "teachers": teachers})


def scores(value: float, name: str, prefix: str = "") -> dict[str, float]:
    """A score by its key, and mIoU by its own key besides."""
    own = {f"{prefix}miou": value} if name == Result.score_name else {}
    return own | {f"{prefix}score": value}


def _lane_facts(dataset: Dataset) -> dict:
    """What is needed to find lanes with a student, also one of the caller's own dataset."""
    if dataset.task != "lanes":
        return {}
    size = None
    with contextlib.suppress(DataError):  # an image that evaluation has skipped
        size = list(dataset.annotation(0).size)
    cut_top = dataset.config.cut_top
    return {"lanes": {"metric": dataset.metric, "cut_top": cut_top, "size": size}}


def student_weights(network: Network) -> dict[str, torch.Tensor]:
    """The network's weights without its auxiliary heads."""
    state = network.state_dict()
    return {k: v.detach().cpu() for k, v in state.items() if not k.startswith("aux_heads.")}


def _bare_model(network: Network) -> dict | None:
    """The network's configuration without training-only parts; None for a caller's own module."""
    if network.config is None:
        return None
    changes = {"aux_head": None, "weights": None, "checkpoint": None}
    return network.config.model_copy(update=changes).model_dump(mode="json")
