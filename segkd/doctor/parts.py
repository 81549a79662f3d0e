"""Checks of networks and methods of a run: weights, taps, image sizes."""

from collections.abc import Sequence

from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig
from segkd.data.base import Dataset
from segkd.doctor.finding import Finding, Level, reported
from segkd.engine.about_networks import about_unknown
from segkd.engine.about_teachers import about_teachers
from segkd.engine.setup import Components, assemble
from segkd.engine.teacher_cache import obstacles
from segkd.metrics.cost import parameters
from segkd.models.black_box import QueriedBox
from segkd.models.build import build_network
from segkd.models.class_map import source_classes
from segkd.models.class_names import no_names
from segkd.models.encoder_weights import are_here
from segkd.models.frozen import BlackBox, Teacher
from segkd.models.library import open_library
from segkd.models.network import Network
from segkd.models.normalization import normalization
from segkd.models.packaged_weights import how_to_install
from segkd.ops.resize import good_size
from segkd.runtime import Runtime


def networks(
    config: RunConfig, classes: Sequence[str], size: tuple[int, int] | None, found: list[Finding]
) -> Network | None:
    """Builds student and teachers one by one.

    Args:
        config: the run.
        classes: names of the data's classes.
        size: (H, W) of training images, if fixed.
        found: findings are appended.

    Returns:
        The student; None if there is an error with any network.
    """
    models, scales = {"student": config.student}, dict[str, float]()
    tables = {f"teacher {name}": teacher.class_map for name, teacher in config.teachers.items()}
    student, sound = None, True
    for name, teacher in config.teachers.items():
        if teacher.library:
            sound = _of_library(name, teacher, classes, size, found) and sound
        elif teacher.is_network:
            models[f"teacher {name}"] = teacher.model()
            scales[f"teacher {name}"] = teacher.input_scale
    for name, model in models.items():
        problems: list[Finding] = []
        with reported(name, problems):
            table = tables.get(name)
            own = source_classes(table) if table else classes
            _examine_weights(name, model, problems)
            network = build_network(without_download(model), len(own), own)
            network.input_scale = scales.get(name, 1.0)
            _examine_size(name, network, size, problems)
            student = network if name == "student" else student
            match = f"; {network.match}" if network.match else ""
            # The network does not know about weights that are not downloaded yet.
            stated = network.normalization if model.checkpoint else normalization(model)
            text = f"{network.title}, {parameters(network) / 1e6:.2f} M parameters{match}; {stated}"
            text += f"; {network.classes_match}" if network.classes_match else ""
            if network.match and not model.classes:
                key = "student" if name == "student" else f"teachers.{name.partition(' ')[2]}"
                problems.append(Finding("warning", name, no_names(key, model.checkpoint, own)))
            found.append(Finding("ok", name, text))
            if stated.warning:
                problems.append(Finding("warning", name, stated.warning))
        found += problems
        sound = sound and not any(one.level == "error" for one in problems)
    return student if sound else None


def _of_library(
    name: str,
    teacher: TeacherConfig,
    classes: Sequence[str],
    size: tuple[int, int] | None,
    found: list[Finding],
) -> bool:
    """Opens a teacher of another library, as a run does; False if that fails."""
    about, problems = f"teacher {name}", list[Finding]()
    with reported(about, problems):
        network = open_library(name, teacher, len(classes), classes)
        network.input_scale = teacher.input_scale
        _examine_size(about, network, size, problems)
        text = f"{network.title}, {parameters(network) / 1e6:.2f} M parameters"
        text += "" if network.has_classes else ", features without classes"
        text += f"; {network.normalization}; licence {network.licence or 'unknown'}"
        text += f"; {network.classes_match}" if network.classes_match else ""
        found.append(Finding("ok", about, text))
        if network.normalization.warning:
            problems.append(Finding("warning", about, network.normalization.warning))
    found += problems
    return not any(one.level == "error" for one in problems)


