"""`segkd distill`: from images and a teacher to a student, its report and its file for devices."""

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from segkd.config.load import load_config, stored_evaluation
from segkd.config.schema import RecipeConfig
from segkd.engine.logging import display_print
from segkd.engine.recipe import run_recipe
from segkd.engine.setup import open_dataset
from segkd.errors import ConfigError, SegKDError
from segkd.evaluation.evaluator import evaluate_network
from segkd.export import to_onnx
from segkd.inference.student import Student, opened
from segkd.models.frozen import BlackBox
from segkd.models.network import Network
from segkd.models.onnx_network import OnnxNetwork
from segkd.pipeline.folder import DistillFolder
from segkd.pipeline.recipe import BASELINE, DISTILLED
from segkd.pipeline.request import (
    Choose,
    Given,
    Request,
    network_of,
    prepare,
    require_trainable_teacher,
    the_first,
)
from segkd.pipeline.teachers import NAME
from segkd.report.make import make_report
from segkd.runtime import Runtime

Advance = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Advance]]
_EXPORT = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Distilled:
    """What `segkd distill` made.

    Attributes:
        folder: of everything.
        recipe: the config of all runs.
        run: folder of the distilled run.
        report: the HTML page.
        onnx: the file for devices; None where it could not be written.
        scores: of teacher, baseline and distilled, 0 to 1, at the last step, and of the file as
            ``onnx``; teachers that may not be queried have none.
        score_name: ``mIoU``.
        agreement: whether there were no masks, so that scores are the agreement with the teacher.
        unexported: whether packages were missing for ``onnx``.
        module: the caller's module, if the student is one.
    """

    folder: Path
    recipe: Path
    run: Path
    report: Path
    onnx: Path | None
    scores: dict[str, float]
    score_name: str = "mIoU"
    agreement: bool = False
    unexported: bool = False
    module: nn.Module | None = None

    @property
    def student(self) -> Student:
        """The distilled student, as ``segkd.load_student`` returns it."""
        return Student(opened(self.run, copy.deepcopy(self.module)))

    def plain(self) -> dict[str, Any]:
        """The contents of result.json."""
        return {
            "recipe": str(self.recipe),
            "run": str(self.run),
            "report": str(self.report),
            "onnx": None if self.onnx is None else str(self.onnx),
            "scores": self.scores,
            "score_name": self.score_name,
            "agreement": self.agreement,
            "unexported": self.unexported,
        }


@contextlib.contextmanager
def silent(title: str) -> Iterator[Advance]:
    """A progress bar that shows nothing."""
    yield lambda done, total: None


def distill(
    request: Request,
    *,
    given: Given | None = None,
    pick: Choose = the_first,
    bar: Bar = silent,
) -> Distilled:
    """Prepares, trains, reports and exports; goes on where an earlier call was stopped.

    Args:
        request: the arguments.
        given: networks of the caller.
        pick: chooses among the candidates of a budget; returns an index.
        bar: opens a progress bar with a title.

    Raises:
        SegKDError: something cannot be used; says what and why.
        Interrupted: a signal was received; says what was saved.
    """
    _require_one_process()
    given, folder = given or Given(), request.folder()
    require_trainable_teacher(request, given)
    if not folder.prepared(request.plain()):
        _tell_export()
        prepare(request, folder, given=given, pick=pick, bar=bar)
        display_print(f"Recipe: {folder.recipe}")
    found = _finished(folder, given)
    if found is not None:
        display_print(f"{folder.path}: already finished. A new one: --out DIR")
        return found
    recipe = load_config(folder.recipe, own_parts=bool(given)).recipe
    if recipe is None or DISTILLED not in recipe.runs:
        raise ConfigError(f"{folder.recipe}: has no run '{DISTILLED}'. Put back the written file")
    own = _own_networks(given, recipe)
    if own.teachers:
        recipe = recipe.model_copy(update={"teacher": NAME})
    summary = run_recipe(recipe, student=own.student, teachers=own.teachers)
    scores = {row["name"]: row["miou_mean"] for row in summary["rows"]}
    scores = {name: math.nan if value is None else value for name, value in scores.items()}
    run = folder.path / DISTILLED / f"seed{recipe.seeds[0]}"
    written = make_report([folder.path], out=folder.path / "report", bar=bar)
    for note in written.notes:
        display_print(f"report: {note}")
    onnx = _export(folder, run, given, scores, bar)
    agreement = recipe.runs[DISTILLED].config.data.labels == "none"
    result = Distilled(
        folder.path,
        folder.recipe,
        run,
        written.html,
        onnx,
        scores,
        score_name=summary["rows"][0]["score_name"],
        agreement=agreement,
        unexported=bool(_missing()),
        module=given.student,
    )
    folder.finish(result.plain())
    return result


