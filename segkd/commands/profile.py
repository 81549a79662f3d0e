"""`segkd profile`: time and memory of each part of a training step."""

import json
from collections.abc import Sequence

from segkd.commands.display import is_main, progress, say
from segkd.config.load import Loaded, load_config
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.engine.auto_weight import advice
from segkd.engine.profile import Profile, profile_run
from segkd.engine.stand_in import stand_in
from segkd.errors import ConfigError, did_you_mean
from segkd.evaluation.table import TextTable

NONE = "–"


def profile(
    config: str | None, overrides: Sequence[str], *, steps: int, run: str | None, as_json: bool
) -> None:
    """Measures a run, or each run of a recipe, and prints a table or JSON for each.

    Args:
        config: path or name of a config; None: the quick start.
        overrides: ``key=value`` texts.
        steps: number of measured steps.
        run: only this run of a recipe.
        as_json: print JSON.

    Raises:
        SegKDError: an invalid config, or see ``profile_run``.
    """
    found = []
    for name, one in _runs(load_config(config, overrides), run).items():
        with progress(f"profile {name}".rstrip(), enabled=is_main()) as advance:
            found.append(profile_run(one, name=name, steps=steps, progress=advance))
        if is_main() and not as_json:
            say(profile_table(found[-1]))
            if found[-1].pulls:
                say(pull_table(found[-1]))
    if is_main() and as_json:
        print(json.dumps([item.to_dict() for item in found], allow_nan=False))


def profile_table(found: Profile) -> TextTable:
    """Milliseconds, share and memory of each part."""
    rows = [
        [part.name, _ms(part.seconds), f"{100 * part.share:.1f}", _mib(part.memory)]
        for part in found.parts
    ]
    rows.append(["step", _ms(found.seconds_per_step), "100.0", _mib(found.peak_memory)])
    notes = [
        f"{found.steps} steps of {found.batch_size} images on {found.device}: "
        f"{found.images_per_second:.2f} images/s, peak memory "
        f"{found.peak_memory / 2**30:.2f} GiB",
        _memory_note(found),
    ]
    header = ["part", "ms/step", "share %", "memory MiB"]
    return TextTable(header, rows, found.name, notes, footer=True)


def pull_table(found: Profile) -> TextTable:
    """The gradient ratio of each entry to the task loss, with advice if it is out of range."""
    rows, notes = [], []
    for entry, pull in found.pulls.items():
        weight = found.weights[entry]
        rows.append([entry, f"{weight:g}", NONE if pull is None else f"{pull:.2g}"])
        change = None if pull is None else advice(entry, pull, weight, entry in found.fresh)
        if pull is not None and change:
            what = "hardly has an effect" if pull < 1 else "dominates the task loss"
            notes.append(f"{entry} {what}: {change}")
    notes.append(
        "Pull: norm of the weighted gradient at the student's taps divided by that of the task "
        f"loss, after {found.steps} steps. A method's own layers are hardly trained by then."
    )
    return TextTable(["method", "weight", "pull"], rows, "relative to the task loss", notes)


def _memory_note(found: Profile) -> str:
    if all(part.memory is None for part in found.parts):
        return f"Memory by part can be measured on CUDA and on Linux, not here ({NONE})."
    cuda = found.device.startswith("cuda")
    what = "of tensors" if cuda else "of the whole process, a rough value"
    return f"Memory: peak of a part above the memory in use before it, {what}."


def _runs(loaded: Loaded, chosen: str | None) -> dict[str, RunConfig]:
    """The runs to measure, by name; those of a recipe with their first seed."""
    if loaded.run is not None:
        if chosen:
            raise ConfigError(f"--run {chosen} is for a recipe; this config is a single run")
        return {str(loaded.run.out): loaded.run}
    assert loaded.recipe is not None  # a config is a run or a recipe
    plan = expand(loaded.recipe)
    first = {planned.name: planned for planned in reversed(plan)}
    names = [name for name in loaded.recipe.runs if chosen in (None, name)]
    if chosen is not None and not names:
        raise ConfigError(f"--run: there is no run '{chosen}'.{did_you_mean(chosen, first)}")
    return {name: stand_in(first[name], plan) for name in names}


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _mib(memory: int | None) -> str:
    return NONE if memory is None else f"{memory / 2**20:.1f}"
