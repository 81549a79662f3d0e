"""The folder of one run: configuration, checkpoints, summary."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segkd import checkpoint
from segkd.config.load import config_difference, dump_config, load_text
from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig
from segkd.data.base import Dataset
from segkd.data.lane_base import is_lane_set
from segkd.engine.extension import refusal
from segkd.engine.lock import RunLock
from segkd.engine.logging import display_print
from segkd.engine.placement import uses_channels_last
from segkd.engine.sources import require_same
from segkd.engine.summary import scores
from segkd.errors import ConfigError, DataError, SegKDError
from segkd.evaluation.evaluator import Outcome
from segkd.faults import no_space
from segkd.files import write_text
from segkd.models import weights
from segkd.models.network import Network
from segkd.models.normalization import normalization
from segkd.models.quantized import baked_state, facts_of
from segkd.runtime import Runtime, device_type
from segkd.texts import json_text

_SUMMARY_KEYS = ("steps", "student", "teachers", "seconds_per_step", "peak_memory")


class RunFolder:
    """config.yaml, metrics.csv, log.txt, checkpoints/{last,best}.pt and summary.json of a run.

    Args:
        config: the run.
        extend: allow a run to be extended to more steps, if the steps done so far stay the same.

    Attributes:
        path: the folder.
        last: checkpoint with everything needed to resume.
        best: the student alone.

    Raises:
        ConfigError: the run has no folder.
    """

    def __init__(self, config: RunConfig, *, extend: bool = True) -> None:
        if config.out is None:
            raise ConfigError("out: a run needs a folder. Add out=runs/my_run")
        self.config, self.path, self.extend = config, Path(config.out), extend
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self._config, self._summary = self.path / "config.yaml", self.path / "summary.json"
        self._lock = RunLock(self.path)
        self._state: dict[str, Any] | None = None

    def open(self) -> None:
        """Locks the folder and writes the configuration.

        Raises:
            ConfigError: another process trains in it, it holds a run with another configuration,
                or it is not writable.
            CheckpointError: last.pt is damaged, or not a training state.
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
                "that is writable and has free space: out=FOLDER"
            ) from error

    def close(self) -> None:
        """Unlocks the folder."""
        self._lock.release()

    def finished(self) -> dict[str, Any] | None:
        """The summary, if this run is finished; None otherwise.

        Raises:
            ConfigError: the summary is damaged, or of a run with another configuration.
        """
        if not self._summary.exists():
            return None
        summary = self._read_summary()
        longer = self._require_same(self._stored_config())
        require_same(self.config, summary.get("sources", {}), self.path)
        return None if longer else summary

    def was_finished(self) -> bool:
        """Whether it holds a finished run, of this or of another number of steps."""
        return self._summary.exists()

    def load_last(self) -> dict[str, Any] | None:
        """The state to resume from; None for a new run. Raises CheckpointError."""
        if self._state is None and self.last.exists():
            self._state = checkpoint.load_run(self.last)
        state, self._state = self._state, None
        return state

    def prepare(self, student: nn.Module, runtime: Runtime) -> None:
        """Makes a student the version of its network that last.pt is of, on all processes.

        To be called before an optimiser or a wrapper is built, which know the shapes of parameters.

        Args:
            student: without ``adopt_version`` in any part, nothing is read.
            runtime: of the processes; only the first one needs the folder.
        """
        if any(hasattr(part, "adopt_version") for part in student.modules()):
            checkpoint.adopt(student, runtime.on_main(self._student_state))

    def _student_state(self) -> dict[str, Any]:
        if self._state is None and self.last.exists():
            self._state = checkpoint.load_run(self.last)
        return {} if self._state is None else self._state["student"]

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Writes the state to resume from. Raises TrainingError or MachineError."""
        self._lock.check()
        payload = {"format": checkpoint.FORMAT, "config": dump_config(self.config), **state}
        checkpoint.save(self.last, payload)

    def best_of(self, peer: str) -> Path:
        """Checkpoint of a peer of the student, named ``ENTRY.PEER``."""
        return self.best.with_name(f"best_{peer}.pt")

    def save_best(
        self, network: Network, dataset: Dataset, *, step: int, result: Outcome, peer: str = ""
    ) -> None:
        """Writes the student, or a peer, alone, without auxiliary heads, teachers and methods.

        Args:
            network: the student, or its average.
            dataset: gives classes, palette and facts about lanes.
            step: number of steps done.
            result: of the evaluation.
            peer: its name ``ENTRY.PEER``; empty for the student.

        Raises:
            TrainingError: another process has taken over the folder.
            MachineError: it cannot be written.
        """
        self._lock.check()
        checkpoint.save(
            self.best_of(peer) if peer else self.best,
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
                **_quantization(network),
            },
        )

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json. Raises MachineError if it cannot be written."""
        text = json_text(summary, indent=2) + "\n"
        try:
            write_text(self._summary, text)
        except OSError as error:
            raise no_space(self._summary, error) from error

    def check_same(self) -> None:
        """Raises ConfigError with the difference if it holds a run of another configuration.

        A run that failed before its first step has left only its configuration, and may start
        again with a corrected one.
        """
        done = None
        if self.last.exists():
            self._state = self._state or checkpoint.load_run(self.last)
            done = self._state["step"]
            self._require_same(self._state["config"], done, of_last=True)
            require_same(self.config, self._state.get("sources", {}), self.path)
        elif not (self._summary.exists() or self.best.exists()):
            return
        self._require_same(self._stored_config(), done)

    # -- what is stored ------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.check_same()
        best = f"{self.best.stem}*{self.best.suffix}"  # of the peers as well
        names = (self._config.name, self._summary.name, "metrics.csv")
        paths = [*(self.path / name for name in names), self.last, self.best.with_name(best)]
        for path in paths:
            for scrap in path.parent.glob(f".{path.name}.*.part"):  # of a killed process
                scrap.unlink(missing_ok=True)
        self._summary.unlink(missing_ok=True)  # the run is extended to more steps
        write_text(self._config, dump_config(self.config))

    def _read_summary(self) -> dict[str, Any]:
        try:
            summary = json.loads(self._summary.read_text(encoding="utf-8"))
            missing = [key for key in _SUMMARY_KEYS if key not in summary]
            if missing:
                raise ValueError(f"it has no '{missing[0]}'")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{self._summary} is damaged: {error}. Delete it and run the same command again: "
                + (
                    "it is written again from last.pt"
                    if self.last.exists()
                    else "the run is trained from the start"
                )
            ) from error
        return summary

    def _stored_config(self) -> str:
        """The configuration of a finished run: config.yaml, else that of a checkpoint."""
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
            f"it is unknown which run {self.path} holds. Choose another folder: out=runs/NAME, or "
            "delete this one to train from the start"
        )

    def _require_same(self, text: str, done: int | None = None, *, of_last: bool = False) -> bool:
        """Whether this run extends the stored one to more steps.

        Args:
            text: the stored configuration.
            done: steps of last.pt; None: as many as the run was configured for.
            of_last: whether the configuration is from last.pt.

        Raises:
            ConfigError: the configurations differ in another way.
        """
        try:
            old = load_text(text)
        except ConfigError as error:
            raise ConfigError(
                f"{self.path}: the stored configuration of this run cannot be read: {error}. "
                "Choose another folder: out=runs/NAME"
            ) from error
        changed = _difference(old, self.config)
        if not changed:
            return False
        lines = "\n  ".join(changed)
        if [line.partition(":")[0] for line in changed] == ["steps"]:
            why = refusal(
                *(old, self.config, self.path),
                alone=self.extend,
                done=done,
                layered=self._layered,
            )
            if why is None:
                return True
            raise ConfigError(f"{self.path}: {lines}: {why}")
        if of_last and self._config_is_ours():
            raise ConfigError(
                f"{self.last} is of another run, whose configuration differs:\n  {lines}\n"
                f"Put back the right file, or delete {self.path} to train from the start"
            )
        raise ConfigError(
            f"{self.path} holds a run with another configuration:\n  {lines}\n"
            "Undo the change to resume that run, or choose another folder: out=runs/NAME"
        )

    def _layered(self) -> list[str]:
        """The entries of last.pt with layers of their own; of an old file those with any state."""
        if self._state is None and self.last.exists():
            self._state = checkpoint.load_run(self.last)
        state = self._state or {}
        keys = [key.split(".") for key in state.get("objective", ())]
        return state.get("layered", [key[1] for key in keys if key[0] == "methods"])

    def _config_is_ours(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            stored = load_text(self._config.read_text(encoding="utf-8"))
            return not _difference(stored, self.config)
        return False


def _difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines ``key: old -> new`` of the keys that change a run's numbers."""
    was, now = _resolved(old), _resolved(new)
    if old.runtime.channels_last is None and new.runtime.channels_last is None:
        # It follows from the device, which may be another one.
        same = {"channels_last": was.runtime.channels_last}
        now = now.model_copy(update={"runtime": now.runtime.model_copy(update=same)})
    return config_difference(was, now)


def _resolved(config: RunConfig) -> RunConfig:
    """The run with normalisation and memory format filled in, as far as they are known here.

    So runs that began when ``imagenet`` was the default of ``normalize``, and false that of
    ``channels_last``, can be resumed where the present defaults mean the same.
    """

    def resolved(model: ModelConfig | TeacherConfig) -> dict[str, object]:
        whole = model.checkpoint or not model.arch  # the file decides, not the encoder
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
    last = uses_channels_last(config.runtime, device_type(config.runtime.device))
    runtime = config.runtime.model_copy(update={"channels_last": last})
    return config.model_copy(update={"student": student, "teachers": teachers, "runtime": runtime})


def _lane_facts(dataset: Dataset) -> dict[str, Any]:
    """What lane detection with a student needs to know of its dataset."""
    if not is_lane_set(dataset):
        return {}
    size = None
    for index in range(len(dataset)):
        with contextlib.suppress(DataError):  # an image that the evaluation skipped
            size = list(dataset.annotation(index).size)
            break
    facts = {"metric": dataset.metric, "cut_top": dataset.config.cut_top, "size": size}
    return {"lanes": facts | {"squeeze": dataset.config.squeeze}}


def _quantization(network: Network) -> dict[str, Any]:
    """On which grids the weights of a quantised student are."""
    facts = facts_of(network)
    return {} if facts is None else {"quantization": facts.model_dump(mode="json")}


def student_weights(network: Network) -> dict[str, torch.Tensor]:
    """Weights of a network on the CPU, quantised ones baked in, without auxiliary heads."""
    state = baked_state(network)
    return {k: v.detach().cpu() for k, v in state.items() if not k.startswith("aux_heads.")}


def _bare_model(network: Network) -> dict[str, Any] | None:
    """The network's configuration without training-only parts; None for a wrapped module."""
    if network.config is None:
        return None
    changes = {"aux_head": None, "weights": None, "checkpoint": None}
    return network.config.model_copy(update=changes).model_dump(mode="json")
