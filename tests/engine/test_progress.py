"""What a run shows of itself while it trains, on a terminal and in a file."""

import io
import re

import pytest
from rich.console import Console

from segkd.commands import display
from segkd.engine import logging
from segkd.engine.logging import Progress


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
