"""The folder of one run: configuration, checkpoints, summary."""

import contextlib
import json
from pathlib import Path

import torch

from segkd import checkpoint
from segkd.config.load import config_difference, dump_config, load_text
from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig
from segkd.data.base import Dataset
from segkd.engine.extension import refusal
from segkd.engine.lock import RunLock
from segkd.engine.logging import display_print
from segkd.errors import ConfigError, DataError, SegKDError
from segkd.evaluation.evaluator import Outcome, Result
from segkd.faults import no_space
from segkd.files import write_text
from segkd.models import weights
from segkd.models.network import Network
from segkd.models.normalization import normalization
from segkd.texts import json_text

_SUMMARY_KEYS = ("steps", "student", "teachers", "seconds_per_step", "peak_memory")


class RunFolder:
    """config.yaml, metrics.csv, log.txt, checkpoints/{last,best}.pt and summary.json of a run.

    Args:
        config: the run.
        extend: a run may go on to more steps than it was configured for, where that changes
            nothing of those that it has done.
    """

    def __init__(self, config: RunConfig, *, extend: bool = True) -> None:
        if config.out is None:
            raise ConfigError("out: a run needs a folder. Add out=runs/my_run")
        self.config, self.path, self.extend = config, Path(config.out), extend
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self._config, self._summary = self.path / "config.yaml", self.path / "summary.json"
        self._lock = RunLock(self.path)
        self._state: dict | None = None

    def open(self) -> None:
        """Claims the folder for this process and this configuration.

        Raises:
            ConfigError: another process trains in it, it holds a run with another configuration,
                or it cannot be written.
            CheckpointError: last.pt is damaged, or no training state.
        """
        try:
            self._lock.acquire(display_print)
            try:
                self._prepare()
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise ConfigError(
                f"out: cannot write into {self.path}: {error.strerror or error}. Choose a folder "
                "that you may write to, with space left: out=FOLDER"
            ) from error

    def close(self) -> None:
        """Lets other processes train in it."""
        self._lock.release()

    def finished(self) -> dict | None:
        """The summary, if this very run has been finished before.

        Raises:
            ConfigError: the summary is damaged, or of a run with another configuration.
        """
        if not self._summary.exists():
            return None
        summary = self._read_summary()
        longer = self._require_same(self._stored_config())
        return None if longer else summary

    def load_last(self) -> dict | None:
        """The state to go on from; None for a new run."""
        if self._state is None and self.last.exists():
            self._state = checkpoint.load_run(self.last)
        state, self._state = self._state, None
        return state

    def save_last(self, state: dict) -> None:
        """Writes everything that is needed to go on."""
        self._lock.check()
        payload = {"format": checkpoint.FORMAT, "config": dump_config(self.config), **state}
        checkpoint.save(self.last, payload)

    def save_best(self, network: Network, dataset: Dataset, *, step: int, result: Outcome) -> None:
        """Writes the student alone: no auxiliary head, nothing of teachers and methods."""
        self._lock.check()
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
        text = json_text(summary, indent=2) + "\n"
        try:
            write_text(self._summary, text)
        except OSError as error:
            raise no_space(self._summary, error) from error

    def check_same(self) -> None:
        """Raises ConfigError with the difference if it holds a run of another configuration.

        A run that was refused before its first step has left its configuration alone, and may
        start again with a repaired one.
        """
        done = None
        if self.last.exists():
            self._state = self._state or checkpoint.load_run(self.last)
            done = self._state["step"]
            self._require_same(self._state["config"], done, of_last=True)
        elif not (self._summary.exists() or self.best.exists()):
            return
        self._require_same(self._stored_config(), done)

    # -- what is stored ------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.check_same()
        for path in (self._config, self._summary, self.path / "metrics.csv", self.last, self.best):
            for scrap in path.parent.glob(f".{path.name}.*.part"):  # of a killed process
                scrap.unlink(missing_ok=True)
        self._summary.unlink(missing_ok=True)  # it goes on to more steps
        write_text(self._config, dump_config(self.config))

    def _read_summary(self) -> dict:
        try:
            summary = json.loads(self._summary.read_text(encoding="utf-8"))
            missing = [key for key in _SUMMARY_KEYS if key not in summary]
            if missing:
                raise ValueError(f"it has no '{missing[0]}'")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{self._summary} is damaged: {error}. Delete it and start the same command again: "
                + ("it is written anew from last.pt" if self.last.exists() else "it trains anew")
            ) from error
        return summary

    def _stored_config(self) -> str:
        """The configuration of a finished run: its config.yaml, or what a checkpoint holds."""
        with contextlib.suppress(OSError, ValueError):
            text = self._config.read_text(encoding="utf-8")
            load_text(text)
            return text
        if self.last.exists():
            self._state = self._state or checkpoint.load_run(self.last)
            return self._state["config"]
        with contextlib.suppress(SegKDError, KeyError):
            return checkpoint.load(self.best)["config"]
        raise ConfigError(
            f"{self._config} is missing or damaged, and there is no checkpoint to compare with: "
            f"nobody knows which run {self.path} holds. Choose another folder: out=runs/NAME, or "
            "delete this one to train anew"
        )

    def _require_same(self, text: str, done: int | None = None, *, of_last: bool = False) -> bool:
        """Whether the run of a stored configuration goes on to more steps; refuses other changes.

        Args:
            text: the stored configuration.
            done: steps of last.pt; None: as many as the run was configured for.
            of_last: it stands in last.pt.
        """
        try:
            old = load_text(text)
        except ConfigError as error:
            raise ConfigError(
                f"{self.path}: the configuration that was stored with this run cannot be read: "
                f"{error}. Choose another folder: out=runs/NAME"
            ) from error
        changed = _difference(old, self.config)
        if not changed:
            return False
        lines = "\n  ".join(changed)
        if [line.partition(":")[0] for line in changed] == ["steps"]:
            why = refusal(old, self.config, self.path, alone=self.extend, done=done)
            if why is None:
                return True
            raise ConfigError(f"{self.path}: {lines}: {why}")
        if of_last and self._config_is_ours():
            raise ConfigError(
                f"{self.last} is of another run, whose configuration differs:\n  {lines}\n"
                f"Put back the file that belongs here, or delete {self.path} to train anew"
            )
        raise ConfigError(
            f"{self.path} holds a run with another configuration:\n  {lines}\n"
            "Undo the change to go on with that run, or choose another folder: out=runs/NAME"
        )

    def _config_is_ours(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            stored = load_text(self._config.read_text(encoding="utf-8"))
            return not _difference(stored, self.config)
        return False


def finished_before(config: RunConfig, summary: dict) -> str:
    """That there is nothing to do, and what would be a new run."""
    score = summary.get("score", summary.get("miou"))
    told = "no score" if score is None else f"{100 * score:.2f}"
    return (
        f"{config.out}: finished before: {summary.get('score_name', 'mIoU')} {told} after "
        f"{summary['steps']} steps. A new run: out=runs/NAME; a longer one: steps=N, where the "
        "schedule allows it"
    )


def _difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines ``key: old -> new`` of what decides a run's numbers."""
    return config_difference(_with_statistics(old), _with_statistics(new))


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
