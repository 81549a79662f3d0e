"""Where a run's numbers go: metrics.csv, TensorBoard, the terminal or a log file."""

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from segkd.engine.checkpoint import write_text


class CsvLog:
    """metrics.csv: one row per logged step; rows beyond a checkpoint are cut when resuming."""

    def __init__(self, path: Path, columns: Sequence[str], resume_step: int) -> None:
        self.path, self.columns = path, ["step", *columns]
        rows = [row for row in read_csv(path) if int(row["step"]) <= resume_step]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, buffer.getvalue())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step} | {key: f"{value:.6g}" for key, value in values.items()}
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", extrasaction="ignore").writerow(row)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none if it is missing. A torn last line is left out."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]


class Logger:
    """Writes a run's numbers and sentences; does nothing on all processes but the first."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        *,
        resume_step: int,
        tensorboard: bool,
        enabled: bool,
    ) -> None:
        self.enabled, self.folder, self._board = enabled, folder, None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._csv = CsvLog(folder / "metrics.csv", columns, resume_step)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not self.enabled:
            return
        self._csv.write(step, values)
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def say(self, text: str) -> None:
        """One sentence to the terminal and to log.txt."""
        if not self.enabled:
            return
        display_print(text)
        with open(self.folder / "log.txt", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        if self.enabled and self._board is not None:
            self._board.close()


def display_print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


class Progress:
    """A bar with rate, ETA and the latest numbers on a terminal; plain lines in a file."""

    def __init__(self, total: int, done: int, *, enabled: bool, title: str) -> None:
        self.total, self._first, self._begin = total, done, time.monotonic()
        self._bar = self._task = None
        self.enabled = enabled
        if enabled and sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[facts]}"),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, facts="")
            self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def facts(self, step: int, text: str) -> str | None:
        """Shows the latest numbers; returns the line to print where there is no bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=text)
            return None
        rate = (step - self._first) / max(time.monotonic() - self._begin, 1e-9)
        eta = time.strftime("%H:%M:%S", time.gmtime((self.total - step) / max(rate, 1e-9)))
        return f"step {step}/{self.total} · {text} · {rate:.2f} steps/s · {eta} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
