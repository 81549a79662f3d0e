"""`segkd eval`: scores a trained student, prints the table, writes CSV and JSON beside it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from segkd.commands.display import is_main, progress, say
from segkd.engine.checkpoint import write_text
from segkd.errors import MachineError
from segkd.evaluation.evaluator import Outcome, Result
from segkd.evaluation.lane_report import lane_csv, lane_table
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.report import class_table
from segkd.metrics.boundary import mean_boundary_iou
from segkd.texts import json_text


def evaluate(
    source: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    predictions: Path | None = None,
) -> None:
    """Evaluates and reports; under torchrun only the first process prints and writes.

    Raises MachineError, after the score is printed, where its files cannot be written.
    """
    from segkd.api import evaluate as score

    with progress(f"eval {source}", enabled=is_main()) as advance:
        tell = say if is_main() and not as_json else None
        result = score(
            source, overrides=overrides, progress=advance, predictions=predictions, tell=tell
        )
    if not is_main():
        return
    # Beside another program's file, which may lie anywhere, nothing is written unasked.
    foreign = any(override.startswith("student") for override in overrides)
    folder = out or (None if foreign else _beside(source))
    lanes = isinstance(result, LaneResult)
    if as_json:
        print(json_text(result.to_dict()))
    else:
        say(lane_table(result, source) if lanes else class_table({"IoU %": result}, title=source))
    if folder is not None:
        try:
            _write(result, folder)
        except OSError as error:
            raise MachineError(
                f"the score is printed above, but eval.csv and eval.json could not be written to "
                f"{folder}: {error.strerror or error}. Choose another folder: --out FOLDER"
            ) from error
    written = [str(folder / "eval.csv"), str(folder / "eval.json")] if folder else []
    written += [str(predictions)] if predictions else []
    if written and not as_json:
        say(f"Written: {', '.join(written)}")


def _beside(source: str) -> Path | None:
    """The folder of a checkpoint, an exported file's own; None for one of the package."""
    from segkd.models.weights import resolve

    if source.startswith("pretrained:"):
        return None
    path = resolve(source)
    return path.with_suffix("") if path.suffix == ".onnx" else path.parent


def _write(result: Outcome, folder: Path) -> None:
    table = lane_csv(result) if isinstance(result, LaneResult) else _class_csv(result)
    write_text(folder / "eval.csv", table)
    write_text(folder / "eval.json", json_text(result.to_dict(), indent=2) + "\n")


def _class_csv(result: Result) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    edges = result.boundary_iou
    writer.writerow(["class", "iou", *(["boundary_iou"] if edges else [])])
    for name, value in result.iou.items():
        writer.writerow([name, value, *([edges[name]] if edges else [])])
    mean = [mean_boundary_iou(result.boundary)] if edges else []
    writer.writerow(["mean", result.miou, *mean])
    return buffer.getvalue()
