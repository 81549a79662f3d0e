"""Logs of a run: metrics.csv, TensorBoard, log.txt, and progress on the terminal."""

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
    from rich.live import Live
    from torch.utils.tensorboard import SummaryWriter

    from segkd.evaluation.table import TextTable


class CsvLog:
    """metrics.csv: one row per logged step; rows after the checkpoint are removed when resuming.

    Args:
        path: the file.
        columns: column names besides ``step``.
        resume_step: step of the checkpoint; later rows are removed.
        rows: number of rows when the checkpoint was written; None: unknown.

    Attributes:
        rows: number of rows so far.
        kept: rows of earlier processes.

    Raises:
        DataError: an earlier file is damaged.
        MachineError: it cannot be written.
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
        """Appends a row. Raises MachineError if it cannot be written."""
        row: dict[str, int | str] = {"step": step}
        row |= {key: f"{value:.6g}" for key, value in values.items()}
        with _told(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", extrasaction="ignore").writerow(row)
        self.rows += 1


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an OSError into a message that names the file."""
    try:
        yield
    except OSError as error:
        raise no_space(path, error) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none if it is missing. An incomplete last line is skipped.

    Raises:
        DataError: it is not a valid table of steps and numbers.
    """
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode()
        # Without its end a number may be another one: 1.5e-05 begins like 1.5
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        rows = [row for row in reader if (row.get("step") or "").isdecimal()]
        if "step" not in (reader.fieldnames or ["step"]):
            raise ValueError("its first line has no column 'step'")
        for row in rows:
            if None in row:
                raise ValueError(f"step {row['step']} has more values than there are columns")
            for value in filter(None, row.values()):
                float(value)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged: {error}. Repair it, or move it away: a run goes on without its "
            "earlier rows"
        ) from error
    return rows


class Logger:
    """Writes a run's numbers and messages; does nothing on all processes but the first.

    Args:
        folder: folder of the run.
        columns: columns of metrics.csv.
        resume_step: step of the checkpoint that the run resumes from.
        rows: rows of metrics.csv when that was written; None: unknown.
        tensorboard: also write TensorBoard event files.
        enabled: whether this is the first process.

    Attributes:
        score: latest score of this process with its name; empty before the first evaluation.
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
        self.enabled, self.folder, self.score = enabled, folder, ""
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._csv = CsvLog(folder / "metrics.csv", columns, resume_step, rows)
        if tensorboard:
            with _told(folder / "tensorboard"):
                self._board = self._open_board(resume_step)

    @property
    def rows(self) -> int:
        """Number of rows of metrics.csv so far; 0 on other processes."""
        return self._csv.rows if self.enabled else 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers to metrics.csv and TensorBoard. Raises MachineError if it cannot."""
        if not self.enabled:
            return
        self._csv.write(step, values)
        if self._board is not None:
            with _told(self.folder / "tensorboard"):
                for key, value in values.items():
                    self._board.add_scalar(key, value, step)

    def _open_board(self, resume_step: int) -> "SummaryWriter":
        """Purges earlier events from this step on, and writes those of the step itself again."""
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=resume_step)
        for row in self._csv.kept:
            step = int(row.pop("step"))
            for key, value in row.items() if step == resume_step else ():
                if key and value:
                    board.add_scalar(key, float(value), step)
        return board

    def say(self, text: str) -> None:
        """Prints a message and appends it to log.txt. Raises MachineError if it cannot."""
        if not self.enabled:
            return
        display_print(text)
        path = self.folder / "log.txt"
        with _told(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        """Closes the event files."""
        if self.enabled and self._board is not None:
            with _told(self.folder / "tensorboard"):
                self._board.close()


def display_print(text: "str | TextTable") -> None:
    """Prints text or a table: coloured on a terminal, plain lines in a file."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, emoji=False).print(text, markup=False)


class Progress:
    """Progress bar, times and the latest numbers on a terminal; plain lines in a file.

    On a terminal these are up to three lines that fit into 70 columns: the bar, times and speed,
    and the numbers, truncated at the end.

    Args:
        total: number of steps of the run.
        done: steps done before this process started.
        enabled: whether anything is shown.
        title: shown beside the bar: the folder of the run.
    """

    def __init__(self, total: int, done: int, *, enabled: bool, title: str) -> None:
        self.total, self._first, self._begin = total, done, time.monotonic()
        self.enabled = enabled
        self._step, self._text, self._score, self._title = done, "", "", title
        self._live: Live | None = None
        if enabled and sys.stdout.isatty():
            from rich import live

            self._live = live.Live(get_renderable=self._shown, refresh_per_second=4, transient=True)
            self._live.start()

    def advance(self, step: int) -> None:
        """Sets the number of steps done."""
        self._step = step

    def facts(self, step: int, text: str, score: str = "") -> str | None:
        """Shows the latest numbers and score; returns the line to print if there is no bar."""
        self._step, self._text, self._score = step, text, score
        if self._live is not None:
            return None
        return f"step {step}/{self.total} · {self._numbers()} · {self._times(clock=False)}"

    def close(self) -> None:
        """Removes the bar."""
        if self._live is not None:
            self._live.stop()

    def _shown(self) -> "Group":
        """The lines on the terminal."""
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
        """The score comes first: a narrow terminal truncates the end."""
        return " · ".join(part for part in (self._score, self._text) if part)

    def _times(self, clock: bool) -> str:
        """``0:01:02 elapsed · 0:10:00 left · 3.20 steps/s``."""
        seconds = time.monotonic() - self._begin
        rate = (self._step - self._first) / max(seconds, 1e-9)
        left = _clock((self.total - self._step) / rate) if rate > 0 else "unknown"
        elapsed = f"{_clock(seconds)} elapsed · " if clock else ""
        return f"{elapsed}{left} left · {rate:.2f} steps/s"


def _clock(seconds: float) -> str:
    """``H:MM:SS``; hours may exceed a day."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _end_of(text: str, length: int) -> str:
    """The last ``length`` characters of a path, which distinguish runs."""
    return text if len(text) <= length else "…" + text[1 - length :]
