"""Finds methods, models and datasets by name: in segkd's own folders and in entry points.

A registered class has a class attribute ``name``. Own classes are found by reading their files, and
a module is imported when its class is asked for: listing names must not take seconds.
"""

import importlib
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from segkd.errors import ConfigError, did_you_mean
from segkd.outline import Outline, assigned_list, subclasses

if TYPE_CHECKING:
    from segkd.data.base import Dataset
    from segkd.losses.base import TaskLoss
    from segkd.methods.base import Method
    from segkd.models.network import Network


T = TypeVar("T")
EntryT = TypeVar("EntryT", bound=type)


def _name_of(entry: Any) -> str:
    """The class attribute that all entries have."""
    name: str = entry.name
    return name


class Registry(Generic[T]):
    """Classes of one kind, by name.

    Args:
        kind: singular word for messages, e.g. ``"method"``.
        packages: dotted paths of the packages whose modules are searched, without subpackages.
        base: ``"module:Class"`` of the class that all entries derive from.

    Third parties join through the entry-point group ``segkd.<kind>s``.
    """

    def __init__(self, kind: str, packages: Sequence[str], base: str) -> None:
        self.kind, self.packages, self._base = kind, tuple(packages), base
        self._found: dict[str, type[T] | Outline] | None = None

    def get(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            ConfigError: there is no such class; suggests a name. Or a plug-in is broken.
        """
        known = self._entries()
        if name not in known:
            raise ConfigError(f"unknown {self.kind} '{name}'.{did_you_mean(name, known)}")
        entry = known[name]
        if isinstance(entry, Outline):
            entry = known[name] = self._imported(entry)
        return entry

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries())

    def __contains__(self, name: str) -> bool:
        return name in self._entries()

    def __iter__(self) -> Iterator[type[T]]:
        return map(self.get, self.names())

    def facts(self, *attributes: str) -> Iterator[dict[str, Any]]:
        """Each class's ``name``, ``about`` (first line of its docstring) and ``attributes``.

        A class is imported only if neither its file nor those of its bases contain the attributes
        as literals.
        """
        for name in self.names():
            entry = self._entries()[name]
            if isinstance(entry, Outline) and entry.inherited.keys() >= set(attributes):
                values, about = dict(entry.inherited), entry.about
            else:
                entry = self.get(name)
                values = {attribute: getattr(entry, attribute) for attribute in attributes}
                about = (entry.__doc__ or "").strip().partition("\n")[0]
            yield {"name": name, "about": about, **{key: values[key] for key in attributes}}

    def add(self, entry: EntryT) -> EntryT:
        """Registers a class; usable as a decorator.

        Raises:
            ConfigError: it does not derive from the base of this kind, or has no ``name``.
        """
        self._entries()[_name_of(entry)] = self._checked(entry, entry.__module__)
        return entry

    def _entries(self) -> dict[str, type[T] | Outline]:
        if self._found is None:
            self._found = {}  # modules of plug-ins may add entries while they are imported
            try:
                self._found.update(self._own())
                self._found.update((_name_of(entry), entry) for entry in self._plug_ins())
            except BaseException:
                self._found = None  # a part of the entries must not pass for all
                raise
        return self._found

    def _plug_ins(self) -> Iterator[type[T]]:
        """Classes of entry points. Raises ConfigError naming a broken package."""
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
            yield self._checked(entry, f"{point.value} of package {package}")

    def _own(self) -> Iterator[tuple[str, type[T] | Outline]]:
        for outline in subclasses(self._base.split(":")[1], self.packages):
            name = outline.literals.get("name")
            if outline.module.rpartition(".")[0] not in self.packages:
                continue
            if isinstance(name, str):
                yield name, outline
            elif "name" in outline.assigned:  # an expression
                entry = self._imported(outline)
                yield _name_of(entry), entry

    def _imported(self, outline: Outline) -> type[T]:
        entry = getattr(importlib.import_module(outline.module), outline.name)
        return self._checked(entry, f"{outline.module}:{outline.name}")

    def _base_class(self) -> type[T]:
        module, name = self._base.split(":")
        base: type[T] = getattr(importlib.import_module(module), name)
        return base

    def _checked(self, entry: object, where: str) -> type[T]:
        base = self._base_class()
        if isinstance(entry, type) and issubclass(entry, base) and hasattr(entry, "name"):
            return entry
        raise ConfigError(
            f"'{where}' is not a {self.kind}: derive a class from {base.__module__}."
            f"{base.__name__} and give it a class attribute `name`"
        )


methods: "Registry[Method]" = Registry("method", ["segkd.methods"], "segkd.methods.base:Method")
models: "Registry[Network]" = Registry("model", ["segkd.models"], "segkd.models.network:Network")
datasets: "Registry[Dataset]" = Registry(
    "dataset", ["segkd.data", "segkd.synthetic"], "segkd.data.base:Dataset"
)
losses: "Registry[TaskLoss]" = Registry("loss", ["segkd.losses"], "segkd.losses.base:TaskLoss")


def smp_architectures() -> list[str]:
    """Names of the architectures of segmentation-models-pytorch, sorted."""
    classes = assigned_list("segmentation_models_pytorch", "_MODEL_ARCHITECTURES")
    if classes is not None:  # importing smp takes seconds
        return sorted(name.lower() for name in classes)
    import segmentation_models_pytorch as smp

    return sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def architectures() -> list[str]:
    """Names of all architectures, sorted: segkd's, those of entry points, and smp's."""
    return sorted({*models.names(), *smp_architectures()})
