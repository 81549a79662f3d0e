"""`segkd query` and `segkd active-mixup`: what a teacher says about images, in files."""

from pathlib import Path
from typing import Annotated

import typer

_Teacher = Annotated[str | None, typer.Option(help="Its name. Default: the only one.")]
_Stride = Annotated[int, typer.Option(help="One prediction per N x N pixels.", min=1)]
_TopK = Annotated[
    int | None, typer.Option(help="Keep the K most probable classes. Default: all.", min=1)
]


def query(
    config: Annotated[str, typer.Argument(metavar="CONFIG")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    teacher: _Teacher = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: predictions/TEACHER.")] = None,
    stride: _Stride = 4,
    top_k: _TopK = None,
) -> None:
    """Store a teacher's predictions of whole images: any teacher of a config, also a black box.

    A run learns from them with `teachers: {NAME: {black_box: {predictions: FOLDER}}}`; crops and
    flips are those of the images. Images that are in the folder are not predicted again.

    \b
    Example: segkd query my.yaml data/train --teacher service --out service_train --top-k 5
    """
    from segkd.commands.stores import query

    query(config, source, overrides or [], teacher=teacher, out=out, stride=stride, top_k=top_k)


def active_mixup(
    config: Annotated[str, typer.Argument(metavar="CONFIG")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    out: Annotated[Path, typer.Option(help="Folder of images, predictions and runs.")] = Path(
        "runs/active_mixup"
    ),
    teacher: _Teacher = None,
    rounds: Annotated[int, typer.Option(help="Rounds of mixing.", min=1)] = 3,
    queries: Annotated[int, typer.Option(help="Mixed images per round.", min=1)] = 100,
    pool: Annotated[
        int | None, typer.Option(help="Pairs to score per round. Default: 10 per query.", min=1)
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Real images: the first N. Default: all.", min=3)
    ] = None,
    mix: Annotated[
        str, typer.Option(help="mixup: weighted sum; cutmix: left and right part.")
    ] = "mixup",
    select: Annotated[
        str, typer.Option(help="confidence: the lowest; random, as a baseline.")
    ] = "confidence",
    stride: _Stride = 4,
    top_k: _TopK = None,
) -> None:
    """Train a student from few images without labels, and few queries to a teacher.

    Round 0 learns the teacher's predictions of the real images. Each later round mixes pairs of
    them, queries those of which the student is least sure, and trains from scratch on all. The
    config is that of each round; its labels are not read, its task loss is off.

    \b
    Example: segkd active-mixup my.yaml --images 50 --rounds 3 --queries 100 --out runs/mixup
    """
    from segkd.commands.stores import mixup

    _check_words(mix, select)
    mixup(
        config,
        overrides or [],
        teacher,
        out=out.expanduser(),
        rounds=rounds,
        queries=queries,
        pool=pool,
        images=images,
        mix=mix,
        select=select,
        stride=stride,
        top_k=top_k,
    )


def _check_words(mix: str, select: str) -> None:
    from segkd.errors import ConfigError

    choices = (
        ("--mix", mix, ("mixup", "cutmix")),
        ("--select", select, ("confidence", "random")),
    )
    for option, value, known in choices:
        if value not in known:
            raise ConfigError(f"{option}: got '{value}'. Known: {', '.join(known)}")