@dataclass(frozen=True)
class _Own:
    """Networks of the caller."""

    student: Network | None = None
    teachers: dict[str, Network | BlackBox] | None = None


def _own_networks(given: Given, recipe: RecipeConfig) -> _Own:
    if not given:
        return _Own()
    config = recipe.runs[DISTILLED].config
    number = len(open_dataset(config, config.data.val_split).classes)
    student = None if given.student is None else network_of(given.student, number)
    teacher = None if given.teacher is None else network_of(given.teacher, number)
    if isinstance(student, BlackBox):
        raise ConfigError("student: a black box cannot be trained. Give a module")
    return _Own(student, None if teacher is None else {NAME: teacher})


def summary_lines(found: Distilled) -> list[str]:
    """What is said at the end."""
    about = "agreement with the teacher, " if found.agreement else ""
    shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in found.scores.items())
    lines = [f"{about}{found.score_name} %: {shown}", *_advice(found.scores)]
    lines.append(f"Student: {found.run}/checkpoints/best.pt")
    if found.onnx is not None:
        lines.append(f"ONNX file: {found.onnx}")
    lines += [f"Report: {found.report}", f"Every step as a config: {found.recipe}"]
    return lines


def _advice(scores: Mapping[str, float]) -> list[str]:
    """What to try where the distilled student is not better than the baseline."""
    teacher, distilled, baseline = (
        scores.get(name, math.nan) for name in (NAME, DISTILLED, BASELINE)
    )
    if not distilled <= baseline:
        return []
    if teacher <= baseline:
        return [
            "The teacher is not better than the baseline, so it has nothing to teach: take one "
            "that scores higher on these images"
        ]
    return [
        "Distilling gained nothing here. What helps most is images that the teacher was not "
        "trained on, with --unlabeled FOLDER, then more steps: docs/pairs.md, What decides the gain"
    ]


def _finished(folder: DistillFolder, given: Given) -> Distilled | None:
    """What an earlier call has finished; None if something is left to do."""
    facts: Mapping[str, Any] | None = folder.result()
    if facts is None or (facts.get("unexported") and not _missing()):
        return None
    try:
        onnx = facts["onnx"]
        found = Distilled(
            folder.path,
            Path(facts["recipe"]),
            Path(facts["run"]),
            Path(facts["report"]),
            None if onnx is None else Path(onnx),
            {name: math.nan if one is None else one for name, one in facts["scores"].items()},
            str(facts["score_name"]),
            bool(facts["agreement"]),
            module=given.student,
        )
    except (KeyError, TypeError, AttributeError):
        return None
    files = [found.report, *([found.onnx] if found.onnx else [])]
    return found if all(file.is_file() for file in files) else None


def _export(
    folder: DistillFolder, run: Path, given: Given, scores: dict[str, float], bar: Bar
) -> Path | None:
    """The ONNX file of the best checkpoint, checked and scored; None, with a line, if it fails."""
    if _missing():
        _tell_export()
        return None
    network = opened(run, copy.deepcopy(given.student))
    config = stored_evaluation(network.info.payload)
    # Inside the file each window and each scale of an image would be resized to this size.
    whole = config.eval.sliding is None and tuple(config.eval.scales) == (1.0,)
    resize = network.info.resize if whole else None
    fits = resize is not None and all(side % network.divisor == 0 for side in resize)
    try:
        written = to_onnx(network, folder.onnx, resize=resize if fits else None)
    except SegKDError as error:
        display_print(f"WARNING: no ONNX file: {error}")
        return None
    display_print(str(written))
    runtime = Runtime.start("cpu", "fp32")
    try:
        with bar("score of the ONNX file") as advance:
            data = open_dataset(config, config.data.val_split)
            result = evaluate_network(
                OnnxNetwork(folder.onnx), data, config.eval, runtime, progress=advance
            )
    except SegKDError as error:
        display_print(f"WARNING: no score of the ONNX file: {error}")
    else:
        scores["onnx"] = result.score
    return folder.onnx


def _missing() -> list[str]:
    return [name for name in _EXPORT if find_spec(name) is None]


def _tell_export() -> None:
    """A line if no ONNX file can be written here."""
    if _missing():
        display_print(
            f"WARNING: without {', '.join(_missing())} there will be no ONNX file. Type: pip "
            "install 'segkd[export]', and repeat the command"
        )


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "segkd distill is one process: run it without torchrun. Once it has written "
            "recipe.yaml you may stop it, train that file on several processes (torchrun "
            "--nproc-per-node N train.py recipe.yaml), and run segkd distill again for the rest"
        )