def assembled(
    config: RunConfig,
    student: Network,
    sets: tuple[Dataset, Dataset],
    found: list[Finding],
    *,
    in_recipe: bool = False,
) -> Components | None:
    """All components of a run, with its methods.

    Args:
        config: the run.
        student: its student.
        sets: training and evaluation images.
        found: findings are appended.
        in_recipe: whether other runs may use a teacher that this one does not use.

    Returns:
        None if they do not fit together.
    """
    problems: list[Finding] = []
    with reported("methods", problems):
        parts = _assemble(config, student, sets)
        names = ", ".join(config.methods) or "none"
        for name, member in parts.teachers.members.items():
            if isinstance(member, BlackBox):
                found.append(_about_box(name, member, config.teachers.get(name)))
            elif member.about_classes:
                found.append(Finding("ok", f"teacher {name}", member.about_classes))
        for warning in about_unknown(config, parts.teachers.members, sets[0]):
            about, _, text = warning.partition(": ")
            found.append(Finding("warning", about, text))
        found += _about_caches(parts)
        taps = f"; taps of the student: {', '.join(parts.taps)}" if parts.taps else ""
        found.append(Finding("ok", "methods", names + taps))
        lines = [*parts.notes, *about_teachers(config, parts, in_recipe=in_recipe)]
        found += [_of_log(line) for line in lines]
        for name, chosen in parts.chosen_taps.items():
            found.append(Finding("ok", f"methods.{name}", f"default taps: {chosen}"))
        return parts
    if len(config.methods) > 1 and len(problems) == 1:
        problems = _one_by_one(config, student, sets) or problems
    found += problems
    return None


def _of_log(line: str) -> Finding:
    """The finding of a line of a run's log."""
    level: Level = "warning" if line.startswith("WARNING: ") else "ok"
    about, _, text = line.removeprefix("WARNING: ").partition(": ")
    return Finding(level, about, text)


def _about_box(name: str, box: BlackBox, config: TeacherConfig | None) -> Finding:
    keys = config.black_box if config else None
    text = f"a black box of {box.num_classes} classes"
    if keys is not None:
        text += f", {keys.origin}"
        if keys.max_queries is not None and isinstance(box, QueriedBox) and box.cache is not None:
            used = f"{box.cache.used} of {keys.max_queries} queries are spent"
            text += f"; not queried here: {used}"
    about = f"teacher {name}"
    return Finding("ok", about, f"{text}; {box.about_classes}" if box.about_classes else text)


def _about_caches(parts: Components) -> list[Finding]:
    """What is stored of teachers, or whether it could be."""
    found, teachers = [], parts.teachers
    methods = dict(parts.objective.methods.items())
    for name, member in teachers.members.items():
        if name in teachers.caches:
            texts = [text.partition(": ")[2] for text in teachers.caches[name].about]
            found += [Finding("ok", f"teacher {name}", text) for text in texts]
        elif name in teachers.needed() and isinstance(member, Teacher):
            text = f"its outputs can be stored: teachers.{name}.cache=views"
            for entry, why in obstacles(name, teachers, methods):
                text = f"its outputs cannot be stored: methods.{entry} {why}"
            found.append(Finding("ok", f"teacher {name}", text))
    return found


def without_download(model: ModelConfig) -> ModelConfig:
    """The network with a random encoder unless its weights are on this machine."""
    if model.weights is None or are_here(model):
        return model
    return model.model_copy(update={"weights": None})


def _assemble(config: RunConfig, student: Network, sets: tuple[Dataset, Dataset]) -> Components:
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    teachers = {
        name: teacher.model_copy(update={"weights": without_download(teacher.model()).weights})
        if teacher.is_network and not teacher.library
        else teacher.without_queries()
        for name, teacher in config.teachers.items()
    }
    # The sets have been joined already.
    data = config.data.model_copy(update={"unlabeled": None, "labels": "required"})
    config = config.model_copy(update={"teachers": teachers, "data": data})
    return assemble(config, runtime, student=student, train_set=sets[0], val_set=sets[1])


def _one_by_one(
    config: RunConfig, student: Network, sets: tuple[Dataset, Dataset]
) -> list[Finding]:
    """The problem of each method that cannot be built."""
    problems: list[Finding] = []
    for name, entry in config.methods.items():
        with reported("methods", problems):
            _assemble(config.model_copy(update={"methods": {name: entry}}), student, sets)
    return problems


def _examine_weights(name: str, model: ModelConfig, problems: list[Finding]) -> None:
    if model.weights is None or (model.checkpoint and not model.arch) or are_here(model):
        return
    text = f"weights '{model.weights}' of {model.encoder} are not on this machine"
    repair = "They are downloaded when the run starts: make sure that this machine has access"
    repair += how_to_install(model.encoder)
    problems.append(Finding("warning", name, text, repair))


def _examine_size(
    name: str, network: Network, size: tuple[int, int] | None, problems: list[Finding]
) -> None:
    rounded = network.input_scale != 1  # any size becomes one that it takes
    if size is None or rounded or not any(side % network.divisor for side in size):
        return
    good = good_size(size, network.divisor)
    problems.append(
        Finding(
            "error",
            name,
            f"takes heights and widths that are multiples of {network.divisor}, training images "
            f"are {size[0]}x{size[1]}",
            f"data.crop=[{good[0]},{good[1]}]",
        )
    )
