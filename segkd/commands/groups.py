"""`segkd config`, `data` and `cache`; like `segkd.cli`, this module imports no heavy library."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

configs = typer.Typer(help="Show or copy configs.", no_args_is_help=True, rich_markup_mode=None)
data = typer.Typer(
    help="Make, check, show or map datasets.", no_args_is_help=True, rich_markup_mode=None
)
cache = typer.Typer(
    help="List or delete stored outputs of teachers.", no_args_is_help=True, rich_markup_mode=None
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")]


@configs.command(name="show", short_help="Print a resolved config.")
def show_config(
    config: str,
    overrides: Overrides = None,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this run of a recipe.")
    ] = None,
) -> None:
    """Print a config with its bases merged and all defaults written out.

    \b
    Example: segkd config show camvid/kd_cwd steps=100
             segkd config show quickstart --run distilled
    """
    from segkd.commands.configs import show_config

    print(show_config(config, overrides or [], run), end="")


@configs.command(name="copy", short_help="Copy a config for editing.")
def copy_config(name: str, dest: Annotated[Path, typer.Argument()] = Path(".")) -> None:
    """Copy a config to a file or folder, for editing.

    Example: segkd config copy quickstart my.yaml
    """
    from segkd.commands.configs import copy_config

    target = copy_config(name, dest)
    print(f"{target}\nTrain it: segkd train {shlex.quote(str(target))}")


@data.command(name="make", short_help="Write a dataset to disk.")
def make_data(
    name: str,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    train: Annotated[int | None, typer.Option(help="Training scenes. Default: 800.", min=1)] = None,
    val: Annotated[int | None, typer.Option(help="Validation scenes. Default: 200.", min=1)] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Write decoded images, for faster reading.")
    ] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Also paint the masks of culane.")] = False,
) -> None:
    """Write streets as a Cityscapes tree, lists of a CULane tree, VOC's train_aug, or caches.

    \b
    Example: segkd data make streets --out datasets/streets data.size=[256,512]
             segkd data make lanes --out datasets/lanes --train 2000 data.size=[288,800]
             segkd data make cityscapes --cache data.root=/data/cityscapes
             segkd data make culane data.root=/data/my_drives --masks
             segkd data make voc data.root=/data/voc

    The clips of culane are split between validation and training as --val : --train.
    """
    from segkd.commands.data import make

    make(name, overrides or [], out=out, train=train, val=val, cache=cache, masks=masks)


@data.command(name="convert", short_help="Convert annotations of lanes.")
def convert_data(
    source: Annotated[Path, typer.Argument(help="Root or file of the annotations.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[str, typer.Option(help="culane, tusimple, labelme or via.")],
    given: Annotated[
        str | None, typer.Option("--from", help="Format of the source; default: by its files.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Labels of lines that are lanes; may be repeated. Default: all.",
            metavar="NAME,NAME",
        ),
    ] = None,
    attribute: Annotated[str, typer.Option(help="Of VIA's regions, that is the label.")] = "",
    val_share: Annotated[
        float, typer.Option(help="Of validation, without splits in the source.", min=0, max=0.9)
    ] = 0.2,
    rows: Annotated[
        str, typer.Option(help="Of TuSimple: benchmark (56 rows), or points (all are kept).")
    ] = "benchmark",
    images: Annotated[str, typer.Option(help="link (hard links), copy, or none.")] = "link",
) -> None:
    """Convert annotated lanes between labelme, VIA, TuSimple and CULane, and make lists.

    \b
    Example: segkd data convert drives_labelme datasets/drives --to culane --labels lane
             segkd data convert /data/tusimple/train_set datasets/tusimple_lines --to culane
             segkd data convert /data/CULane drives_via --to via --images none

    Labels like `left`, `right`, `left 2`, `right-right` are identities of lanes; without them they
    follow from positions. What the format cannot hold is listed.
    """
    from segkd.commands.lane_convert import convert

    convert(
        source,
        out,
        to,
        given=given,
        labels=labels or [],
        attribute=attribute,
        val_share=val_share,
        rows=rows,
        images=images,
    )


@data.command(name="check", short_help="Check all files of a dataset.")
def check_data(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_CONFIG")], overrides: Overrides = None
) -> None:
    """Check all files of a dataset and print problems. Exit code 2 if there are any.

    Example: segkd data check camvid data.root=/data/camvid
    """
    from segkd.commands.data import check

    if not check(target, overrides or []):
        raise typer.Exit(2)


@data.command(name="show", short_help="Draw training images as the student sees them.")
def show_data(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_CONFIG")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    images: Annotated[int, typer.Option(help="Number of images.", min=1)] = 6,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run of a recipe; default: the first one.")
    ] = None,
) -> None:
    """Draw the first training images with their labels, cropped and augmented as in training.

    \b
    Example: segkd data show streets/weather --out weather.png
             segkd data show culane data.root=/data/CULane 'data.augment=[{RandomRain: {p: 1}}]'
    """
    from segkd.commands.show import show

    show(target, overrides or [], out=out, images=images, run=run)


@cache.command(name="list", short_help="List stored outputs of teachers.")
def list_caches(
    folder: Annotated[
        Path | None, typer.Argument(help="Default: $SEGKD_TEACHER_CACHE, or runs/teacher_cache.")
    ] = None,
) -> None:
    """List the stored outputs of teachers, the latest first.

    Example: segkd cache list
    """
    from segkd.commands.caches import list_caches

    list_caches(folder)


@cache.command(name="clear", short_help="Delete stored outputs of teachers.")
def clear_caches(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the folder.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder, as of `segkd cache list`.")
    ] = None,
) -> None:
    """Delete stored outputs by the names that `segkd cache list` shows; runs store them again.

    Example: segkd cache clear views-0123456789abcdef
    """
    from segkd.commands.caches import clear_caches

    clear_caches(names or [], everything, folder)


@data.command(name="map", short_help="Draft which class of one set is which of another.")
def map_data(
    source: Annotated[str, typer.Argument(metavar="A")],
    target: Annotated[str, typer.Argument(metavar="B")],
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file for `classes: {map: FILE}`.")
    ] = None,
) -> None:
    """Draft which class of A (a teacher's) is which of B (the data's), and show what is left.

    A and B are names of data sets (cityscapes, ade20k, coco_stuff, mapillary, voc, camvid …), YAML
    files with a list of names or a spec, folders with a spec, or models of transformers.

    \b
    Example: segkd data map ade20k cityscapes
             segkd data map ade20k plates.yaml --write ade20k_plates.yaml
    """
    from segkd.commands.class_map import show_map

    show_map(source, target, write)
