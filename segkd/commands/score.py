"""`segkd score`: official scores of prediction files."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segkd.evaluation.culane_files import Result
    from segkd.evaluation.lane_result import CulaneResult
    from segkd.evaluation.segmentation_files import Result as MapResult
    from segkd.evaluation.table import TextTable
    from segkd.metrics.culane import Counts

score = typer.Typer(
    help="Official scores of prediction files.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Thresholds = Annotated[
    list[float] | None,
    typer.Option("--iou", help="A match has more than this IoU. Default: 0.5.", metavar="T..."),
]


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
    iou: Annotated[
        list[float] | None,
        typer.Option(
            "--iou",
            "--iou-threshold",
            help="A match has more than this IoU; several: F1 at each, and mF1. Default: 0.5.",
            metavar="T...",
        ),
    ] = None,
    lane_width: Annotated[
        int, typer.Option(help="Thickness of painted lanes in pixels.", min=1, max=255)
    ] = 30,
    image_size: Annotated[
        tuple[int, int], typer.Option(help="Height and width.", metavar="H W")
    ] = (590, 1640),
    as_json: Json = False,
) -> None:
    """F1 of CULane lane files, equal to the official program; total and per category.

    \b
    Example: segkd score culane --annotations /data/CULane --predictions runs/x/lanes \\
             --list /data/CULane/list/test.txt --categories /data/CULane/list/test_split
    With F1 at IoU 0.75, and mF1 (the mean over 0.5, 0.55, ... 0.95): --iou 0.5 0.75
    """
    from segkd.commands.display import fail, progress, say
    from segkd.evaluation.culane_files import Scorer
    from segkd.evaluation.culane_sizes import size_doubts
    from segkd.metrics.culane import Rules
    from segkd.metrics.culane_text import read_categories, read_list

    listed, rules = read_list(entries), Rules(image_size, lane_width)
    scorer = Scorer(
        listed,
        annotations,
        categories=read_categories(categories) if categories else None,
        rules=rules,
        thresholds=iou or [0.5],
        keep=False,
    )
    twice = [entry for entry, number in Counter(listed).items() if number > 1]
    _warn(twice, f"images are listed twice in {entries}, and count twice")
    for doubt in size_doubts(listed, annotations, image_size):
        fail(doubt, label="warning")
    with progress("score culane") as advance:
        result = scorer.score_files(predictions, workers=workers, progress=advance)
    _warn_of_files(result)
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
    else:
        say(_table(len(result.counts), result))


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


@score.command(name="curvelanes", short_help="F1 of CurveLanes lane files.")
def curvelanes(
    root: Annotated[Path, typer.Option(help="Root of the set: train/, valid/.")],
    predictions: Annotated[Path, typer.Option(help="Folder of predicted .lines.json files.")],
    split: Annotated[str, typer.Option(help="val, train, or a folder.")] = "val",
    iou: _Thresholds = None,
    as_json: Json = False,
) -> None:
    """F1 of CurveLanes: lanes painted 5 pixels wide on 224x224, as in the authors' program.

    Files are named after the images: valid/images/a.lines.json, or a.lines.json.

    \b
    Example: segkd score curvelanes --root /data/curvelanes --predictions runs/x/lanes
    """
    _score_set("curvelanes", root, predictions, split, iou, as_json)


@score.command(name="llamas", short_help="F1 of LLAMAS lane files.")
def llamas(
    root: Annotated[Path, typer.Option(help="Root of the set: color_images/, labels/.")],
    predictions: Annotated[Path, typer.Option(help="Folder of predicted .lines.txt files.")],
    split: Annotated[str, typer.Option(help="val, train, or a folder.")] = "val",
    iou: _Thresholds = None,
    as_json: Json = False,
) -> None:
    """F1 of LLAMAS by CULane's definition, as in the benchmark's program.

    Files are named RUN/IMAGE.lines.txt, with or without _color_rect.

    \b
    Example: segkd score llamas --root /data/llamas --predictions runs/x/lanes
    """
    _score_set("llamas", root, predictions, split, iou, as_json)


def _score_set(
    name: str, root: Path, predictions: Path, split: str, iou: list[float] | None, as_json: bool
) -> None:
    """Scores the files of a set's split, and prints the result."""
    from segkd.commands.display import progress, say
    from segkd.errors import folder_named_by
    from segkd.evaluation.lane_set_files import score_set

    with folder_named_by("--root FOLDER", False), progress(f"score {name}") as advance:
        result, missing = score_set(name, root, split, predictions, iou or [0.5], progress=advance)
    _warn(missing, "images have no prediction file and count as images without lanes")
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return
    say(_table(result.images, result))


