"""`segkd list`: rows of the catalog as text, Markdown or JSON."""

import json

from segkd import catalog
from segkd.errors import ConfigError, did_you_mean
from segkd.evaluation.table import TextTable


def listing(what: str, kind: str | None, *, as_json: bool, markdown: bool) -> str:
    """What ``segkd list`` prints. Raises ConfigError on unknown words."""
    if what not in catalog.KINDS:
        raise ConfigError(f"cannot list '{what}'.{did_you_mean(what, catalog.KINDS)}")
    rows = catalog.rows(what)
    kinds = {row["kind"] for row in rows if "kind" in row}
    if kind is not None and kind not in kinds:
        raise ConfigError(f"no {what} of kind '{kind}'.{did_you_mean(kind, kinds)}")
    rows = [row for row in rows if kind in (None, row.get("kind"))]
    if not rows:
        return "[]" if as_json else f"no {what}"
    if as_json:
        return json.dumps(rows, indent=2, ensure_ascii=False)
    if markdown:
        return TextTable(list(rows[0]), [list(row.values()) for row in rows]).markdown().rstrip()
    return _text(rows) + _notes(what)


def _text(rows: list[dict[str, str]]) -> str:
    """Columns that are set left; files are for JSON, the note names their folder."""
    keys = [key for key in rows[0] if key != "file"]
    widths = [max(len(row[key]) for row in rows) for key in keys]
    lines = ["  ".join(row[k].ljust(w) for k, w in zip(keys, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _notes(what: str) -> str:
    from segkd.config.find import config_roots
    from segkd.config.source import show

    if what == "configs":
        return "\n\nfrom " + ", ".join(show(root) for root in config_roots())
    return ""
