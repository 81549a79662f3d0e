"""``match: seconds`` of a recipe: which runs get the baseline's training time, and their schedule.

How many steps that is, is measured before a run: see ``engine.match``.
"""

from segkd.config.recipe import references
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.method_config import MethodConfig


def exempt(recipe: RecipeConfig, name: str) -> str | None:
    """Why a run keeps its own number of steps; None: it is matched to the baseline.

    Args:
        recipe: a recipe with ``match``.
        name: of one of its runs.
    """
    run = recipe.runs[name]
    if run.unmatched is not None:
        return run.unmatched
    if name == recipe.baseline:
        return "the baseline"
    if name == recipe.teacher:
        return "the teacher"
    if run.once:
        return "`once`"
    if run.config.train:
        return "a phase that trains a part: `train`"
    for other, one in recipe.runs.items():
        for path, target in references(one.config):
            if target == name:
                return f"'{other}' {'begins with' if path[0] == 'init_from' else 'uses'} it"
    return None


def matched(recipe: RecipeConfig) -> dict[str, str | None]:
    """By run, why it is exempt; None for those that are matched. Empty without ``match``."""
    return {name: exempt(recipe, name) for name in recipe.runs} if recipe.match else {}


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """The run with another number of steps, and all that is counted in steps in proportion.

    That is the warm-up and the milestones of the schedule, the interval of evaluations, and
    `start`, `warmup` and `adapter_warmup` of each method. Lengths of 0 stay 0, others stay at
    least 1. A method's own lengths, such as `paraphraser_steps`, stay as they are if they are set;
    their defaults are shares of the run. So do the intervals of logging and of checkpoints, which
    do not change what is trained.

    Args:
        config: the run as configured.
        steps: its new number of steps.
    """
    factor = steps / config.steps

    def scaled(length: int) -> int:
        return max(1, round(length * factor)) if length else 0

    schedule = config.schedule.model_copy(
        update={
            "warmup": scaled(config.schedule.warmup),
            "milestones": list(dict.fromkeys(map(scaled, config.schedule.milestones))),
        }
    )

    def of_method(entry: MethodConfig) -> MethodConfig:
        lengths = {key: scaled(getattr(entry, key)) for key in ("start", "warmup")}
        if entry.adapter_warmup is not None:
            lengths["adapter_warmup"] = scaled(entry.adapter_warmup)
        return entry.model_copy(update=lengths)

    return config.model_copy(
        update={
            "steps": steps,
            "schedule": schedule,
            "eval": config.eval.model_copy(update={"every": scaled(config.eval.every)}),
            "methods": {name: of_method(entry) for name, entry in config.methods.items()},
        }
    )
