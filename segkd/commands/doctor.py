"""`segkd doctor`: prints findings, as lines or as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from segkd.doctor import examine
from segkd.doctor.finding import Finding
from segkd.texts import json_text

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
_INDENT = 9  # of the level


def doctor(config: str | None, overrides: Sequence[str], *, quick: bool, as_json: bool) -> bool:
    """Prints the findings about the machine and a config, and a verdict.

    Args:
        config, overrides, quick: see ``segkd.doctor.examine``.
        as_json: print JSON.

    Returns:
        Whether a run would start.
    """
    status = Console(stderr=True).status("")
    if status.console.is_terminal:
        status.start()
    found: list[Finding] = []
    try:
        for finding in examine(config, overrides, quick=quick, announce=status.update):
            found.append(finding)
            if not as_json:
                _show(finding)
    finally:
        status.stop()
    errors, warnings = (sum(f.level == level for f in found) for level in ("error", "warning"))
    if as_json:
        facts = {"ok": errors == 0, "findings": [asdict(finding) for finding in found]}
        print(json_text(facts, indent=2))
    else:
        _console().print(_verdict(config is not None or bool(overrides), errors, warnings))
    return errors == 0


def _show(finding: Finding) -> None:
    line = Text(finding.level.ljust(_INDENT), style=_STYLES[finding.level])
    line.append(finding.about, style="bold")
    line.append(": " + finding.text.replace("\n", "\n" + " " * _INDENT), style="not bold default")
    console = _console()
    console.print(line)
    if finding.repair:
        console.print(Text(" " * _INDENT + "→ " + finding.repair))


def _verdict(of_a_run: bool, errors: int, warnings: int) -> Text:
    counts = ", ".join(_counted(errors, warnings))
    if errors:
        said = "a run would not start" if of_a_run else "fix this before a run"
        return Text(f"{counts}: {said}", style=_STYLES["error"])
    said = "a run would start" if of_a_run else "the machine is ready"
    return Text(f"{counts}: {said}" if counts else said, style=_STYLES["ok"])


def _counted(errors: int, warnings: int) -> Iterator[str]:
    for number, word in ((errors, "error"), (warnings, "warning")):
        if number:
            yield f"{number} {word}{'s' if number > 1 else ''}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
