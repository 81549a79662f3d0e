"""`segkd report`: what runs have shown, as one HTML page and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from segkd.commands.display import fail, progress, say
from segkd.errors import ConfigError
from segkd.report.make import make_report


def report(
    arguments: Sequence[str],
    *,
    out: Path | None,
    baseline: str | None,
    limit: int | None,
    latency: bool,
) -> None:
    """Writes the report and says where it is; what is missing in it is a warning."""
    paths = [Path(argument) for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not paths:
        raise ConfigError("give at least one folder of a run: segkd report runs/quickstart")
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
