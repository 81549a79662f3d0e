"""`segkd score`: official scores of prediction files, without a network."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segkd.metrics.culane import Counts
    from segkd.metrics.culane_files import Result

score = typer.Typer(
    help="Official scores of prediction files.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@score.command(name="culane", short_help="F1 of CULane lane files.")
def culane(
    annotations: Annotated[Path, typer.Option(help="Folder of annotated .lines.txt files.")],
    predictions: Annotated[Path, typer.Option(help="Folder of predicted .lines.txt files.")],
    entries: Annotated[Path, typer.Option("--list", help="List file: an image per line.")],
    categories: Annotated[
        Path | None, typer.Option(help="Folder with a list file per category.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: all cores.", min=1)
    ] = None,
    iou_threshold: Annotated[float, typer.Option(help="A match has more than this IoU.")] = 0.5,
    lane_width: Annotated[int, typer.Option(help="Thickness of painted lanes in pixels.")] = 30,
    image_size: Annotated[
        tuple[int, int], typer.Option(help="Height and width.", metavar="H W")
    ] = (590, 1640),
    as_json: Json = False,
) -> None:
    """F1 of CULane lane files, equal to the official program; in all and per category.

    \b
    Example: segkd score culane --annotations /data/CULane --predictions runs/x/lanes \\
             --list /data/CULane/list/test.txt --categories /data/CULane/list/test_split
    """
    from segkd.commands.display import progress, say
    from segkd.metrics.culane import Rules
    from segkd.metrics.culane_files import Scorer
    from segkd.metrics.culane_lists import read_categories, read_list

    scorer = Scorer(
        read_list(entries),
        annotations,
        categories=read_categories(categories) if categories else None,
        rules=Rules(image_size, lane_width, iou_threshold),
        keep=False,
    )
    with progress("score culane") as advance:
        result = scorer.score_files(predictions, workers=workers, progress=advance)
    _warn_of_files(result)
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
    else:
        say(_table(result))


@score.command(name="tusimple", short_help="Accuracy, FP and FN of TuSimple lanes.")
def tusimple(
    annotations: Annotated[Path, typer.Option(help="Annotations: a JSON object per line.")],
    predictions: Annotated[Path, typer.Option(help="Predictions: a JSON object per line.")],
    as_json: Json = False,
) -> None:
    """Accuracy, FP and FN of TuSimple lanes, equal to the official script.

    \b
    Example: segkd score tusimple --annotations test_label.json --predictions runs/x/pred.json
    """
    from segkd.commands.display import say
    from segkd.metrics.tusimple import evaluate_files

    result = evaluate_files(predictions, annotations)
    _warn(result.missing_predictions, "images have no prediction and count as missed")
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return
    say(f"{result.images} images")
    say(f"accuracy {100 * result.accuracy:.2f} %   FP {result.fp:.4f}   FN {result.fn:.4f}")


def _warn_of_files(result: "Result") -> None:
    _warn(
        result.missing_annotations,
        "annotation files are missing: their images count as without lanes, so the score is wrong",
    )
    _warn(result.missing_predictions, "prediction files are missing and count as without lanes")
    _warn(
        result.malformed, "lines are not pairs of numbers; what follows the first error is unread"
    )
    if result.uncategorised:
        _warn([""] * result.uncategorised, "images of the list are in no category")


def _warn(items: list[str], text: str) -> None:
    from segkd.commands.display import fail

    if items:
        first = f"; first: {items[0]}" if items[0] else ""
        fail(f"{len(items)} {text}{first}", label="warning")


def _table(result: "Result"):
    from rich.table import Table

    table = Table()
    for number, title in enumerate(
        ("category", "images", "TP", "FP", "FN", "precision", "recall", "F1")
    ):
        table.add_column(title, justify="right" if number else "left")
    for name, (images, counts) in result.categories.items():
        table.add_row(*_row(name, images, counts))
    if result.categories:
        table.add_section()
    table.add_row(*_row("total", len(result.counts), result.total))
    return table


def _row(name: str, images: int, counts: "Counts") -> list[str]:
    """A row of text; what is not defined (F1 where no lane is annotated) is a dash."""
    exists = (counts.tp + counts.fp, counts.tp + counts.fn, counts.defined and counts.tp)
    ratios = zip(exists, (counts.precision, counts.recall, counts.f1), strict=True)
    shown = [f"{100 * ratio:.2f}" if defined else "-" for defined, ratio in ratios]
    return [name, str(images), str(counts.tp), str(counts.fp), str(counts.fn), *shown]
