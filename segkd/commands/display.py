"""Progress and plain text on the terminal."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]  # (done, total)


def is_main() -> bool:
    """Whether this is the only process, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def say(text: object) -> None:
    """Prints text as it is, or a table: coloured on a terminal, plain lines in a file."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def fail(message: str, label: str = "error") -> None:
    """Prints what went wrong to stderr."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{label}: ", "bold red" if label == "error" else "bold"), message)
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


@contextlib.contextmanager
def progress(title: str, enabled: bool = True) -> Iterator[Progress]:
    """A callback ``(done, total)``: a bar with rate and ETA on a terminal, else a line a tenth."""
    if not enabled:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield lambda done, total: _line(title, done, total)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(title: str, done: int, total: int) -> None:
    if done == total or done * 10 // total > (done - 1) * 10 // total:
        print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)
