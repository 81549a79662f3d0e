"""What the log and the doctor say about teachers before a run: budgets, and who is not used."""

from collections.abc import Iterator

from segkd.config.schema import RunConfig
from segkd.data.base import DataConfig
from segkd.engine.setup import Components
from segkd.errors import ConfigError
from segkd.evaluation.evaluator import Outcome
from segkd.models.black_box import QueriedBox
from segkd.models.frozen import BlackBox, Teacher
from segkd.models.query_cache import QueryCache
from segkd.runtime import HALF_TYPES

_WARNING = "WARNING: "


def about_teachers(config: RunConfig, parts: Components, *, in_recipe: bool = False) -> list[str]:
    """Lines about the budgets of black boxes, and about teachers that no method uses.

    Args:
        config: the run as configured, also if ``parts`` were built without queries.
        parts: its components.
        in_recipe: whether other runs may use the teacher, so that it is no mistake.

    Raises:
        ConfigError: a budget allows no query, and nothing was queried before.
    """
    return [
        *_budgets(config, parts),
        *_strides(config, parts),
        *_precisions(config, parts),
        *_scales(parts),
        *_unused(config, parts, in_recipe),
    ]


def _precisions(config: RunConfig, parts: Components) -> Iterator[str]:
    for name, member in parts.teachers.members.items():
        if isinstance(member, Teacher) and member.dtype != HALF_TYPES[config.runtime.precision]:
            own = next(key for key, dtype in HALF_TYPES.items() if dtype == member.dtype)
            yield f"teacher {name}: {own}, the student {config.runtime.precision}"


def _scales(parts: Components) -> Iterator[str]:
    for name, member in parts.teachers.members.items():
        if isinstance(member, Teacher) and member.network.input_scale != 1:
            yield f"teacher {name}: it sees images {member.network.input_scale:g} times as large"


def _strides(config: RunConfig, parts: Components) -> Iterator[str]:
    size = config.data.crop or config.data.resize
    for name, member in parts.teachers.members.items():
        if size is not None and isinstance(member, BlackBox) and member.stride >= min(size):
            yield (
                f"{_WARNING}teacher {name}: stride {member.stride} leaves a single row or column "
                f"of predictions of {size[0]}x{size[1]} pixels. Lower teachers.{name}.black_box."
                "stride"
            )


def about_score(name: str, result: Outcome, of_known: float | None = None) -> Iterator[str]:
    """Lines about the score of a teacher before the run; a warning if it is near chance.

    Args:
        name: of the teacher.
        result: of its evaluation.
        of_known: the score of the classes that it knows; None: it knows all.
    """
    line = f"teacher {name}: {result.score_name} {100 * result.score:.2f}"
    yield line if of_known is None else f"{line}; of the classes it knows {100 * of_known:.2f}"
    if (result.score if of_known is None else of_known) < 1.5 * result.chance:
        yield (
            f"{_WARNING}teacher '{name}' is near chance ({100 * result.chance:.1f}). Probably its "
            "checkpoint was not loaded, its classes have another order, or `normalize` differs "
            "from its training"
        )


def _budgets(config: RunConfig, parts: Components) -> Iterator[str]:
    unused = parts.teachers.unused()
    for name, member in parts.teachers.members.items():
        limited = isinstance(member, QueriedBox) and member.cache is not None
        box = config.teachers[name].black_box if limited and name in config.teachers else None
        if box is not None and box.max_queries is not None and name not in unused:
            assert isinstance(member, QueriedBox) and member.cache is not None  # limited
            fails = box.missing == "error"
            yield _budget(config, parts, name, member.cache, box.max_queries, fails)


def _budget(
    config: RunConfig, parts: Components, name: str, cache: QueryCache, most: int, fails: bool
) -> str:
    """The line about a budget; ``fails``: an image that is not in the cache ends the run."""
    left, kept = max(0, most - cache.used), cache.kept
    key = f"teachers.{name}.black_box.max_queries"
    if left + kept == 0:
        spent = "allows no query" if most == 0 else f"is spent ({cache.used} queries)"
        raise ConfigError(
            f"{key}={most} {spent}, and {cache.folder} holds no prediction: this teacher would "
            f"teach nothing. Raise it: {key}=N, or store predictions with segkd query and use "
            "them: black_box: {predictions: FOLDER}"
        )
    shown = config.steps * config.data.batch_size
    if _fixed(config.data):
        shown = min(shown, len(parts.train_set))
    text = (
        f"teacher {name}: {left} of {most} queries are left, {cache.folder} holds {kept} "
        f"predictions; the run shows up to {shown} different images"
    )
    if left + kept >= shown:
        return text
    first = (left + kept) // config.data.batch_size
    if fails:
        end = f"an image without a prediction ends the run, possibly after {first} steps"
        return f"{_WARNING}{text}: {end}. Raise {key}, or set missing=skip"
    sign = _WARNING if 2 * (left + kept) < shown else ""
    return f"{sign}{text}: when they are spent, images are trained without this teacher"


def _fixed(data: DataConfig) -> bool:
    """Whether each image looks the same in every step."""
    moved = data.scale != (1, 1) or data.flip not in (0, 1) or bool(getattr(data, "rotation", 0))
    cropped = data.crop is not None and data.crop != data.resize
    return not (moved or cropped or data.color_jitter or data.augment)


def _unused(config: RunConfig, parts: Components, in_recipe: bool) -> Iterator[str]:
    teachers = parts.teachers
    for name in teachers.unused():
        scored = "it is not even scored" if teachers.not_evaluated(name) else "it is scored only"
        text = f"teacher {name}: used by no method: {scored}"
        if in_recipe:
            yield text
        elif teachers.used:
            yield f"{_WARNING}{text}. Name it in one, methods.METHOD.teacher={name}, or remove it"
        else:
            yield f"{_WARNING}{text}. Add a method, e.g. methods.kd={{}}, or remove it"
