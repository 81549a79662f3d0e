"""`segkd profile`: where the seconds and the memory of a training step go."""

import json
from collections.abc import Sequence

from segkd.commands.display import is_main, progress, say
from segkd.config.load import Loaded, load_config
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.engine.auto_weight import advice
from segkd.engine.profile import Profile, profile_run, stand_in
from segkd.errors import ConfigError, did_you_mean
from segkd.evaluation.table import TextTable

NONE = "–"


def profile(
    config: str | None, overrides: Sequence[str], *, steps: int, run: str | None, as_json: bool
) -> None:
    """Measures a run, or each run of a recipe once, and prints a table or JSON for each."""
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
    """How hard each entry pulls beside the labels, and what to type where that is out of range."""
    rows, notes = [], []
    for entry, pull in found.pulls.items():
        weight = found.weights[entry]
        rows.append([entry, f"{weight:g}", NONE if pull is None else f"{pull:.2g}"])
        change = None if pull is None else advice(entry, pull, weight, entry in found.fresh)
        if change:
            what = "hardly pulls" if pull < 1 else "pulls much harder than the labels"
            notes.append(f"{entry} {what}: {change}")
    notes.append(
        "Pull: norm of the weighted gradient at the student's taps over that of the task loss, "
        f"after {found.steps} steps. Layers of a method's own have hardly learned by then."
    )
    return TextTable(["method", "weight", "pull"], rows, "beside the labels", notes)


def _memory_note(found: Profile) -> str:
    if all(part.memory is None for part in found.parts):
        return f"Memory by part can be measured on CUDA and on Linux, not here ({NONE})."
    what = "of tensors" if found.device.startswith("cuda") else "of the whole process; a hint"
    return f"Memory: the most that a part takes beyond what was in use before it, {what}."


def _runs(loaded: Loaded, chosen: str | None) -> dict[str, RunConfig]:
    """What is to be measured, by name; of a recipe each run with its first seed."""
    if loaded.run is not None:
        if chosen:
            raise ConfigError(f"--run {chosen} belongs to a recipe; this config is a single run")
        return {str(loaded.run.out): loaded.run}
    plan = expand(loaded.recipe)
    first = {planned.name: planned for planned in reversed(plan)}
    names = [name for name in loaded.recipe.runs if chosen in (None, name)]
    if not names:
        raise ConfigError(f"--run: there is no run '{chosen}'.{did_you_mean(chosen, first)}")
    return {name: stand_in(first[name], plan) for name in names}


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _mib(memory: int | None) -> str:
    return NONE if memory is None else f"{memory / 2**20:.1f}"
