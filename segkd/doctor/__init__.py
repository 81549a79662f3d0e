"""Looks at the machine, and at a config if one is given, and says what would go wrong."""

from collections.abc import Callable, Iterator, Sequence

from segkd.doctor.environment import examine_environment
from segkd.doctor.finding import Finding, reported

Announce = Callable[[str], None]  # called with what is looked at next


def examine(
    config: str | None = None,
    overrides: Sequence[str] = (),
    *,
    quick: bool = False,
    announce: Announce = lambda what: None,
) -> Iterator[Finding]:
    """Yields findings as they come: of the machine, then of each run of the config.

    Nothing is written, least of all into run folders. Nothing is downloaded.

    Args:
        config: path or name of a run or recipe; None, without ``overrides``: the machine alone.
        overrides: ``key=value`` texts.
        quick: do not try a training step, so that memory is not known.
        announce: for progress.
    """
    announce("packages")
    usable = True
    for finding in examine_environment():
        usable = usable and not (finding.about == "torch" and finding.level == "error")
        yield finding
    if config is None and not overrides:
        return
    if not usable:
        yield Finding("error", "config", "was not looked at, as torch cannot be imported")
        return
    from segkd.doctor.runs import examine_run, planned_runs

    found: list[Finding] = []
    runs = {}
    with reported("config", found):
        runs = planned_runs(config, overrides)
    yield from found
    for name, run in runs.items():
        yield from examine_run(name, run, quick=quick, announce=announce)
