"""What there is: methods, models, datasets and configs, as rows of facts."""

from collections.abc import Callable
from typing import Any

from segkd import registry


def rows(what: str) -> list[dict[str, str]]:
    """One row of facts per entry, all with the same keys; ``what`` is one of ``KINDS``."""
    return _LISTS[what]()


def _methods() -> list[dict[str, str]]:
    return [{"name": m.name, "kind": m.kind, "paper": m.paper} for m in registry.methods]


def _models() -> list[dict[str, str]]:
    from segkd.models.smp import architectures

    own = [{"name": m.name, "kind": "segkd", "about": _first_line(m)} for m in registry.models]
    about = "segmentation-models-pytorch, with any of its encoders"
    return own + [{"name": name, "kind": "smp", "about": about} for name in architectures()]


def _datasets() -> list[dict[str, str]]:
    from segkd.data.base import Dataset, data_root

    found = []
    for entry in registry.datasets:
        on_disk = entry.files is not Dataset.files
        root = str(data_root(entry.name, entry.Config.model_construct(root=None)))
        found.append(
            {"name": entry.name, "about": _first_line(entry), "root": root if on_disk else ""}
        )
    return found


def _configs() -> list[dict[str, str]]:
    from segkd.config.find import known_configs
    from segkd.config.load import read_tree
    from segkd.config.source import show
    from segkd.errors import ConfigError

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
}
KINDS = tuple(_LISTS)


def _first_line(entry: type) -> str:
    return (entry.__doc__ or "").strip().partition("\n")[0]
