"""`segkd init` and `segkd distill`: from a folder of images to configs, and to a student."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segkd.pipeline.budget import Candidate

_BELOW = "below FOLDER, if names do not tell."

_Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")]
_Teacher = Annotated[
    str,
    typer.Option(
        metavar="T",
        help="Run folder, checkpoint, pretrained:NAME, hf:ID_OR_FOLDER, FILE.onnx, "
        "module:function, or train:ARCH/ENCODER.",
    ),
]
_Student = Annotated[
    str | None,
    typer.Option(
        metavar="S",
        help="ARCH or ARCH/ENCODER (segkd list models), or a checkpoint. Default: "
        "fpn/tu-tf_efficientnet_lite0.",
    ),
]
_Data = Annotated[str, typer.Option(metavar="D", help="Folder of images, a config, or a dataset.")]
_Unlabeled = Annotated[
    str | None, typer.Option(metavar="U", help="Folder of images without masks.")
]
_Out = Annotated[
    Path | None, typer.Option(help="Folder of everything. Default: runs/distill_DATA.")
]
_Steps = Annotated[
    int | None, typer.Option(help="Of training. Default: by the number of images.", min=1)
]
_Baseline = Annotated[bool, typer.Option(help="Also train the student without the teacher.")]
_MaxParams = Annotated[
    str | None, typer.Option(metavar="N", help="Budget instead of --student, e.g. 1M.")
]
_MaxLatencyMs = Annotated[
    float | None, typer.Option(metavar="MS", help="Budget of one image.", min=0.001)
]
_On = Annotated[str, typer.Option(help="Where latency is measured: cpu.")]
_Yes = Annotated[
    bool, typer.Option("--yes", help="Take the first student that fits, without asking.")
]


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    name: Annotated[str | None, typer.Option(help="Of the files. Default: the folder's.")] = None,
    images: Annotated[Path | None, typer.Option(help=f"Folder of the images {_BELOW}")] = None,
    masks: Annotated[Path | None, typer.Option(help=f"Folder of the masks {_BELOW}")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Do not take it for a set that segkd knows.")
    ] = False,
) -> None:
    """Look at images and masks, and write a config that trains on them, and a spec of the masks.

    Finds pairs, splits, sizes, ids or colours, and names of classes (classes.txt, a JSON file, a
    table of colours). Each choice has a comment. FOLDER is only read.

    \b
    Example: segkd init /data/fields && segkd train fields.yaml
    """
    from segkd.commands.display import progress, say
    from segkd.pipeline.start import start

    with progress("masks") as advance:
        found = start(
            folder,
            out=out,
            name=name,
            images=images,
            masks=masks,
            plain=plain,
            progress=advance,
        )
    draft = found.found
    counts = ", ".join(f"{number} {split}" for split, number in draft.counts.items())
    say(f"{draft.root}: images: {counts} ({draft.how})")
    for note in draft.notes:
        say(f"  {note}")
    if draft.classes:
        say(f"  {len(draft.classes)} classes: {', '.join(draft.classes)}")
    for path in found.files:
        say(f"written: {path}")
    config = shlex.quote(str(found.config))
    say(f"Check it: segkd data show {config}")
    first = "" if found.labelled else f"Write your teacher into {config}. "
    say(f"{first}Train it: segkd train {config}")


def distill(
    overrides: _Overrides = None,
    teacher: _Teacher = "",
    student: _Student = None,
    data: _Data = "",
    unlabeled: _Unlabeled = None,
    out: _Out = None,
    steps: _Steps = None,
    baseline: _Baseline = True,
    max_params: _MaxParams = None,
    max_latency_ms: _MaxLatencyMs = None,
    on: _On = "cpu",
    yes: _Yes = False,
) -> None:
    """Distil a teacher into a small student: scores, training, report and ONNX file in one go.

    DATA is a folder of images with masks (`segkd init` describes what is found), or without: then
    the student learns from the teacher alone. Everything that was chosen is in OUT/recipe.yaml.
    The same command goes on where it was stopped.

    With a budget, candidates are measured on this machine. On a terminal one is asked for,
    otherwise the first of the table is taken.

    \b
    Example: segkd distill --teacher runs/big --student enet --data /data/fields
             segkd distill --teacher hf:nvidia/segformer-b5-finetuned-cityscapes-1024-1024
                 --max-latency-ms 20 --data /data/drive --out runs/drive optim.lr=0.0005

    Raises SegKDError: something cannot be used; says what and why.
    """
    from segkd.commands.display import progress, say
    from segkd.inference.stopping import stopped_with
    from segkd.pipeline.budget import Budget, number_of
    from segkd.pipeline.distill import distill, summary_lines
    from segkd.pipeline.request import Request, the_first

    may_be_empty = {"--student": student, "--unlabeled": unlabeled, "--max-params": max_params}
    _check_options(may_be_empty, data, on)
    budget = Budget(number_of(max_params, "--max-params") if max_params else None, max_latency_ms)
    request = Request(
        teacher,
        data,
        student or "",
        unlabeled or "",
        out,
        steps,
        baseline,
        budget,
        tuple(overrides or ()),
    )
    with stopped_with(lambda: "the distillation is not finished. The same command goes on"):
        found = distill(request, pick=the_first if yes or not _asks() else _ask, bar=progress)
    for line in summary_lines(found):
        say(line)


def _check_options(optional: dict[str, str | None], data: str, on: str) -> None:
    """Refuses options that are empty or that nothing can be done with.

    Raises:
        ConfigError: one of them; says what to give.
    """
    from segkd.errors import ConfigError

    for option, value in optional.items():
        if value is not None and not value.strip():  # of a variable that is not set, perhaps
            raise ConfigError(f"{option}: is empty. Give a value, or leave the option out")
    if not data:
        raise ConfigError("--data is missing: the folder of your images, e.g. --data /data/fields")
    if on != "cpu":
        raise ConfigError(
            f"--on: got '{on}', but latency is measured on the CPU only. For another device time "
            "the ONNX file there"
        )


def _asks() -> bool:
    import sys

    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask(rows: "list[Candidate]") -> int:
    """The index of the student that the user chooses."""
    names = [row.name for row in rows]
    while True:
        given = typer.prompt("Student", default=names[0])
        if given in names:
            return names.index(given)
        typer.echo(f"'{given}' is not one of those that fit: {', '.join(names)}")
