"""`segkd data convert`: annotations of lanes in another format."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from segkd.commands.display import resumable, say
from segkd.data.lane_exchange.convert import Conversion, Converted, Format, Images
from segkd.data.lane_exchange.convert import convert as convert_lanes
from segkd.data.lane_exchange.tusimple_files import Rows
from segkd.data.lane_exchange.via import FILE
from segkd.errors import ConfigError, did_you_mean
from segkd.yaml_tree import typed


def convert(
    source: Path,
    out: Path,
    to: str,
    *,
    given: str | None = None,
    labels: Sequence[str] = (),
    attribute: str = "",
    val_share: float = 0.2,
    rows: str = "benchmark",
    images: str = "link",
) -> None:
    """Converts, and prints what was written and what could not be carried over.

    Args:
        source, out: see ``lane_exchange.convert.convert``.
        to, given: formats.
        labels, attribute, val_share, rows, images: see ``Conversion``.

    Raises:
        ConfigError: an option with another value than those it has, or of another format.
        DataError: the source cannot be read.
    """
    chosen: Any = _chosen("--to", to, Format)
    if rows != "benchmark" and chosen != "tusimple":
        raise ConfigError(f"--rows is for --to tusimple, and this is --to {chosen}: leave it out")
    source_format: Any = None if given is None else _chosen("--from", given, Format)
    how = Conversion(
        labels=tuple(labels),
        attribute=attribute,
        val_share=val_share,
        rows=_chosen("--rows", rows, Rows),
        images=_chosen("--images", images, Images),
    )
    with resumable(f"{source} -> {out}", "converts those that are left") as advance:
        done = convert_lanes(source, out, chosen, given=source_format, how=how, progress=advance)
    _tell(done, out, chosen)


def _chosen(option: str, value: str, kind: Any) -> Any:
    """The value of an option, one of a Literal's. Raises ConfigError for others."""
    known = get_args(kind)
    if value not in known:
        hint = did_you_mean(value, known) or f" It is one of: {', '.join(known)}"
        raise ConfigError(f"{option}: there is no '{value}'.{hint}")
    return value


def _tell(done: Converted, out: Path, to: Format) -> None:
    splits = " + ".join(f"{number} {split}" for split, number in done.images.items())
    say(f"{out}: {splits} images, {done.lanes} lanes, from {done.source}")
    for line in done.left.lines():
        say(f"  not carried over: {line}")
    if done.missing:
        say(f"  {done.missing} images do not exist beside the annotations: only these were written")
    keys, names = "", list(done.images)
    if names and "train" not in names:  # which sets read, unless they are told others
        first, last = typed("data.train_split", names[0]), typed("data.val_split", names[-1])
        keys = f" {first} {last}"
    root = typed("data.root", out)
    uses = {
        "culane": f"data.name=culane {root} data.num_lanes={done.slots}{keys}",
        "tusimple": f"data.name=tusimple {root}{keys}",
        "labelme": f"labelme {shlex.quote(str(out))}",
        "via": f"open {out / FILE} in VIA: Project > Load",
    }
    say(f"Use them: {uses[to]}")
