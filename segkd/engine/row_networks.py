"""What networks that classify rows of lanes cannot do, because their logits are no map."""

from collections.abc import Collection, Mapping

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.lane_base import is_lane_set
from segkd.engine.pseudo_labels import takes_pseudo_labels
from segkd.engine.step_record import teacher_of
from segkd.errors import ConfigError
from segkd.methods.base import Method
from segkd.models.network import Network

_INSTEAD = "Use ld, or a method of features (fitnets, at, pkd, review_kd, sad, …)"


def require_maps(
    config: RunConfig,
    methods: Mapping[str, Method],
    student: Network,
    teachers: Mapping[str, object],
    data: Dataset,
) -> None:
    """Checks that only what understands ``Outputs.rows`` meets a network that has them.

    Args:
        config: the run.
        methods: entries of ``methods:``, whose taps are bound.
        student: the network that learns.
        teachers: by name, without ensembles.
        data: the training images.

    Raises:
        ConfigError: says which entry, and what to use instead.
    """
    if student.rows and not (is_lane_set(data) and data.metric != "bdd100k"):
        name = getattr(data, "name", "")
        raise ConfigError(
            f"student: {student.title} classifies rows of lanes with an identity, which dataset "
            f"'{name}' does not have. Use culane, tusimple or another set of such lanes, or "
            "another network"
        )
    with_rows = {name for name, part in teachers.items() if getattr(part, "rows", ())}
    _check_teachers(config, with_rows)
    names = [*teachers, *(name for name in config.teachers if name not in teachers)]
    for name, method in methods.items():
        needs = method.needs
        if needs.accepts_rows:
            continue
        if student.rows and ("logits" in needs.student or needs.rewrites_batch):
            what = "rewrites images" if needs.rewrites_batch else "compares logits of pixels"
            raise ConfigError(
                f"methods.{name}: {what}, but the student classifies rows of lanes. {_INSTEAD}"
            )
        if needs.teacher and teacher_of(method, names) in with_rows and _reads_logits(method, data):
            raise ConfigError(
                f"methods.{name}: reads the teacher's logits as a map of the image, but the "
                f"teacher classifies rows of lanes. {_INSTEAD}"
            )
        further = [other for other in method.further_teachers if other in with_rows]
        if further and "logits" in method.further_teachers[further[0]]:
            raise ConfigError(
                f"methods.{name}: teacher '{further[0]}' classifies rows of lanes. {_INSTEAD}"
            )


def map_stride(config: RunConfig, student: Network) -> int:
    """The stride to which predictions of black boxes are averaged: that of the student's map."""
    if student.rows or not any(teacher.black_box for teacher in config.teachers.values()):
        return 1
    return student.tap_info(["logits"])["logits"].stride


def _reads_logits(method: Method, data: Dataset) -> bool:
    """Whether it reads logits of the teacher, also as labels of images without."""
    pseudo = bool(data.unlabelled) and method.needs.labels and takes_pseudo_labels(method)
    return "logits" in method.needs.teacher or pseudo


def _check_teachers(config: RunConfig, with_rows: Collection[str]) -> None:
    """Raises ConfigError for what teachers of rows cannot be."""
    for name, teacher in config.teachers.items():
        for member in teacher.ensemble:
            if member in with_rows:
                raise ConfigError(
                    f"teachers.{name}.ensemble: '{member}' classifies rows of lanes, and an "
                    "ensemble is the mean of maps. Use it alone, or networks of segmentation"
                )
        if name in with_rows and (teacher.cache or teacher.class_map):
            key = "cache" if teacher.cache else "classes"
            raise ConfigError(
                f"teachers.{name}.{key}: is for maps, but this teacher classifies rows of lanes. "
                "Remove it"
            )
