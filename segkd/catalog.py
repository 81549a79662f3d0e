"""Facts about methods, models, datasets and configs, as rows of a table."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkd import registry

if TYPE_CHECKING:
    from segkd.methods.base import Method

OWN = "yours"  # in the place of a paper, where a method names none
EXPENSIVE = 0.25  # of the reference student's forward and backward


def rows(what: str) -> list[dict[str, str]]:
    """One row per entry, all with the same keys.

    Args:
        what: one of ``KINDS``.

    Raises:
        ConfigError: a broken plug-in.
    """
    return _LISTS[what]()


def _methods() -> list[dict[str, str]]:
    rows = registry.methods.facts("kind", "paper")
    return [{"name": r["name"], "kind": r["kind"], "paper": r["paper"] or OWN} for r in rows]


def method_table() -> list[dict[str, str]]:
    """The rows of docs/methods.md, as text."""
    return [
        {
            "method": f"`{m.name}`",
            "paper": m.paper or OWN,
            "year": str(m.year or ""),
            "kind": m.kind,
            "needs": needs_text(m),
            **_cost_cells(method_costs().get(m.name)),
            "published gain": m.published or "none found",
        }
        for m in registry.methods
    ]


def needs_text(method: "type[Method]") -> str:
    """The taps and other needs of a method with its default keys."""
    needs = method().needs
    both = {"student": needs.student, "teacher": needs.teacher}
    if set(needs.student) == set(needs.teacher):
        both = {"both": needs.student}
    taps = [f"{side}: {', '.join(names)}" for side, names in both.items() if names]
    others = {"labels": needs.labels, "teacher's gradient": needs.teacher_gradient}
    return "; ".join([*taps, *(name for name, needed in others.items() if needed)])


@cache
def method_costs() -> dict[str, dict[str, float]]:
    """Costs by method, measured by ``benchmarks/methods.py --write``; only of segkd's methods."""
    return json.loads(Path(__file__).with_name("method_costs.json").read_text())


@cache
def method_pulls() -> dict[str, dict[str, float]]:
    """Gradient ratios by method and pair of networks, with a weight of 1.

    The norm of the method's gradient at its taps divided by that of the task loss, measured by
    ``benchmarks/weights.py --write``.
    """
    return json.loads(Path(__file__).with_name("method_pulls.json").read_text())


def _weights() -> list[dict[str, str]]:
    """Default weights, and their gradient ratios on each measured pair of networks."""
    pairs = list(dict.fromkeys(pair for found in method_pulls().values() for pair in found))
    rows = []
    for method in registry.methods:
        found = method_pulls().get(method.name)
        if found is None:
            continue
        default, paper = method(), method(method.Config(weight="paper"))
        cells = {pair: found[pair] * default.weight if pair in found else None for pair in pairs}
        rows.append(
            {
                "method": f"`{method.name}`",
                "weight": f"{default.weight:g}",
                "paper": f"{paper.weight:g}",
                **{pair: "–" if pull is None else f"{pull:.2f}" for pair, pull in cells.items()},
            }
        )
    return rows


def _cost_cells(cost: dict[str, float] | None) -> dict[str, str]:
    if cost is None:
        return {"train M": "?", "cost": "?", "peak MiB": "?"}
    mark = " **!**" if cost["ratio"] > EXPENSIVE else ""
    return {
        "train M": f"{cost['parameters'] / 1e6:.2f}",
        "cost": f"{cost['ratio']:.3f}{mark}",
        "peak MiB": f"{cost['peak_mib']:.0f}",
    }


def _models() -> list[dict[str, str]]:
    own = [
        {"name": row["name"], "kind": "segkd", "about": row["about"]}
        for row in registry.models.facts()
    ]
    about = "segmentation-models-pytorch, with any of its encoders"
    return own + [
        {"name": name, "kind": "smp", "about": about} for name in registry.smp_architectures()
    ]


def _datasets() -> list[dict[str, str]]:
    from segkd.data.base import Dataset, data_root

    found = []
    for entry in registry.datasets:
        on_disk = entry.files is not Dataset.files
        root = str(data_root(entry.name, entry.Config.model_construct(name=entry.name)))
        found.append(
            {"name": entry.name, "about": _first_line(entry), "root": root if on_disk else ""}
        )
    return found


def _configs() -> list[dict[str, str]]:
    from segkd.config.load import read_tree
    from segkd.config_files import known_configs
    from segkd.errors import ConfigError
    from segkd.yaml_tree import show

    found = []
    for name, path in known_configs().items():
        try:
            kind = "recipe" if "runs" in read_tree(path).value else "run"
        except ConfigError:
            kind = "broken"
        comment = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        about = comment.lstrip("# ") if comment.startswith("#") else ""
        found.append({"name": name, "kind": kind, "about": about, "file": show(path)})
    return found


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "models": _models,
    "datasets": _datasets,
    "configs": _configs,
    "weights": _weights,
}
KINDS = tuple(_LISTS)


def _first_line(entry: type) -> str:
    return (entry.__doc__ or "").strip().partition("\n")[0]
