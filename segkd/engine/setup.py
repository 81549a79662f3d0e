"""Builds the components of a run from its configuration: datasets, networks, methods."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from segkd import registry
from segkd.config.schema import EvaluationConfig, RunConfig, RuntimeConfig
from segkd.data.base import Dataset, UnlabeledConfig
from segkd.data.survey import differing_sizes, survey
from segkd.data.unlabeled import WithoutLabels, joined, labels_as_told, open_unlabelled
from segkd.engine.about_networks import about_classes, about_ensembles, about_unknown
from segkd.engine.binding import bind_methods, require_classes
from segkd.engine.derivatives import check_derivatives, differentiating
from segkd.engine.init_from import initialize_from
from segkd.engine.new_model import NewModel
from segkd.engine.objective import Objective, acts_after_step
from segkd.engine.placement import uncompiled, with_shared_statistics
from segkd.engine.quantizer import Quantizer
from segkd.engine.row_networks import map_stride, require_maps
from segkd.engine.step_record import teacher_of
from segkd.engine.stored_predictions import check_stores
from segkd.engine.task_losses import TaskLosses
from segkd.engine.teacher_cache import open_caches
from segkd.errors import ConfigError, DataError, did_you_mean
from segkd.evaluation.evaluator import check_options
from segkd.methods.base import BuildContext, Method
from segkd.models.ensemble import Draw
from segkd.models.foreign import Match
from segkd.models.frozen import BlackBox, TappedNetwork, tapped
from segkd.models.given import student_for
from segkd.models.network import Network
from segkd.models.quantized import without_input_grids
from segkd.models.query_error import naming_images
from segkd.models.teacher import Teachers, build_teachers, open_networks
from segkd.modules.module_map import require_names
from segkd.ops.mode import eval_mode
from segkd.runtime import Runtime, preserved_rng
from segkd.structures import Batch, Outputs


@dataclass
class Components:
    """Datasets, networks and losses of a run.

    Attributes:
        train_set: training images, labelled and unlabelled.
        val_set: evaluation images.
        student: the network that is trained.
        teachers: frozen.
        objective: task losses and methods.
        taps: tapped values of the student.
        chosen_taps: by entry of ``methods:``, text about taps that differ from the defaults.
        warnings: about the data and the classes, for the log.
        notes: lines about the teachers, for the log; may begin with ``WARNING``.
        quantizer: of a student with ``quantize:``.
    """

    train_set: Dataset
    val_set: Dataset
    student: Network
    teachers: Teachers
    objective: Objective
    taps: tuple[str, ...]
    chosen_taps: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantizer: Quantizer | None = None

    def networks(self) -> dict[str, Network]:
        """``student`` and ``teacher NAME``; black boxes and ensembles are not included."""
        members = self.teachers.members.items()
        frozen = {f"teacher {name}": getattr(part, "network", None) for name, part in members}
        found = {"student": self.student, **frozen}
        return {name: part for name, part in found.items() if isinstance(part, Network)}

    def taught(
        self, batch: Batch, draw: Draw, step: int | None = None, inner: Collection[str] = ()
    ) -> dict[str, Outputs]:
        """Outputs of the teachers for a batch; errors of black boxes name its images.

        Args:
            batch: its images.
            draw: see ``Teachers``.
            step: without the teachers that no entry needs at this step, e.g. before its `start`:
                a query costs; None: of all teachers.
            inner: entries that train inner parameters.
        """
        needed = None if step is None else self._needed(step, inner)
        with naming_images(self.train_set, batch.index):
            return self.teachers(batch.images, batch, draw, needed)

    def _needed(self, step: int, inner: Collection[str]) -> set[str]:
        """Names of the teachers that entries need at a step, for a loss or what follows it."""
        needed: set[str] = set()
        active = self.objective.active(step)
        for name, method in self.objective.methods.items():
            learns = name in inner and self.objective.inner_active(name, step)
            if method.needs.teacher and (name in active or learns or acts_after_step(method)):
                needed.update([teacher_of(method, self.teachers.names), *method.further_teachers])
        return needed

    def matches(self) -> dict[str, Match]:
        """By network, how weights of another program were matched to its names."""
        return {name: part.match for name, part in self.networks().items() if part.match}


def assemble(
    config: RunConfig,
    runtime: Runtime,
    *,
    student: Network | None = None,
    teachers: Mapping[str, Network | BlackBox] | None = None,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    unlabeled_set: Dataset | None = None,
) -> Components:
    """Builds the components of a run.

    Args:
        config: the run.
        runtime: processes and device.
        student, teachers, train_set, val_set, unlabeled_set: objects of the caller, instead of
            configured ones.

    Raises:
        SegKDError: data, networks and methods do not fit together; says what to change.
    """
    val_set = val_set or open_dataset(config, config.data.val_split)
    train_set = open_training_set(config, val_set, train_set, unlabeled_set)
    check_options(val_set, config.eval)
    warnings = examine_data(config, train_set, val_set)
    num_classes = len(train_set.classes)
    built = student is None
    student = student_for(config.student, student, train_set)
    if without_input_grids(student):
        warnings.append("the student's inputs of layers were quantised: here they begin as floats")
    if config.runtime.sync_bn:
        student = with_shared_statistics(student, runtime)
    teacher_names = _teacher_names(config, teachers)
    methods = make_methods(config, num_classes, teacher_names)
    stride, given = map_stride(config, student), teachers or {}
    networks = open_networks(config.teachers, given, num_classes, train_set.classes, stride)
    chosen_taps = bind_methods(methods, student, networks, teacher_names)
    require_maps(config, methods, student, networks, train_set)
    student.twice_differentiable = bool(differentiating(methods))
    student_taps = {name: method.needs.student for name, method in methods.items()}
    frozen = _teachers(config, runtime, methods, networks, teacher_names, train_set)
    notes = check_stores(frozen.stores(), train_set, config, methods)
    require_classes(methods, frozen, train_set)
    warnings += open_caches(config, frozen, methods, train_set)
    for name, method in methods.items():
        new_model = NewModel(
            f"methods.{name}", config, runtime, train_set.classes, student, built, warnings
        )
        method.build(_build_context(name, method, student, frozen, train_set, new_model))
    taps = tuple(sorted({tap for taps in student_taps.values() for tap in taps}))
    objective = _objective(config, runtime, methods, student, taps)
    found = (objective, taps, chosen_taps, warnings, notes)
    parts = Components(train_set, val_set, student, frozen, *found)
    warnings += _about(config, parts)
    if config.init_from:
        where, classes = config.init_from, train_set.classes
        warnings += initialize_from(where, student, objective.methods, classes)
    if config.quantize:
        parts.quantizer = Quantizer(student, config.quantize)
    return parts


def _about(config: RunConfig, parts: Components) -> list[str]:
    """Warnings about classes, and about what ensembles and teachers of other classes know."""
    classes = about_classes(config, parts.networks(), parts.train_set.classes)
    ensembles = about_ensembles(config, parts.teachers.used, parts.train_set)
    return [*classes, *ensembles, *about_unknown(config, parts.teachers.members, parts.train_set)]


def _teacher_names(config: RunConfig, teachers: Mapping[str, object] | None) -> list[str]:
    """Those of the caller or else the configured ones, and all ensembles."""
    require_names("teachers", [*(teachers or ()), *config.teachers])
    ensembles = [name for name, teacher in config.teachers.items() if teacher.ensemble]
    return list(dict.fromkeys([*(teachers or config.teachers), *ensembles]))


def _objective(
    config: RunConfig,
    runtime: Runtime,
    methods: dict[str, Method],
    student: Network,
    taps: tuple[str, ...],
) -> Objective:
    lanes, rows = student.exist_head is not None, bool(student.rows)
    return Objective(
        TaskLosses(config.task, student.num_classes, student.aux_weight, lanes, rows),
        config.task.weight,
        methods,
        seed=config.seed,
        total_steps=config.steps,
        runtime=runtime,
        student_forward=partial(forward_in_eval, student, taps, runtime, config.runtime),
    )


def open_dataset(config: RunConfig | EvaluationConfig, split: str) -> Dataset:
    """A split of the configured dataset. Raises SegKDError if it is missing or damaged."""
    return registry.datasets.get(config.data.name)(config.data, split)


def open_training_set(
    config: RunConfig,
    val_set: Dataset,
    train_set: Dataset | None = None,
    unlabeled_set: Dataset | None = None,
) -> Dataset:
    """The training split according to ``data.labels``, joined with the unlabelled images.

    Args:
        config: the run.
        val_set: gives the classes if all training images are unlabelled.
        train_set, unlabeled_set: objects of the caller, instead of configured ones.

    Raises:
        SegKDError: images are missing, or the batch is too small for both kinds of images.
    """
    data = config.data
    share = 0.0
    if data.unlabeled is not None or unlabeled_set is not None:
        share = (data.unlabeled or UnlabeledConfig()).share
    if share == 1:
        return _unlabelled(config, unlabeled_set, train_set or val_set)
    labelled = labels_as_told(train_set or open_dataset(config, data.train_split), data)
    if share == 0:
        return labelled
    other = _unlabelled(config, unlabeled_set, labelled)
    return joined(labelled, other, share, data.batch_size, config.optim.accumulate)


def _unlabelled(config: RunConfig, given: Dataset | None, like: Dataset) -> Dataset:
    """The unlabelled images, with the classes of ``like``."""
    if given is None:
        return open_unlabelled(config.data, like)
    return WithoutLabels(given, like)


def examine_data(config: RunConfig, train_set: Dataset, val_set: Dataset) -> list[str]:
    """Warnings from a quick check of some images and labels.

    Raises:
        DataError: errors that rule out training, see ``segkd.data.survey``.
    """
    with preserved_rng():
        found = survey(train_set) if config.task.weight > 0 else []
        found += differing_sizes(val_set, config.eval.batch_size, config.eval.limit)
    texts = {one: f"{one.file}: {one.text}. {one.repair}" for one in found}
    errors = [text for one, text in texts.items() if one.level == "error"]
    if errors:
        raise DataError("\n".join(errors))
    return list(texts.values())


def make_methods(
    config: RunConfig, num_classes: int, teacher_names: list[str]
) -> dict[str, Method]:
    """The entries of ``methods:``, checked against data and teachers, not yet built.

    Raises:
        ConfigError: an entry that cannot be used; says what to change.
    """
    methods: dict[str, Method] = {}
    require_names("methods", config.methods, ("task",))
    for name, entry in config.methods.items():
        method = registry.methods.get(entry.method or name)(entry)
        _check(name, method, num_classes, teacher_names)
        methods[name] = method
    check_derivatives(config, differentiating(methods))
    rewriting = [name for name, method in methods.items() if method.needs.rewrites_batch]
    if len(rewriting) > 1:
        raise ConfigError(
            f"methods {', '.join(rewriting)} all rewrite the batch before the forward pass, which "
            "only one can do. Remove all but one of them"
        )
    return methods


@torch.no_grad()
def forward_in_eval(
    student: Network,
    taps: tuple[str, ...],
    runtime: Runtime,
    config: RuntimeConfig,
    images: Tensor,
) -> Outputs:
    """Outputs for images (B, 3, H, W) uint8 in eval mode, without gradient."""
    # Each process has its own statistics until a checkpoint is saved: no output depends on when.
    runtime.broadcast(student.buffers())
    with eval_mode(student), runtime.autocast(), uncompiled(config):
        return student(images, taps=taps)


def _check(name: str, method: Method, num_classes: int, teacher_names: list[str]) -> None:
    needs, chosen = method.needs, method.config.teacher
    if num_classes < needs.min_classes:
        raise ConfigError(
            f"methods.{name}: needs at least {needs.min_classes} classes, the data has "
            f"{num_classes}. Remove this entry"
        )
    if not needs.teacher:
        return
    if not teacher_names:
        raise ConfigError(f"methods.{name}: needs a teacher, but `teachers:` is empty. Add one")
    if chosen and chosen not in teacher_names:
        raise ConfigError(
            f"methods.{name}.teacher: there is no teacher '{chosen}'."
            f"{did_you_mean(chosen, teacher_names)}"
        )
    if not chosen and len(teacher_names) > 1:
        raise ConfigError(
            f"methods.{name}: there are {len(teacher_names)} teachers. Name one: "
            f"methods.{name}.teacher={teacher_names[0]}"
        )


def _teachers(
    config: RunConfig,
    runtime: Runtime,
    methods: Mapping[str, Method],
    networks: Mapping[str, Network | BlackBox],
    names: Collection[str],
    data: Dataset,
) -> Teachers:
    """The frozen teachers; they return the values that methods tap."""
    named = [(teacher_of(method, names), method.needs) for method in methods.values()]
    taps: dict[str, set[str]] = {}
    for name, needs in named:
        taps.setdefault(name, set()).update(needs.teacher)
    for method in methods.values():
        for name, further in method.further_teachers.items():
            taps.setdefault(name, set()).update(further)
    return build_teachers(
        config.teachers,
        taps,
        len(data.classes),
        networks=networks,
        half=runtime.half,
        device=runtime.device,
        gradient={name for name, needs in named if needs.teacher_gradient},
        classes=data.classes,
        dataset=getattr(data, "name", ""),
    )


def _build_context(
    name: str,
    method: Method,
    student: Network,
    teachers: Teachers,
    data: Dataset,
    new_model: NewModel,
) -> BuildContext:
    """The argument of ``Method.build``. Raises ConfigError naming the entry for unknown taps."""
    needs = method.needs
    try:
        mine, theirs = tapped(student, needs.student), TappedNetwork({})
        if needs.teacher:
            theirs = teachers.tapped(teacher_of(method, teachers.names), needs)
        further = {
            other: teachers.tapped(other, replace(needs, teacher=taps)).info
            for other, taps in method.further_teachers.items()
        }
    except ConfigError as error:
        raise ConfigError(f"methods.{name}: {error}") from error
    return BuildContext(
        student=mine.info,
        teacher=theirs.info,
        num_classes=len(data.classes),
        norm_before=theirs.norm_before,
        new_model=new_model,
        further=further,
    )
