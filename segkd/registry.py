"""Finds methods, models and datasets by name: in segkd's own folders and in entry points.

A registered class has a class attribute ``name``. Nothing is imported before the first look-up.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points

from segkd.errors import ConfigError, did_you_mean


class Registry:
    """Classes of one kind, by name.

    Args:
        kind: singular word for messages, e.g. ``"method"``.
        packages: dotted paths of the packages whose modules are searched.
        base: ``"module:Class"`` of the class that all entries derive from.

    Third parties join through the entry-point group ``segkd.<kind>s``.
    """

    def __init__(self, kind: str, packages: Sequence[str], base: str) -> None:
        self.kind, self.packages, self._base = kind, tuple(packages), base
        self._found: dict[str, type] | None = None

    def get(self, name: str) -> type:
        """The class called ``name``. Raises ConfigError with a suggestion if there is none."""
        known = self._entries()
        if name not in known:
            raise ConfigError(f"unknown {self.kind} '{name}'.{did_you_mean(name, known)}")
        return known[name]

    def names(self) -> list[str]:
        return sorted(self._entries())

    def __contains__(self, name: str) -> bool:
        return name in self._entries()

    def __iter__(self) -> Iterator[type]:
        return iter(self._entries()[name] for name in self.names())

    def add(self, entry: type) -> type:
        """Registers a class of the caller's own; usable as a decorator."""
        self._check(entry, entry.__module__)
        self._entries()[entry.name] = entry
        return entry

    def _entries(self) -> dict[str, type]:
        if self._found is None:
            self._found = {}  # modules of plug-ins may add entries while they are imported
            try:
                for entry in (*self._own(), *self._plug_ins()):
                    self._found[entry.name] = entry
            except BaseException:
                self._found = None  # half of them would look like all the next time
                raise
        return self._found

    def _plug_ins(self) -> Iterator[type]:
        """Classes of entry points. Raises ConfigError that names a broken package."""
        for point in entry_points(group=f"segkd.{self.kind}s"):
            package = point.dist.name if point.dist else "?"
            try:
                entry = point.load()
            except (Exception, SystemExit) as error:  # whatever foreign code raises
                reason = (str(error).strip() or "no reason given").splitlines()[0]
                raise ConfigError(
                    f"the plug-in '{point.name}' ({self.kind}, {point.value}) of package "
                    f"'{package}' cannot be imported: {type(error).__name__}: {reason}. Repair "
                    f"it, or remove it: pip uninstall {package}"
                ) from error
            self._check(entry, f"{point.value} of package {package}")
            yield entry

    def _own(self) -> Iterator[type]:
        base = self._base_class()
        for module in map(importlib.import_module, self._modules()):
            for _, entry in inspect.getmembers(module, inspect.isclass):
                own = entry.__module__ == module.__name__ and issubclass(entry, base)
                if own and isinstance(entry.__dict__.get("name"), str):
                    yield entry

    def _modules(self) -> Iterator[str]:
        for name in self.packages:
            package = importlib.import_module(name)
            yield from (info.name for info in pkgutil.iter_modules(package.__path__, f"{name}."))

    def _base_class(self) -> type:
        module, name = self._base.split(":")
        return getattr(importlib.import_module(module), name)

    def _check(self, entry: type, where: str) -> None:
        base = self._base_class()
        if not (inspect.isclass(entry) and issubclass(entry, base)) or not hasattr(entry, "name"):
            raise ConfigError(
                f"'{where}' is no {self.kind}: derive a class from {base.__module__}."
                f"{base.__name__} and give it a class attribute `name`"
            )


methods = Registry("method", ["segkd.methods"], "segkd.methods.base:Method")
models = Registry("model", ["segkd.models"], "segkd.models.network:Network")
datasets = Registry("dataset", ["segkd.data", "segkd.synthetic"], "segkd.data.base:Dataset")
losses = Registry("loss", ["segkd.losses"], "segkd.losses.base:TaskLoss")


def smp_architectures() -> list[str]:
    """Names of the architectures of segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    return sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def architectures() -> list[str]:
    """Names of all architectures: our own, those of entry points, and smp's."""
    return sorted({*models.names(), *smp_architectures()})