@score.command(name="segmentation", short_help="IoU of label maps in files.")
def segmentation(
    labels: Annotated[Path, typer.Option(help="Folder of annotated label maps.")],
    predictions: Annotated[Path, typer.Option(help="Folder of predicted label maps.")],
    dataset: Annotated[
        str, typer.Option(help="cityscapes, camvid, voc, ade20k, or folder.")
    ] = "cityscapes",
    spec: Annotated[
        Path | None, typer.Option(help="For folder: YAML with classes and their ids or colours.")
    ] = None,
    class_ids: Annotated[
        bool, typer.Option("--class-ids", help="Predictions contain class ids 0, 1, 2, …")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: all cores.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """IoU of label maps in files; for Cityscapes equal to cityscapesscripts, with categories.

    Predictions contain the same values as annotations (label ids of Cityscapes, 1 to 150 of
    ADE20K), or class ids with --class-ids. Files of `segkd predict` record what they contain.

    \b
    Example: segkd score segmentation --labels /data/cityscapes/gtFine/val \\
             --predictions runs/x/labels --dataset cityscapes
    """
    from dataclasses import replace

    from segkd.commands.display import progress, say
    from segkd.evaluation.segmentation_files import score_files
    from segkd.inference.label_formats import format_of
    from segkd.inference.prediction_record import as_recorded, label_maps

    predictions = label_maps(predictions)
    form = replace(format_of(dataset, spec), class_ids=class_ids)
    form, told = as_recorded(form, predictions)
    if told and not as_json:
        say(told)
    with progress("score segmentation") as advance:
        result = score_files(labels, predictions, form, workers=workers, progress=advance)
    _warn(result.missing, "labels have no prediction: all of their pixels count as missed")
    if result.unused:
        _warn([""] * result.unused, "prediction files belong to no label and are not used")
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
    else:
        for table in _map_tables(result):
            say(table)


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


def _table(images: int, result: "Result | CulaneResult") -> "TextTable":
    """A row per category, and the total of all images."""
    from segkd.evaluation.table import TextTable

    header = ["category", "images", "TP", "FP", "FN", "precision", "recall"]
    titles = [result.thresholds.title(), *result.thresholds.titles()]
    header += [title.removesuffix(" %") for title in titles]
    rows = [
        [*_row(name, number, counts), *_more(result, name)]
        for name, (number, counts) in result.categories.items()
    ]
    rows.append([*_row("total", images, result.total), *_more(result)])
    return TextTable(header, rows, footer=len(rows) > 1)


def _more(result: "Result | CulaneResult", *name: str) -> list[str]:
    """Cells of F1 at further thresholds and mF1."""
    from segkd.evaluation.table import percent

    return [percent(value, "-") for value in result.thresholds.ratios(*name)]


def _map_tables(result: "MapResult") -> "list[TextTable]":
    """IoU per class and, if there are any, per category."""
    from segkd.evaluation.segmentation_files import mean
    from segkd.evaluation.table import TextTable, percent

    tables = []
    for title, scores in (("class", result.iou), ("category", result.categories)):
        if scores:
            rows = [[name, percent(value, "absent")] for name, value in scores.items()]
            rows.append(["mean", percent(mean(scores.values()), "absent")])
            notes = [f"{result.images} images"] if title == "class" else []
            tables.append(TextTable([title, "IoU %"], rows, notes=notes, footer=True))
    return tables


def _row(name: str, images: int, counts: "Counts") -> list[str]:
    """A row of text; undefined values (F1 without annotated lanes) are dashes."""
    exists = (counts.tp + counts.fp, counts.tp + counts.fn, counts.defined and counts.tp)
    ratios = zip(exists, (counts.precision, counts.recall, counts.f1), strict=True)
    shown = [f"{100 * ratio:.2f}" if defined else "-" for defined, ratio in ratios]
    return [name, str(images), str(counts.tp), str(counts.fp), str(counts.fn), *shown]
