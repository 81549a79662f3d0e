"""Where a run's numbers go: metrics.csv, TensorBoard, the terminal or a log file."""

import contextlib
import csv
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkd.errors import DataError
from segkd.faults import no_space
from segkd.files import write_text

if TYPE_CHECKING:
    from rich.console import Group
    from torch.utils.tensorboard import SummaryWriter


class CsvLog:
    """metrics.csv: one row per logged step; rows beyond a checkpoint are cut when resuming.

    Args:
        path: the file.
        columns: names beside ``step``.
        resume_step: the step of the checkpoint; later rows are cut.
        rows: how many rows there were when it was written; None: unknown.

    Attributes:
        rows: how many it has.
        kept: those of earlier processes.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], resume_step: int, rows: int | None = None
    ) -> None:
        self.path, self.columns = path, ["step", *columns]
        kept = [row for row in read_csv(path) if int(row["step"]) <= resume_step]
        self.kept = kept[:rows]
        self.rows = len(self.kept)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.kept)
        with _told(path):
            write_text(path, buffer.getvalue())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step} | {key: f"{value:.6g}" for key, value in values.items()}
        with _told(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", extrasaction="ignore").writerow(row)
        self.rows += 1


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a message that names the file."""
    try:
        yield
    except OSError as error:
        raise no_space(path, error) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none if it is missing. A torn last line is left out.

    Raises:
        DataError: it is no table of steps.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if (row.get("step") or "").isdecimal()]
            if "step" not in (reader.fieldnames or ["step"]):
                raise ValueError("its first line has no column 'step'")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged: {error}. Repair it, or move it away: a run goes on without its "
            "earlier rows"
        ) from error
    return rows


class Logger:
    """Writes a run's numbers and sentences; does nothing on all processes but the first.

    Args:
        folder: of the run.
        columns: of metrics.csv.
        resume_step: of the checkpoint that the run goes on from.
        rows: of metrics.csv when that was written; None: unknown.
        tensorboard: write its event files as well.
        enabled: this is the first process.

    Attributes:
        score: the last one of this process, with its name; empty before.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        *,
        resume_step: int,
        rows: int | None = None,
        tensorboard: bool,
        enabled: bool,
    ) -> None:
        self.enabled, self.folder, self._board = enabled, folder, None
        self.score = ""
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._csv = CsvLog(folder / "metrics.csv", columns, resume_step, rows)
        if tensorboard:
            with _told(folder / "tensorboard"):
                self._board = self._open_board(resume_step)

    @property
    def rows(self) -> int:
        """Rows of metrics.csv so far; 0 on other processes."""
        return self._csv.rows if self.enabled else 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not self.enabled:
            return
        self._csv.write(step, values)
        if self._board is not None:
            with _told(self.folder / "tensorboard"):
                for key, value in values.items():
                    self._board.add_scalar(key, value, step)

    def _open_board(self, resume_step: int) -> "SummaryWriter":
        """Hides what earlier processes wrote from this step on, and repeats what stays true."""
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=resume_step)
        for row in self._csv.kept:
            step = int(row.pop("step"))
            for key, value in row.items() if step == resume_step else ():
                if key and value:
                    board.add_scalar(key, float(value), step)
        return board

    def say(self, text: str) -> None:
        """One sentence to the terminal and to log.txt."""
        if not self.enabled:
            return
        display_print(text)
        path = self.folder / "log.txt"
        with _told(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        if self.enabled and self._board is not None:
            with _told(self.folder / "tensorboard"):
                self._board.close()


def display_print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


class Progress:
    """A bar, times and the latest numbers on a terminal; plain lines in a file.

    On a terminal these are up to three lines that fit 70 columns: the bar, the times with the
    speed, and the numbers, of which the last ones are cut where there are too many.

    Args:
        total: steps of the run.
        done: steps before this process.
        title: the folder of the run.
    """

    def __init__(self, total: int, done: int, *, enabled: bool, title: str) -> None:
        self.total, self._first, self._begin = total, done, time.monotonic()
        self.enabled = enabled
        self._step, self._text, self._score, self._title = done, "", "", title
        self._live = None
        if enabled and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._shown, refresh_per_second=4, transient=True)
            self._live.start()

    def advance(self, step: int) -> None:
        self._step = step

    def facts(self, step: int, text: str, score: str = "") -> str | None:
        """Shows the latest numbers and score; returns the line to print where there is no bar."""
        self._step, self._text, self._score = step, text, score
        if self._live is not None:
            return None
        return f"step {step}/{self.total} · {self._numbers()} · {self._times(clock=False)}"

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _shown(self) -> "Group":
        """What a terminal shows between two steps."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        name = Text(_end_of(self._title, 24))
        bar.add_row(name, ProgressBar(self.total, self._step), f"step {self._step}/{self.total}")
        lines = (Text(line, no_wrap=True, overflow="ellipsis") for line in self._lines())
        return Group(bar, *lines)

    def _lines(self) -> list[str]:
        numbers = self._numbers()
        return [self._times(clock=True), *([numbers] if numbers else [])]

    def _numbers(self) -> str:
        """The last score first: it is what counts, and what a narrow terminal must not cut."""
        return " · ".join(part for part in (self._score, self._text) if part)

    def _times(self, clock: bool) -> str:
        """``0:01:02 elapsed · 0:10:00 left · 3.20 steps/s``."""
        seconds = time.monotonic() - self._begin
        rate = (self._step - self._first) / max(seconds, 1e-9)
        left = _clock((self.total - self._step) / rate) if rate > 0 else "unknown"
        elapsed = f"{_clock(seconds)} elapsed · " if clock else ""
        return f"{elapsed}{left} left · {rate:.2f} steps/s"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, more than a day as well."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _end_of(text: str, length: int) -> str:
    """The end of a path tells runs apart."""
    return text if len(text) <= length else "…" + text[1 - length :]
