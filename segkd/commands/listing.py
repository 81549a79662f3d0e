"""`segkd list`: rows of the catalog as text, Markdown or JSON."""

import json

from segkd import catalog
from segkd.errors import ConfigError, did_you_mean
from segkd.evaluation.table import TextTable

_METHODS_HEAD = """\
# Methods

Made by `segkd list methods --markdown`; a test keeps this page current. `segkd explain METHOD` has
equation, keys, defaults, and the factors that convert published weights.
"""
_METHODS_NOTES = """\
- **needs**: taps with default keys (they can be changed), and whatever else a method asks for.
  Stages count from the deepest that both networks have: `stage5` is the deepest of each, whatever
  its name.
- **train M**: million parameters that the method trains beside the student (adapters, heads,
  critics) with 512 channels at every tap. They are gone at export.
- **cost**: seconds of forward and backward of the loss, of a critic's own step and of a bank's
  update, with 2 x 512 channels x 64x128 positions at every tap and 19 classes, over those of
  DeepLabV3 ResNet-18 on 2x256x512 pixels. **!** marks more than a quarter. With fewer channels,
  strides of 16 or pooling most cost far less. Measured by `python benchmarks/methods.py --write`
  on one CPU thread.
- **peak MiB**: memory of that step beyond its inputs.
- **published gain**: in segmentation (or lanes), as reported there; protocols differ.\
"""


_WEIGHTS_HEAD = """\
# Default weights

Made by `segkd list weights --markdown`; a test keeps this page current.

How hard each method pulls beside the labels with its default weight: the norm of its gradient at
the student's taps over that of the task loss, on three pairs of networks. Defaults are chosen so
that this lies between 0.1 and 1: strong enough to teach, never louder than the labels. `fsp`,
whose products of features differ most between networks, has 0.05 on one pair. `review_kd` on
DeepLabV3 was measured with an earlier start of its layers. Feature losses are measured in units of
the teacher's features (`scale: teacher`), so that a weight means the same for any network.
"""
_WEIGHTS_NOTES = """\
- **weight**: the default. **paper**: what `weight: paper` stands for, the published weight in our
  units (then `scale` is `none`, as in public code); `segkd explain METHOD` lists others.
- **pairs**: teacher → student, on drawn streets: a student that has learned from labels for some
  hundred steps, while the method's own layers learned beside it without teaching it. Measured by
  `python benchmarks/weights.py --write`.
- `weight: {auto: 0.3}` finds the weight at which a method pulls 0.3 times as hard as the labels,
  during the run. `segkd profile CONFIG` and `segkd doctor CONFIG` print the pull of each entry.\
"""


def listing(what: str, kind: str | None, *, as_json: bool, markdown: bool) -> str:
    """The output of ``segkd list``.

    Args:
        what: methods, models, datasets, configs, or weights.
        kind: only entries of this kind.
        as_json: JSON instead of text.
        markdown: a Markdown table instead of text.

    Raises:
        ConfigError: an unknown word or kind.
    """
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
    if markdown and what == "methods" and kind is None:
        return methods_page()
    if markdown and what == "weights":
        return f"{_WEIGHTS_HEAD}\n{_markdown(rows)}\n\n{_WEIGHTS_NOTES}"
    if markdown:
        return _markdown(rows)
    return _text(rows) + _notes(what)


def methods_page() -> str:
    """The contents of docs/methods.md: the table of methods, and how it was measured."""
    return f"{_METHODS_HEAD}\n{_markdown(catalog.method_table())}\n\n{_METHODS_NOTES}"


def _markdown(rows: list[dict[str, str]]) -> str:
    cells = [list(row.values()) for row in rows]
    return TextTable(list(rows[0]), cells, words=True).markdown().rstrip()


def _text(rows: list[dict[str, str]]) -> str:
    """Left-aligned columns, without ``file``: that is for JSON."""
    keys = [key for key in rows[0] if key != "file"]
    widths = [max(len(row[key]) for row in rows) for key in keys]
    lines = ["  ".join(row[k].ljust(w) for k, w in zip(keys, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _notes(what: str) -> str:
    from segkd.config_files import config_roots
    from segkd.yaml_tree import show

    if what == "configs":
        return "\n\nfrom " + ", ".join(show(root) for root in config_roots())
    return ""
