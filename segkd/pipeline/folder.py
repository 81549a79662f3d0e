"""The folder of `segkd distill`: which command it belongs to, and what is finished."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkd.errors import ConfigError
from segkd.files import write_text
from segkd.pipeline.source import SPEC
from segkd.texts import json_text

COMMAND, RECIPE, RESULT, ONNX = "command.json", "recipe.yaml", "result.json", "student.onnx"
LABELS = "teacher_labels"
_PREPARED = {RECIPE, SPEC, LABELS, "train.txt", "val.txt", "test.txt", "unlabeled.txt"}
_ASKED = {"teacher", "data"}  # some keys of each command
_STATE, _PREPARING = "state", "preparing"  # in command.json, until everything else is written


class DistillFolder:
    """Files of one command.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.recipe, self.onnx = self.path / RECIPE, self.path / ONNX
        self.labels = self.path / LABELS

    def prepared(self, command: Mapping[str, Any]) -> bool:
        """Whether the files of this command are written already.

        The folder of a command that failed before the first step is used again by any command;
        one that no command has begun must be empty.

        Raises:
            ConfigError: the folder belongs to another command, or to something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out: {self.path} is a file. Give a folder")
        file = self.path / COMMAND
        if not file.is_file():
            self._require_free()
            return False
        try:
            stored = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{file} is damaged: {error}. Choose another folder: --out DIR, or go on with: "
                f"segkd train {shlex.quote(str(self.recipe))}"
            ) from None
        if _ASKED - stored.keys():  # a file of something else
            self._require_free()
        preparing = stored.pop(_STATE, None) == _PREPARING
        changed = [key for key in {*stored, *command} if stored.get(key) != command.get(key)]
        if changed and not self._started():
            self.begin(stored)  # so that it is not taken for prepared once its labels are gone
            shutil.rmtree(self.labels, ignore_errors=True)  # of another teacher, perhaps
            return False
        if changed:
            lines = "\n  ".join(
                f"{key}: {_told(stored.get(key))} -> {_told(command.get(key))}"
                for key in sorted(changed)
            )
            raise ConfigError(
                f"{self.path} belongs to another command:\n  {lines}\nRepeat that command to go "
                "on, or choose another folder: --out DIR"
            )
        if preparing:
            return False
        if not self.recipe.is_file():
            raise ConfigError(
                f"{self.recipe} is gone. Put it back, or delete {self.path} to begin again"
            )
        return True

    def begin(self, command: Mapping[str, Any]) -> None:
        """Writes the command, before anything else: from now on the folder's files are its own."""
        self._write_command({**command, _STATE: _PREPARING})

    def write_recipe(self, text: str) -> None:
        """Writes the recipe."""
        write_text(self.recipe, text)

    def store(self, command: Mapping[str, Any]) -> None:
        """Writes the command, after everything else: from now on the folder is prepared."""
        self._write_command(command)

    def result(self) -> dict[str, Any] | None:
        """The contents of result.json; None until everything is done."""
        try:
            found = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        write_text(self.path / RESULT, json_text(dict(result), indent=2) + "\n")

    def _write_command(self, facts: Mapping[str, Any]) -> None:
        write_text(self.path / COMMAND, json_text(dict(facts), indent=2) + "\n")

    def _started(self) -> bool:
        """Whether a run has a checkpoint."""
        return any(self.path.glob("*/checkpoints/*.pt")) or any(
            self.path.glob("*/seed*/checkpoints/*.pt")
        )

    def _require_free(self) -> None:
        there = sorted(path.name for path in self.path.glob("*")) if self.path.is_dir() else []
        others = [name for name in there if not name.endswith(".part")]
        if others:
            what = "a run of another command" if "config.yaml" in others else "other files"
            instead = "Choose a new folder: --out DIR"
            if _PREPARED.issuperset(others):  # former versions wrote their command last
                instead += ". Are they left from a killed segkd distill? Then delete them"
            raise ConfigError(f"--out: {self.path} has {what}: {', '.join(others[:3])}. {instead}")


def _told(value: Any) -> Any:
    """A value of a command in a message; an option that was left out has an empty one."""
    return "not given" if value in (None, "", [], {}) else value
