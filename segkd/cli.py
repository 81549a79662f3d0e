"""The command line. Commands import what they need when called, so that `--help` is fast."""

import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from segkd import __version__
from segkd.commands.demo import demo
from segkd.commands.distill import distill, init
from segkd.commands.export import export
from segkd.commands.groups import cache, configs, data
from segkd.commands.lane import lane
from segkd.commands.predict import predict
from segkd.commands.query import active_mixup, query
from segkd.commands.score import score
from segkd.cpus import wait_briefly
from segkd.errors import FormerName, Interrupted, SegKDError
from segkd.faults import explained, first_to_tell, of_another_process

_HEAD_START = 3.0  # seconds of the first process to print an error

app = typer.Typer(
    name="segkd",
    help="Distils large segmentation networks into small fast ones. Start with: segkd train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(configs, name="config")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
app.add_typer(score, name="score")
app.add_typer(demo, name="demo")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"segkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command(short_help="Train a run or a recipe.")
def train(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE")] = None,
) -> None:
    """Train a run or a recipe; the same command resumes an interrupted one.

    Without CONFIG: the quick start on synthetic street scenes.

    \b
    Example: segkd train camvid/kd_cwd steps=1000 optim.lr=0.002
    On two GPUs: torchrun --nproc-per-node 2 train.py CONFIG
    """
    config, overrides = _config_first(arguments or [])
    from segkd.api import train

    train(config, overrides=overrides)


@app.command(name="eval", short_help="Evaluate a trained student.")
def eval_command(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the CSV and JSON.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Lanes: folder for detected lanes in the official format.")
    ] = None,
    iou: Annotated[
        list[float] | None,
        typer.Option(help="CULane's F1: IoU of a match; several: F1 at each, and mF1."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained student: mIoU and a table per class, also as CSV and JSON files.

    The files eval.csv and eval.json are written next to the checkpoint; overrides become part of
    their names, so that several evaluations are kept.

    A lane detector gets the official score of its dataset: F1 per category, or accuracy.

    \b
    Example: segkd eval runs/quickstart/alone/seed0 eval.flip=true
    More: eval.scales=[0.5,0.75,1] eval.sliding=768 data.val_split=test
    Lanes: segkd eval runs/culane/enet_sad data.val_split=test --predictions found --iou 0.5 0.75
    Weights of another program: segkd eval FILE.pth student.arch=espnetv2 data.name=cityscapes
    """
    from segkd.commands.evaluate import report_score
    from segkd.commands.option_keys import with_option

    keys = with_option(overrides or [], "--iou", "eval.lanes.iou", iou or None)
    report_score(source, keys, out=out, as_json=as_json, predictions=predictions)


app.command(short_help="Write a spec and a config from images and masks.")(init)
app.command(short_help="From images and a teacher to a student, in one go.")(distill)
app.command(short_help="Segment images and videos.")(predict)
app.command(short_help="Detect lanes in images and videos.")(lane)
app.command(short_help="Store a teacher's predictions of images.")(query)
app.command(short_help="Train a student with few images and few queries.")(active_mixup)
app.command(short_help="Write a student as one file for devices.")(export)


@app.command(name="list")
def list_entries(
    what: Annotated[str, typer.Argument(metavar="methods|models|datasets|configs|weights|checks")],
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List methods, models, datasets, configs, default weights, or checks of own parts.

    Example: segkd list methods --kind relation
    """
    from segkd.commands.listing import listing

    print(listing(what, kind, as_json=as_json, markdown=markdown))


@app.command(short_help="Explain a distillation method.")
def explain(method: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Explain a method: paper, loss, needs, keys with defaults, cost, published weights.

    Example: segkd explain cwd
    """
    from segkd.explain import explain, facts

    print(json.dumps(facts(method), indent=2) if as_json else explain(method))


@app.command(short_help="Measure time and memory of a training step.")
def profile(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE")] = None,
    steps: Annotated[int, typer.Option(help="Steps to measure.", min=1)] = 10,
    run: Annotated[
        str | None, typer.Option(help="Only this run of a recipe; default: all of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure seconds and memory of each part of a training step over a few steps.

    Nothing is written. All methods are active, also those that start later in a run.

    \b
    Example: segkd profile camvid/kd_cwd data.batch_size=4
    """
    from segkd.commands.profile import profile

    config, overrides = _config_first(arguments or [])
    profile(config, overrides, steps=steps, run=run, as_json=as_json)


@app.command(short_help="Write a report of runs.")
def report(
    arguments: Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE]")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Run to compute gains against.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Number of images to evaluate; default: all.", min=1)
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Measure latencies on this machine.")
    ] = True,
) -> None:
    """Write a report of a run, a recipe, or several runs, as HTML and Markdown.

    \b
    Example: segkd report runs/quickstart
             segkd report runs/a runs/b --out compared --limit 50 data.root=/data/camvid
    """
    from segkd.commands.report import report

    report(arguments, out=out, baseline=baseline, limit=limit, latency=latency)


@app.command(short_help="Check whether a run would start, and what to fix.")
def doctor(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the trial training step.")] = False,
    as_json: Json = False,
) -> None:
    """Check the machine, and a config if one is given: packages, data, checkpoints, taps, memory.

    Exit code 2 if a run would not start. Nothing is written or downloaded.

    \b
    Example: segkd doctor camvid/kd_cwd data.root=/data/camvid
    Only the machine: segkd doctor
    """
    from segkd.commands.doctor import doctor

    config, overrides = _config_first(arguments or [])
    if not doctor(config, overrides, quick=quick, as_json=as_json):
        raise typer.Exit(2)


def _run(arguments: list[str]) -> None:
    """Runs a command; only if it succeeds, this process leaves the others in order."""
    succeeded = False
    try:
        app(arguments, prog_name="segkd")
    except SystemExit as end:
        succeeded = not end.code
        raise
    finally:
        if "torch" in sys.modules:
            from segkd.runtime import leave_processes, stay_in_processes

            (leave_processes if succeeded else stay_in_processes)()


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 2 user error, 1 bug in segkd, 130 or 143 stopped."""
    wait_briefly()  # before a command imports torch
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note(warnings.showwarning)
            given = sys.argv[1:] if arguments is None else arguments
            _run(_repeated(given))
    except Interrupted as stopped:
        _say(str(stopped), label="stopped")
        sys.exit(stopped.exit_code)
    except SegKDError as error:
        _say(str(error))
        sys.exit(2)
    except Exception as error:
        sys.exit(_unforeseen(error))


def _note(others: Callable[..., None]) -> Callable[..., None]:
    """A ``showwarning`` that prints former names as one line; ``others`` shows other warnings."""

    from segkd.commands.display import is_main

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, FormerName):
            others(message, category, *place, **more)
        elif is_main():
            print(f"note: {message}", file=sys.stderr)

    return show


def _unforeseen(error: Exception) -> int:
    """Prints an exception that is not a SegKDError; returns the exit code."""
    fault = explained(error)
    if fault is not None:
        _say(str(fault))
        return 2
    if of_another_process(error):
        time.sleep(_HEAD_START)  # lets that process print its message first
        _say("another process of this run has ended; see its message or exit code")
        return 1
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        return 2
    trace = "".join(traceback.format_exception(error))
    text = "this is a bug in segkd. Please report it with the command and the lines above"
    _say(text, above=trace)
    return 1


def _say(message: str, label: str = "error", above: str = "") -> None:
    """Prints why a command ends; only one process of a run does."""
    from segkd.commands.display import fail, is_main

    if not is_main():
        # An error of all processes is printed by the first; torchrun ends the others meanwhile.
        time.sleep(_HEAD_START)
    if first_to_tell():
        sys.stderr.write(above)
        fail(message, label)


def _repeated(arguments: list[str]) -> list[str]:
    """Turns `--iou 0.5 0.75` into `--iou 0.5 --iou 0.75`, which typer understands."""
    found: list[str] = []
    several = False  # whether a number may follow
    for argument in arguments:
        number = argument.replace(".", "", 1).isdecimal()
        if several and number and found[-1] != "--iou":
            found.append("--iou")
        several = argument == "--iou" or (several and number)
        found.append(argument)
    return found


def _config_first(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Splits [CONFIG] KEY=VALUE...: a first argument with `=` is an override, not a file."""
    if not arguments or "=" in arguments[0]:
        return None, arguments
    return arguments[0], arguments[1:]
