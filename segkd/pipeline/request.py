"""What `segkd distill` is asked for, and the files that are made of it."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from segkd.config.load import load_config
from segkd.config.networks import TeacherConfig
from segkd.data.class_guess import Guess
from segkd.data.label_maps import without_label_maps
from segkd.data.paired import images_below
from segkd.engine.logging import display_print
from segkd.errors import ConfigError, DataError
from segkd.inference.student import Student
from segkd.models.black_box import imported
from segkd.models.frozen import BlackBox
from segkd.models.given import as_network
from segkd.models.module import OWN
from segkd.models.network import Network
from segkd.pipeline.budget import (
    Budget,
    Candidate,
    candidates,
    candidates_table,
    require_fitting,
)
from segkd.pipeline.folder import DistillFolder
from segkd.pipeline.recipe import (
    Unlabelled,
    merged,
    recipe_of,
    recipe_text,
    split_overrides,
)
from segkd.pipeline.settings import Settings, choose, export_size
from segkd.pipeline.source import DataSource, data_of, write_spec
from segkd.pipeline.students import DEFAULT, StudentChoice, check_student, student_of
from segkd.pipeline.teachers import NAME, TeacherChoice, require_same_classes, teacher_of
from segkd.pipeline.unlabelled import describe_images, label_by_teacher
from segkd.yaml_tree import overrides_tree

Bar = Callable[[int, int], None]
OWN_MODULE = "a module of the caller"
_NO_OTHER_IMAGES = (
    "Images without masks: none. On images that it was trained on a teacher adds little to their "
    "labels; if you have more images than masks, give --unlabeled FOLDER (docs/pairs.md)"
)
Choose = Callable[[list[Candidate]], int]


def the_first(rows: list[Candidate]) -> int:
    """The best fitting candidate, without asking."""
    return 0


@dataclass(frozen=True)
class Request:
    """The arguments of `segkd distill` and of ``segkd.distill``.

    Attributes:
        teacher, student, data: as on the command line; empty where a network of the caller is
            given, or a budget.
        unlabeled: folder of images without masks.
        out: folder of everything; None: runs/distill_NAME of the data.
        steps: of training; None: by the number of images.
        baseline: whether the student is also trained without the teacher.
        budget: of the student, instead of its name.
        overrides: ``key=value`` of each run.
    """

    teacher: str
    data: str
    student: str = ""
    unlabeled: str = ""
    out: Path | None = None
    steps: int | None = None
    baseline: bool = True
    budget: Budget = field(default_factory=Budget)
    overrides: tuple[str, ...] = ()

    def folder(self) -> DistillFolder:
        """The folder of everything."""
        stem = Path(self.data).expanduser().resolve().stem or "data"
        return DistillFolder(self.out or Path("runs") / f"distill_{stem}")

    def plain(self) -> dict[str, Any]:
        """What must be the same when the command is repeated."""
        budget = {"parameters": self.budget.parameters, "milliseconds": self.budget.milliseconds}
        return {
            "teacher": self.teacher,
            "student": self.student,
            "data": self.data,
            "unlabeled": self.unlabeled,
            "steps": self.steps,
            "baseline": self.baseline,
            "budget": {key: value for key, value in budget.items() if value is not None},
            "overrides": list(self.overrides),
        }

    def command(self) -> str:
        """The command line that asks for the same."""
        parts = ["segkd", "distill"]
        options = {"--teacher": self.teacher, "--student": self.student, "--data": self.data}
        options |= {"--unlabeled": self.unlabeled, "--steps": str(self.steps or "")}
        options["--max-params"] = str(self.budget.parameters or "")
        latency = self.budget.milliseconds
        options["--max-latency-ms"] = f"{latency:g}" if latency else ""
        for option, value in options.items():
            parts += [option, value] if value else []
        parts += [] if self.baseline else ["--no-baseline"]
        parts += ["--out", str(self.out)] if self.out else []
        return shlex.join([*parts, *self.overrides])


@dataclass(frozen=True)
class Given:
    """Modules of the caller, instead of named networks."""

    student: nn.Module | None = None
    teacher: nn.Module | Student | None = None

    def __bool__(self) -> bool:
        return self.student is not None or self.teacher is not None


def network_of(module: nn.Module | Student, num_classes: int) -> Network | BlackBox:
    """A module of the caller as a network of segkd."""
    return as_network(module.network if isinstance(module, Student) else module, num_classes)


def prepare(
    request: Request,
    folder: DistillFolder,
    *,
    given: Given,
    pick: Choose,
    bar: Callable[[str], Any],
) -> None:
    """Looks at the data, chooses everything that was not given, and writes the recipe.

    Args:
        request: the arguments.
        folder: to write to.
        given: networks of the caller.
        pick: chooses among the candidates of a budget.
        bar: opens a progress bar with a title; yields a callback (done, total).

    Raises:
        SegKDError: something cannot be used; says what and why.
    """
    common, top = split_overrides(overrides_tree(request.overrides).plain())
    _check_names(request, given)  # before masks are read, which may take long
    own = common.get("teachers", {}).get(NAME, {})
    teacher = _teacher(request, given, own)
    with bar("masks") as advance:
        source = data_of(request.data, common.get("data", {}), advance)
    for note in source.found.notes if source.found else []:
        display_print(f"{source.name}: {note}")
    unlabelled = _unlabelled(request, source)
    if source.labelled and not unlabelled and not common.get("data", {}).get("unlabeled"):
        display_print(_NO_OTHER_IMAGES)
    _settle_classes(request, source, teacher, own, folder)
    if teacher.fixed is not None:
        _require_size(source, teacher)
    images = source.counts["train"]
    settings = choose(source.sizes, images, steps=request.steps, fixed=teacher.fixed)
    student = _student(request, given, source, settings, pick, bar)
    if given.student is None:
        check_student(student, merged(student.block, common.get("student", {})), source.classes)
    folder.begin(request.plain())
    write_spec(source, folder.path)
    data, notes = recipe_of(
        source,
        student,
        teacher,
        settings,
        out=folder.path,
        baseline=request.baseline,
        unlabelled=unlabelled,
        common=common,
        top=top,
    )
    folder.write_recipe(recipe_text(data, notes, request.command(), folder.recipe))
    load_config(folder.recipe, own_parts=bool(given))  # before the command is fixed
    if not source.labelled:
        _label(source, data, given, bar)
    folder.store(request.plain())


def _teacher(request: Request, given: Given, own: dict[str, Any]) -> TeacherChoice:
    if given.teacher is not None:
        own_network = given.teacher.network if isinstance(given.teacher, Student) else given.teacher
        is_box = isinstance(own_network, BlackBox) or getattr(own_network, "kind", "") == "log_prob"
        names = None
        if isinstance(own_network, Network) and own_network.info.named:
            names = tuple(own_network.classes)
        return TeacherChoice(OWN_MODULE, {}, names, features=not is_box)
    if not request.teacher:
        raise ConfigError(
            "--teacher is missing: the network to learn from. Without one, train on your masks "
            "alone: segkd init FOLDER. To train a teacher first: --teacher train:"
            f"{DEFAULT.replace('lite0', 'lite2')}"
        )
    teacher = teacher_of(request.teacher, own)
    function = teacher.block.get("black_box", {}).get("function")
    if function:
        imported(function, "--teacher")  # now, not after masks are read
    return teacher


def require_trainable_teacher(request: Request, given: Given) -> None:
    """Refuses a teacher that would be trained in a network of the caller, as all runs are.

    Raises:
        ConfigError: it is to be trained, and the student is a module.
    """
    if given.student is not None and request.teacher.startswith("train:"):
        raise ConfigError(
            f"teacher '{request.teacher}': with a module as student all runs train that module, "
            "the teacher's as well. Train the teacher first, by segkd train CONFIG (segkd init "
            "FOLDER writes one for images and masks), and give its run: teacher='runs/NAME'"
        )


def _check_names(request: Request, given: Given) -> None:
    """Refuses a student and a folder that cannot be used. Raises SegKDError."""
    if given.student is not None and request.budget:
        raise ConfigError(
            "max_params and max_latency_ms choose a student, but the student is a module: leave "
            "them out, or give no student"
        )
    if given.student is None and request.student:
        if request.budget:
            raise ConfigError(
                "give --student, or a budget (--max-params, --max-latency-ms), not both"
            )
        student_of(request.student)
    if request.unlabeled:
        _images_of(request.unlabeled)


def _images_of(folder: str) -> list[Path]:
    """The images of `--unlabeled`. Raises DataError if there are none."""
    path = Path(folder).expanduser()
    images = images_below(path) if path.is_dir() else []
    if not images:
        what = "no image in this folder" if path.is_dir() else "no such folder"
        raise DataError(f"--unlabeled: there is {what}: {path}")
    return images


def _settle_classes(
    request: Request,
    source: DataSource,
    teacher: TeacherChoice,
    own: dict[str, Any],
    folder: DistillFolder,
) -> None:
    """Classes of the data and of the teacher are the same; made-up names become the teacher's."""
    if not source.labelled:
        if teacher.student:
            raise ConfigError(
                f"{request.data} has images, but no masks to train a teacher on. Give a trained one"
            )
        found = source.found
        named = [one.name for one in found.named] if found else []
        classes = teacher.classes or tuple(named)
        if len(classes) < 2:
            raise ConfigError(
                f"{request.data} has no masks, and {teacher.text} does not name its classes. Write "
                f"a classes.txt into {request.data}: one name per line, in the teacher's order"
            )
        describe_images(source, classes, folder.labels)
        source.classes, source.counts = classes, found.counts if found else {}
        display_print(
            f"There are no masks: scores are the agreement with {teacher.text} on "
            f"{source.counts['val']} images"
        )
        return
    guess = source.found.guess if source.found else None
    known = teacher.classes
    if guess is not None and (source.named or _are_by_id(guess, known)):
        guess = None  # the names are known
    if guess is not None and known and len(known) == len(guess.classes):
        if not guess.in_order:
            raise ConfigError(
                f"the classes of {source.name} have no names, and its masks do not number them "
                f"from 0 or 1 on ({_shown_values(guess)}), so it is not known which is which of "
                f"{teacher.text}: {', '.join(known)}. Put a classes.txt into {request.data}, with "
                f"lines `{'id: name' if guess.masks == 'ids' else 'name, r, g, b'}`"
            )
        guess.rename(known, f"those of {teacher.text}, in its order: check them")
        display_print(
            f"WARNING: the classes of {source.name} have no names; those of the teacher are used, "
            f"in its order: {', '.join(known)}. Wrong? Put a classes.txt into {request.data}"
        )
        source.classes = tuple(known)
        assert source.found is not None  # it has the guess
        source.found.spec["classes"] = guess.classes
    elif not own.get("classes"):
        require_same_classes(teacher, source.classes, request.data)


