"""Text, errors and progress on the terminal."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segkd.models.network import Network

Progress = Callable[[int, int], None]  # (done, total)


def is_main() -> bool:
    """Whether this is the only process, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def say(text: object) -> None:
    """Prints text or a table: coloured on a terminal, plain lines in a file."""
    from rich.console import Console

    # Names and paths are printed as they are: rich would make a car of `:car:`.
    Console(highlight=False, soft_wrap=True, emoji=False).print(text, markup=False)


def fail(message: str, label: str = "error") -> None:
    """Prints a message with a label to stderr."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{label}: ", "bold red" if label == "error" else "bold"), message)
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def note_match(network: "Network") -> None:
    """Says how the weights of another program were matched to a network, if they were."""
    lines = [] if network.match is None else [network.match, network.normalization]
    for line in (*lines, network.normalization.warning if lines else ""):
        if str(line):
            fail(str(line), label="note")


def note_all_kept(top_k: int | None, classes: int) -> None:
    """Says that ``--top-k`` leaves nothing out, if there are not as many classes."""
    if top_k is not None and top_k > classes:
        fail(f"--top-k {top_k}: there are {classes} classes, so all are kept", label="note")


@contextlib.contextmanager
def progress(title: str, enabled: bool = True) -> Iterator[Progress]:
    """Yields a callback ``(done, total)``: a bar on a terminal, else one line at the end.

    Args:
        title: shown beside the bar.
        enabled: whether anything is shown.
    """
    if not enabled:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield from _one_line(title)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("elapsed ·"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("left"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def resumable(title: str, again: str) -> Iterator[Progress]:
    """``progress`` of work that Ctrl-C and SIGTERM end with one line.

    Args:
        title: shown beside the bar.
        again: what the same command does then.

    Raises:
        Interrupted: after a signal; says how many images are left.
    """
    from segkd.inference.stopping import stopped_with

    counts = 0, 0

    def told() -> str:
        done, total = counts
        left = f"{total - done} of {total} images are left" if total else "no image is done"
        return f"{title}: {left}; files that are written are complete. The same command {again}"

    with stopped_with(told), progress(title) as advance:

        def counted(done: int, total: int) -> None:
            nonlocal counts
            counts = done, total
            advance(done, total)

        yield counted


def _one_line(title: str) -> Iterator[Progress]:
    """Prints the final numbers at the end, also after errors."""
    last: list[tuple[int, int]] = []
    try:
        yield lambda done, total: last.append((done, total))
    finally:
        if last:
            done, total = last[-1]
            print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)
