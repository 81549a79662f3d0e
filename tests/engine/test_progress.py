"""What a run shows of itself while it trains, on a terminal and in a file."""

import contextlib
import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from segkd.commands import display
from segkd.engine import logging
from segkd.engine import run as run_module
from segkd.engine.logging import Progress, read_csv
from segkd.engine.run import Run
from segkd.errors import DataError, Interrupted


@pytest.fixture
def bar(monkeypatch):
    """A run at step 50 of 200 after 10 seconds, 40 steps of them its own."""
    times = iter([100.0, *[110.0] * 9])
    monkeypatch.setattr(logging.time, "monotonic", lambda: next(times))
    return Progress(200, 10, enabled=False, title="runs/camvid/a_rather_long_name/cwd/seed0")


def test_a_line_in_a_file_has_labelled_times_speed_rate_and_score(bar):
    line = bar.facts(50, "lr 0.01 · ce/ce 1.2", "mIoU 43.21")
    assert line == ("step 50/200 · mIoU 43.21 · lr 0.01 · ce/ce 1.2 · 0:00:38 left · 4.00 steps/s")


def test_a_terminal_of_70_columns_has_room_for_all_but_many_losses(bar):
    terms = " · ".join(f"method{k}/term 0.12345" for k in range(9))
    bar.facts(50, f"lr 0.01 · {terms}", "mIoU 43.21")
    text = io.StringIO()
    Console(file=text, width=70, force_terminal=True, color_system=None).print(bar._shown())
    first, second, third = text.getvalue().rstrip("\n").split("\n")
    assert first.startswith("…") and "cwd/seed0 " in first and first.endswith("step 50/200")
    assert second.strip() == "0:00:10 elapsed · 0:00:38 left · 4.00 steps/s"
    assert third.startswith("mIoU 43.21 · lr 0.01 · method0/term") and third.endswith("…")
    assert max(len(line) for line in (first, second, third)) <= 70


def test_more_than_a_day_is_told_in_hours():
    assert logging._clock(90061) == "25:01:01"


@pytest.mark.parametrize("total", [7, 500])
def test_piped_progress_is_one_line_per_split(capsys, total):
    with display.progress("eval run") as advance:
        for done in range(1, total + 1):
            advance(done, max(done, 0 if total == 7 else total))  # a video may not say its length
    assert capsys.readouterr().err == f"eval run: {total}/{total}\n"


def test_piped_progress_tells_how_far_it_came_before_an_error(capsys):
    with pytest.raises(ZeroDivisionError), display.progress("eval run") as advance:
        advance(3, 9)
        raise ZeroDivisionError
    assert re.fullmatch("eval run: 3/9\n", capsys.readouterr().err)


@pytest.mark.parametrize("end", ["2", "20,", "20,0.25,1.5e-0", "20,0.25,1.5"])
def test_a_row_that_was_not_written_to_its_end_is_skipped(tmp_path, end):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,task/ce,lr\n10,0.5,\n{end}", newline="\r\n")
    assert read_csv(path) == [{"step": "10", "task/ce": "0.5", "lr": ""}]


@pytest.mark.parametrize("row", ["20,0.25,x", "20,0.25,1,2"])
def test_a_row_without_numbers_is_a_damaged_table(tmp_path, row):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,task/ce,lr\n{row}\n")
    with pytest.raises(DataError, match=r"metrics\.csv is damaged: .*move it away"):
        read_csv(path)


def test_the_bar_is_removed_if_a_resumed_run_is_stopped_in_its_first_evaluation(monkeypatch):
    closed = []
    monkeypatch.setattr(run_module, "begin_caches", lambda *args: None)
    run = Run.__new__(Run)
    run.signals = SimpleNamespace(watched=contextlib.nullcontext)
    run.config, run.due = SimpleNamespace(steps=4), True
    run.trainer = SimpleNamespace(step=2, steps=lambda: (step for step in range(2)))
    run.log = SimpleNamespace(say=None, close=lambda: None)
    run._introduce = run._evaluate_teachers = lambda: None
    run._progress = lambda: SimpleNamespace(close=lambda: closed.append(True))

    def stopped():
        raise Interrupted("stopped", 2)

    run._evaluate_student = stopped
    with pytest.raises(Interrupted):
        run.complete()
    assert closed == [True]
