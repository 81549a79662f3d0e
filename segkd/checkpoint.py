"""Checkpoints of tensors and plain data."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn

from segkd.archive import read_archive
from segkd.errors import CheckpointError, MachineError
from segkd.faults import no_space
from segkd.files import write_atomic


class ForeignFile(CheckpointError):
    """A readable file of tensors that another program wrote."""


FORMAT = "segkd-run-1"
_RUN_KEYS = ("config", "step", "student", "objective", "optimizer", "rng", "tally", "best")


class _Noting:
    """A file that keeps the OSError of a failed write, which torch replaces by one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save(path: Path, payload: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        MachineError: it could not be written; an earlier checkpoint is kept.
    """
    noting: list[_Noting] = []

    def write(file: IO[bytes]) -> None:
        noting.append(_Noting(file))
        # torch asks for IO[bytes] and calls write and flush only.
        torch.save(payload, noting[0])  # type: ignore[arg-type]

    try:
        write_atomic(path, write)
    except (OSError, RuntimeError) as error:
        cause = noting[0].error if noting and noting[0].error else error
        if not isinstance(cause, OSError):
            raise
        kept = " The earlier one is intact." if path.exists() else ""
        raise MachineError(f"{no_space(path, cause)}.{kept}") from error


def load_run(path: Path) -> dict[str, Any]:
    """Reads the training state of a run.

    Raises:
        CheckpointError: the file is damaged, or of another kind, such as a student.
    """
    try:
        state = load(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. A run resumes from this file: restore an intact one, or delete "
            f"{path.parent.parent} to train from the start"
        ) from error
    missing = [key for key in _RUN_KEYS if key not in state]
    if state["format"] != FORMAT or missing:
        what = f"a file of kind {state['format']}" if state["format"] != FORMAT else "incomplete"
        student = " (best.pt contains only the student)" if "weights" in state else ""
        raise CheckpointError(
            f"{path} is not a training state but {what}{student}: a run cannot resume from it. "
            f"Restore the run's own last.pt, or delete {path.parent.parent} to train from the start"
        )
    return state


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU without executing anything in it.

    Raises:
        ForeignFile: the file is of another program.
        CheckpointError: the file is missing, damaged, or contains pickled code.
    """
    payload = read_archive(path)
    if not isinstance(payload, dict) or not str(payload.get("format", "")).startswith("segkd-"):
        raise ForeignFile(
            f"{path} is not a segkd checkpoint: it has no `format` entry. Give a run folder, its "
            "checkpoints/best.pt or checkpoints/last.pt; or, to load the weights of another "
            "program, name the network: `arch`, `encoder` and `options` next to `checkpoint`, "
            "or on the command line (eval, predict, lane and export; in Python their overrides): "
            "segkd eval FILE student.arch=… data.name=…"
        )
    return payload


def require_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Refuses weights that are NaN or infinite.

    Args:
        state: tensors by name, of any shape.
        what: subject of the message.

    Raises:
        CheckpointError: names the tensor.
    """
    for key, value in state.items():
        if value.is_meta or not value.is_floating_point() or value.isfinite().all():
            continue
        count = int((~value.isfinite()).sum())
        kind = "NaN" if value.isnan().any() else "infinite"
        raise CheckpointError(
            f"{what}: its tensor {key} is {kind} in {count} of {value.numel()} values: the "
            "training had diverged, or the file is damaged. Give an earlier checkpoint"
        )


class Differences(NamedTuple):
    """What prevents a state from being loaded.

    Attributes:
        missing: names of tensors that the file does not have.
        unknown: names of tensors that the network does not have.
        shapes: one line per tensor whose shapes differ.
    """

    missing: list[str]
    unknown: list[str]
    shapes: list[str]


def differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Differences:
    """Compares the tensors of a network with those of a file, by name and shape.

    Args:
        own: tensors of the network, of any shape.
        found: tensors of the file.
    """
    return Differences(
        missing=[key for key in own if key not in found],
        unknown=[key for key in found if key not in own],
        shapes=[
            f"{key}: {tuple(found[key].shape)} in the file, {tuple(own[key].shape)} here"
            for key in own
            if key in found and own[key].shape != found[key].shape
        ],
    )


def is_counter(key: str) -> bool:
    """Whether a tensor counts batches of a batch norm, as files of early PyTorch have none."""
    return key.endswith("num_batches_tracked")


def with_counters(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, and the network's own counters that it does not have.

    Args:
        own: tensors of the network, of any shape.
        found: tensors of the file.
    """
    return {key: value for key, value in own.items() if is_counter(key)} | dict(found)


def adopt(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Lets networks become the version that a state is of.

    Args:
        module: whose parts with a method ``adopt_version`` are given the state by their own names.
        state: as of ``module.state_dict()``, perhaps of an earlier version of segkd.

    Returns:
        The state without entries below parts with a true ``weights_ignored``.
    """
    gone = []
    for name, part in module.named_modules():
        change = getattr(part, "adopt_version", None)
        if callable(change):
            prefix = f"{name}." if name else ""
            change({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        if getattr(part, "weights_ignored", False):
            gone.append(f"{name}.")
    return {key: value for key, value in state.items() if not key.startswith(tuple(gone))}


def restore(module: nn.Module, state: dict[str, Any], what: str) -> None:
    """Loads a state strictly.

    Args:
        module: to load into.
        state: as of ``module.state_dict()``.
        what: subject of the message.

    Raises:
        CheckpointError: lists missing and unknown names, and shapes that differ.
    """
    state = adopt(module, state)
    problems = [
        f"{title}: {', '.join(sorted(keys)[:5])}{' …' if len(keys) > 5 else ''}"
        for title, keys in differences(module.state_dict(), state)._asdict().items()
        if keys
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit. {'; '.join(problems)}")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{what} does not fit: {str(error).splitlines()[-1].strip()}"
        ) from error
