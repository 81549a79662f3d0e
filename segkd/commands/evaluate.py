"""`segkd eval`: evaluates a student, prints a table, and writes CSV and JSON files."""

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

from segkd.commands.display import is_main, progress, say
from segkd.errors import MachineError
from segkd.evaluation.evaluator import Outcome, Result
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.lane_tables import lane_csv, lane_table
from segkd.evaluation.results import class_table
from segkd.files import require_place, write_text
from segkd.inference.stopping import stopped_with
from segkd.metrics.boundary import mean_boundary_iou
from segkd.texts import json_text

_STEM = 80  # characters of overrides in a file name


def report_score(
    source: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    predictions: Path | None = None,
) -> None:
    """Evaluates and reports; under torchrun only the first process prints and writes.

    Args:
        source, overrides, predictions: see ``segkd.evaluate``.
        out: folder of the files; default: next to the checkpoint.
        as_json: print JSON.

    Raises:
        SegKDError: see ``segkd.evaluate``.
        Interrupted: by a signal.
        OSError: a folder cannot be made, as it is below a file.
        MachineError: after the score is printed, if its files cannot be written.
    """
    from segkd.api import evaluate
    from segkd.runtime import limit_threads

    limit_threads()
    for folder in (out, predictions):
        if folder is not None:
            require_place(folder)
    stopped = stopped_with(lambda: f"eval {source}: no score yet. The same command begins anew")
    with stopped, progress(f"eval {source}", enabled=is_main()) as advance:
        tell = say if is_main() and not as_json else None
        result = evaluate(
            source, overrides=overrides, progress=advance, predictions=predictions, tell=tell
        )
    if not is_main():
        return
    # Nothing is written next to a file of another program, which may be anywhere.
    foreign = any(override.startswith("student") for override in overrides)
    folder = out or (None if foreign else _beside(source))
    if as_json:
        print(json_text(result.to_dict()))
    elif isinstance(result, LaneResult):
        say(lane_table(result, source))
    else:
        say(class_table({"IoU %": result}, title=source))
    written: list[str] = []
    if folder is not None:
        try:
            written = _write(result, folder, _title(source), overrides)
        except OSError as error:
            raise MachineError(
                f"the score is printed above, but its CSV and JSON could not be written to "
                f"{folder}: {error.strerror or error}. Choose another folder: --out FOLDER"
            ) from error
    written += [str(predictions)] if predictions else []
    if written and not as_json:
        say(f"Written: {', '.join(written)}")


def _beside(source: str) -> Path | None:
    """The folder of a checkpoint, or a new one for an exported file; None for pretrained ones."""
    from segkd.models.weights import resolve

    if source.startswith("pretrained:"):
        return None
    path = resolve(source)
    return path.with_suffix("") if path.suffix.lower() == ".onnx" else path.parent


def _title(source: str) -> str:
    """``eval``, and the name of any other checkpoint than best.pt, which may be beside it."""
    from segkd.models.weights import resolve

    if source.startswith("pretrained:"):
        return "eval"
    path = resolve(source)
    return (
        "eval" if path.suffix.lower() == ".onnx" or path.name == "best.pt" else f"eval.{path.stem}"
    )


def _write(result: Outcome, folder: Path, title: str, overrides: Sequence[str]) -> list[str]:
    """Writes both files; returns their paths."""
    table = lane_csv(result) if isinstance(result, LaneResult) else _class_csv(result)
    stem = file_stem(overrides, title)
    facts = {**result.to_dict(), "overrides": list(overrides)}
    write_text(folder / f"{stem}.csv", table)
    write_text(folder / f"{stem}.json", json_text(facts, indent=2) + "\n")
    return [str(folder / f"{stem}.csv"), str(folder / f"{stem}.json")]


def file_stem(overrides: Sequence[str], title: str = "eval") -> str:
    """``title`` with the overrides, so that each evaluation of a student has its own files.

    The same overrides in another order are the same evaluation. A digest distinguishes overrides
    that are equal after replacing characters that file names cannot have.
    """
    if not overrides:
        return title
    text = " ".join(sorted(overrides, key=lambda one: one.partition("=")[0]))  # the last one wins
    plain = re.sub(r"[^\w.=-]+", "_", text, flags=re.ASCII).strip("_")
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return f"{title}.{plain[:_STEM]}.{digest}"


def _class_csv(result: Result) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    edges = {} if result.boundary is None else result.boundary_iou
    writer.writerow(["class", "iou", *(["boundary_iou"] if edges else [])])
    for name, value in result.iou.items():
        writer.writerow([name, value, *([edges[name]] if edges else [])])
    mean = [] if result.boundary is None else [mean_boundary_iou(result.boundary)]
    writer.writerow(["mean", result.miou, *mean])
    return buffer.getvalue()