def _are_by_id(guess: Guess, names: Sequence[str] | None) -> bool:
    """Whether names are those that are made up from the ids: of a run on such masks."""
    return guess.masks == "ids" and list(names or ()) == guess.names


def _shown_values(guess: Guess) -> str:
    """The ids, or the number of colours, in the masks."""
    if guess.masks == "colors":
        return f"they have {len(guess.classes)} colours"
    return "ids " + ", ".join(str(entry["ids"][0]) for entry in guess.classes)


def _unlabelled(request: Request, source: DataSource) -> Unlabelled | None:
    """The images without masks: of another folder, else those of the data that have none."""
    configured = source.block.pop("unlabeled", None)
    if request.unlabeled:
        images = _images_of(request.unlabeled)
        if not source.labelled:
            raise ConfigError(
                f"{request.data} has no masks itself: leave out --unlabeled, and put all images "
                "into one folder"
            )
        root = Path(request.unlabeled).expanduser().resolve()
        images = without_label_maps(images, Path(request.unlabeled).expanduser())
        return Unlabelled({"root": str(root)}, len(images))
    if configured:
        return Unlabelled(dict(configured), 0)
    if source.labelled and source.found and "unlabeled" in source.found.counts:
        return Unlabelled({"split": "unlabeled"}, source.found.counts["unlabeled"])
    return None


