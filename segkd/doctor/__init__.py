"""Checks the machine, and a config if one is given, and reports what would fail."""

from collections.abc import Callable, Iterator, Sequence

from segkd.doctor.environment import examine_environment
from segkd.doctor.finding import Finding, reported

Announce = Callable[[str], None]  # called with what is checked next


def examine(
    config: str | None = None,
    overrides: Sequence[str] = (),
    *,
    quick: bool = False,
    announce: Announce = lambda what: None,
) -> Iterator[Finding]:
    """Yields findings as they are made: of the machine, then of each run of the config.

    Nothing is written or downloaded.

    Args:
        config: path or name of a run or recipe; None, without ``overrides``: only the machine.
        overrides: ``key=value`` texts.
        quick: skip the trial training step, so that memory is not checked.
        announce: called with what is checked next.
    """
    announce("packages")
    usable = True
    for finding in examine_environment():
        usable = usable and not (finding.about == "torch" and finding.level == "error")
        yield finding
    if config is None and not overrides:
        return
    if not usable:
        yield Finding("error", "config", "was not checked, since torch cannot be imported")
        return
    from segkd.doctor.runs import PlannedCheck, examine_run, planned_runs

    found: list[Finding] = []
    runs: dict[str, PlannedCheck] = {}
    with reported("config", found):
        runs = planned_runs(config, overrides)
    yield from found
    for name, run in runs.items():
        yield from examine_run(name, run, quick=quick, announce=announce)
