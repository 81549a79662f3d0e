"""The work of `segkd query` and `segkd active-mixup`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkd.commands.display import note_all_kept, resumable, say
from segkd.engine.active_mixup import active_mixup
from segkd.engine.mixup_plan import MixupPlan
from segkd.engine.teacher_store import open_store, run_with_teacher
from segkd.errors import ConfigError
from segkd.inference.broken import raise_if_broken
from segkd.inference.media import open_source
from segkd.inference.stopping import stopped_with
from segkd.yaml_tree import inline


def query(
    config: str,
    source: Path,
    overrides: Sequence[str],
    *,
    teacher: str | None,
    out: Path | None,
    stride: int,
    top_k: int | None,
) -> None:
    """Predicts the images that have no prediction in ``out`` yet.

    Args:
        config: path or name of a config with ``teachers``.
        source: a folder of images, or one image.
        overrides: ``key=value`` texts.
        teacher: which of them; None: the only one.
        out: folder of the predictions; default: predictions/TEACHER.
        stride: pixels per prediction.
        top_k: number of classes that are kept; None: all.

    Raises:
        SegKDError: no such teacher, no images, or the teacher fails.
        Interrupted: by a signal; what was written stays.
    """
    opened = open_source(source)
    if opened.kind == "video":
        raise ConfigError(f"{source} is a video: give an image, or a folder of images")
    run, name = run_with_teacher(config, overrides, teacher)
    folder = (out or Path("predictions") / name).expanduser()
    module, store = open_store(run, name, folder, stride=stride, top_k=top_k)
    note_all_kept(top_k, len(store.classes))
    unknown = [store.classes[number] for number in sorted(getattr(module, "unknown", ()))]
    if unknown:
        say(
            f"note: no class of {name} maps to {', '.join(unknown)}. {folder}/classes.json says "
            "so: a student of these predictions learns these classes from labels alone"
        )
    start = time.perf_counter()
    with resumable(f"query {source}", "predicts those that are left") as advance:
        new = store.fill(module, opened, advance)
    rate = new / max(time.perf_counter() - start, 1e-9)
    kept = opened.count - new - len(store.broken)
    say(f"{folder}: {new} new predictions of {name}, {kept} were there; {rate:.1f} per second")
    entry = inline({"teachers": {name: {"black_box": {"predictions": str(folder)}}}})
    say(f"in a config: {entry[1:-1]}")
    raise_if_broken(store.broken, opened.count - len(store.broken))


def mixup(config: str, overrides: Sequence[str], teacher: str | None, **options: Any) -> None:
    """Runs ``active_mixup`` and prints one line per round.

    Args:
        config: path or name of the config of a run.
        overrides: ``key=value`` texts.
        teacher: which of its teachers; None: the only one.
        options: of ``MixupPlan``.

    Raises:
        SegKDError: see ``active_mixup``.
    """
    run, name = run_with_teacher(config, overrides, teacher)
    plan = MixupPlan(**options)
    with stopped_with(lambda: f"{plan.out}: not finished. The same command goes on from there"):
        rows = active_mixup(run, name, plan, say)
    for row in rows:
        say(
            f"round {row['round']}: {row['images']} images, {row['queries']} queries so far, "
            f"{row['score_name']} {100 * row['score']:.2f}"
        )
