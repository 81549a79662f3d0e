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