def _require_size(source: DataSource, teacher: TeacherChoice) -> None:
    """A config may not say another size than the only one of the teacher."""
    fixed = list(teacher.fixed or ())
    for key in ("resize", "crop"):
        if source.block.get(key, fixed) != fixed:
            raise ConfigError(
                f"the teacher {teacher.text} takes images of {fixed[0]}x{fixed[1]} only, but "
                f"data.{key} is {source.block[key]}. Remove it, or set data.{key}={fixed}"
            )


def _student(
    request: Request,
    given: Given,
    source: DataSource,
    settings: Settings,
    pick: Choose,
    bar: Callable[[str], Any],
) -> StudentChoice:
    if given.student is not None:
        return StudentChoice(OWN_MODULE, {"arch": OWN})
    if not request.budget:
        return student_of(request.student or DEFAULT)
    size = export_size(settings.data, source.sizes)
    with bar("students") as advance:
        rows = candidates(request.budget, len(source.classes), size, progress=advance)
    display_print(candidates_table(rows, request.budget, size))
    fitting = require_fitting(rows, request.budget)
    chosen = fitting[pick(fitting)]
    display_print(f"Student: {chosen.name}")
    return replace(student_of(chosen.name), name=chosen.name)


def _label(
    source: DataSource, recipe: dict[str, Any], given: Given, bar: Callable[[str], Any]
) -> None:
    """The teacher's label maps of the validation images."""
    common = recipe["common"]
    keys = common.get("teachers", {}).get(NAME)
    teacher = TeacherConfig.model_validate(keys) if keys else None
    data = {key: value for key, value in common["data"].items() if key != "name"}
    device = (common.get("runtime") or {}).get("device") or "auto"
    with bar("teacher's label maps") as advance:
        network = network_of(given.teacher, len(source.classes)) if given.teacher else None
        label_by_teacher(source, data, teacher, network, advance, device)
