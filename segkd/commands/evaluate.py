"""`segkd eval`: scores a trained student, prints the table, writes CSV and JSON beside it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from segkd.commands.display import is_main, progress, say
from segkd.engine.checkpoint import write_text
from segkd.evaluation.evaluator import Result
from segkd.evaluation.report import class_table


def evaluate(source: str, overrides: Sequence[str], *, out: Path | None, as_json: bool) -> None:
    """Evaluates and reports; under torchrun only the first process prints and writes."""
    from segkd.api import evaluate as score

    with progress(f"eval {source}", enabled=is_main()) as advance:
        result = score(source, overrides=overrides, progress=advance)
    if not is_main():
        return
    folder = out or _beside(source)
    if folder is not None:
        _write(result, folder)
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return
    say(class_table({"IoU %": result}, title=source))
    if folder is not None:
        say(f"Written: {folder / 'eval.csv'}, {folder / 'eval.json'}")


def _beside(source: str) -> Path | None:
    """The folder of a checkpoint; None for one that comes with the package."""
    from segkd.models.weights import resolve

    return None if source.startswith("pretrained:") else resolve(source).parent


def _write(result: Result, folder: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["class", "iou"])
    writer.writerows(result.iou.items())
    writer.writerow(["mean", result.miou])
    write_text(folder / "eval.csv", buffer.getvalue())
    write_text(folder / "eval.json", json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
