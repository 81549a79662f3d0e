"""`segkd report`: writes a report of runs as HTML and Markdown."""

from collections.abc import Sequence
from pathlib import Path

from segkd.commands.display import fail, progress, say
from segkd.errors import ConfigError
from segkd.inference.stopping import stopped_with
from segkd.report.make import make_report


def report(
    arguments: Sequence[str],
    *,
    out: Path | None,
    baseline: str | None,
    limit: int | None,
    latency: bool,
) -> None:
    """Writes a report and prints its path; missing parts are warnings.

    Args:
        arguments: folders of runs, and overrides ``key=value``.
        out, baseline, limit, latency: see ``make_report``.

    Raises:
        SegKDError: no folder, or see ``make_report``.
        Interrupted: by a signal.
    """
    # A folder may have a value in its name, as lr=0.1.
    overrides = [one for one in arguments if "=" in one and not Path(one).is_dir()]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if not paths:
        raise ConfigError("give at least one folder of a run: segkd report runs/quickstart")
    with stopped_with(lambda: "the report is not finished. The same command begins anew"):
        written = make_report(
            paths,
            out=out,
            baseline=baseline,
            overrides=overrides,
            limit=limit,
            latency=latency,
            bar=progress,
        )
    for note in written.notes:
        fail(note, label="warning")
    say(f"Report: {written.html} and {written.markdown}")
