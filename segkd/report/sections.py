"""The sections made from the files of runs alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segkd.config.load import dump_config
from segkd.data.base import DataConfig
from segkd.engine.assistants import lessons
from segkd.engine.match_record import RECORD
from segkd.engine.recipe_teacher import ON_STUDENTS_SET
from segkd.engine.summary import Summary
from segkd.evaluation.results import NONE, ComparisonRow, comparison_table, peer_rows
from segkd.evaluation.table import TextTable
from segkd.report.blocks import Code, Section, Table
from segkd.report.charts import assistants_chart, cost_bars, curves
from segkd.report.collect import Collection, Group, Run

Series = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def result_section(collection: Collection, note: str) -> Section:
    """The table of all runs: score, gain, gap recovered, cost; and a note, if any."""
    section = Section("result", "Result")
    for text in unfinished(collection):
        section.say(text)
    table = comparison_table(comparison_rows(collection))
    section.blocks.append(Table(table))
    if note:
        section.say(note)
    section.blocks.append(Table(_runs_table(collection), "The runs"))
    return section


def assistants_section(collection: Collection) -> Section:
    """The students of teacher assistants; without blocks if there are none."""
    section = Section("assistants", "Teacher assistants")
    runs = [
        (group.name, run.config, run.summary)
        for group in collection.groups
        for run in group.runs
        if run.summary is not None
    ]
    alone = collection.role("baseline")
    found = lessons(runs, alone.shown.config.student if alone else None)
    if found:
        rows = [row for row in comparison_rows(collection) if row.role == "baseline"]
        section.show(assistants_chart(found, next(iter(rows), None), collection.score_name))
        section.say(
            "Equal students that learned from networks of different sizes. An assistant is a "
            "student of another run that has learned from a teacher itself."
        )
    return section


def comparison_rows(collection: Collection) -> list[ComparisonRow]:
    """A row per group, and one for a teacher without a run."""
    rows = []
    name = collection.teacher_name
    summary = collection.student.shown.summary or _any_summary(collection)
    facts = (summary or {}).get("teachers", {}).get(name)
    if name is not None and collection.role("teacher") is None and facts:
        score = facts.get("score", facts.get("miou"))
        rows.append(
            ComparisonRow(
                name,
                [] if score is None else [score],
                facts.get("parameters"),
                facts.get("flops"),
                role="teacher",
                score_name=collection.score_name,
            )
        )
    for group in collection.groups:
        row = _row(group, collection.score_name)
        if group == collection.role("teacher") and collection.teacher_is_elsewhere:
            row = _on_students_set(row, collection.facts_of_teacher)
        rows.append(row)
        finished = [run.seed for run in group.runs if run.summary is not None]
        rows += peer_rows(group.name, group.finished, collection.score_name, finished)
    return rows


def unfinished(collection: Collection) -> list[str]:
    """A sentence for each run that is not finished."""
    texts = []
    for group in collection.groups:
        for run in group.runs:
            if run.summary is None:
                last = _last_score(run)
                seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
                texts.append(
                    f"Unfinished: '{group.name}'{seed} is at step {run.step} of "
                    f"{run.config.steps}{last}."
                )
    return texts


def training_section(collection: Collection, palette: Mapping[str, str]) -> Section:
    """Curves of all loss terms, and of the scores during training."""
    section = Section("training", "Losses and scores during training")
    groups = collection.groups
    keys = dict.fromkeys(key for g in groups for run in g.runs for key in _keys(run))
    for title, chosen in (
        ("losses", [k for k in keys if "/" in k and not k.startswith(("seconds/", "val/"))]),
        ("scores", [k for k in keys if k.startswith("val/")]),
    ):
        panels = {key: series for key in chosen if (series := _series(groups, key))}
        if panels:
            alt = f"Curves of {', '.join(panels)} over the steps"
            section.show(
                curves(panels, palette, name=title, alt=alt, logarithmic=title == "losses")
            )
    if not section.blocks:
        section.say("Nothing has been logged yet.")
    else:
        section.say(
            "Losses are unweighted means over the steps between two rows of metrics.csv. Further "
            "seeds are drawn paler."
        )
    return section


def rate_section(collection: Collection, palette: Mapping[str, str]) -> Section:
    """The learning rate over the steps."""
    section = Section("learning-rate", "Learning rate")
    series = _series(collection.groups, "lr")
    if series:
        alt = "The learning rate over the steps"
        section.show(curves({"learning rate": series}, palette, name="rate", alt=alt))
    else:
        section.say("Nothing has been logged yet.")
    return section


def cost_section(collection: Collection) -> Section:
    """Seconds per training step, by part."""
    section = Section("cost", "Time of a training step")
    splits = {group.name: _seconds(group.runs[0]) for group in collection.groups}
    splits = {name: split for name, split in splits.items() if split}
    if not splits:
        section.say("Nothing has been logged yet.")
        return section
    section.show(cost_bars(splits, _in_order(splits)))
    parts = _in_order(splits)
    rows = [
        [name, *(_ms(split.get(part)) for part in parts), _ms(sum(split.values()))]
        for name, split in splits.items()
    ]
    table = TextTable(["ms per step", *parts, "total"], rows)
    section.blocks.append(Table(table, "Numbers"))
    return section


def setup_section(collection: Collection) -> Section:
    """The configuration of each run."""
    section = Section("setup", "Configurations")
    for group in collection.groups:
        run = group.shown
        section.blocks.append(Code(f"{group.name}: {run.config.out}", dump_config(run.config)))
    return section


def _last_score(run: Run) -> str:
    """The last score of an unfinished run, of the first score column."""
    key = next((key for key in _keys(run) if key.startswith("val/")), "")
    scores = _column([run], key)
    name = "mIoU" if key == "val/miou" else key
    return f"; {name} {100 * scores[0][1][-1]:.2f} in its last evaluation" if scores else ""


def _row(group: Group, score_name: str) -> ComparisonRow:
    own = group.finished
    first = own[0] if own else {}
    student = first.get("student", {})
    seconds = [summary["seconds_per_step"] for summary in own if "seconds_per_step" in summary]
    steps = [summary["steps"] for summary in own]
    memory = [summary["peak_memory"] for summary in own if "peak_memory" in summary]
    return ComparisonRow(
        group.name,
        group.scores,
        student.get("parameters"),
        student.get("flops"),
        sum(seconds) / len(seconds) if seconds else None,
        max(memory, default=None),
        group.role,
        score_name,
        sum(steps) / len(steps) if steps else None,
        any((run.folder / RECORD).is_file() for run in group.runs),
        [run.seed for run in group.runs if run.score is not None],
    )


def _on_students_set(row: ComparisonRow, facts: Mapping[str, Any]) -> ComparisonRow:
    """The row of a teacher that was trained on another dataset, with what students know of it."""
    score = facts.get("score", facts.get("miou"))
    return replace(
        row,
        name=f"{row.name}{ON_STUDENTS_SET}",
        scores=[] if score is None else [score],
        seeds=(),
        parameters=facts.get("parameters", row.parameters),
        flops=facts.get("flops", row.flops),
    )


def _bits(run: Run) -> str:
    """The bits of a quantised student's weights, and its size with them; empty for floats."""
    if run.config.quantize is None:
        return ""
    found = (run.summary or {}).get("quantization")
    size = f" ({found['bytes'] / 1e6:.2f} MB of {found['float_bytes'] / 1e6:.2f})" if found else ""
    return f"{run.config.quantize.bits}-bit weights{size}"


def _runs_table(collection: Collection) -> TextTable:
    header = ["run", "steps", "seeds", "student", "teacher", "methods", "data"]
    rows = []
    for group in collection.groups:
        config = group.shown.config
        done = min(run.step for run in group.runs)
        student = config.student
        names = [student.arch or student.checkpoint or NONE]
        if student.arch and not student.options.get("width") and "/" not in student.encoder:
            names.append(student.encoder if student.arch not in _own_architectures() else "")
        names.append(_bits(group.shown))
        steps = f"{done}" if done == config.steps else f"{done} of {config.steps}"
        rows.append(
            [
                group.name,
                steps,
                ", ".join(str(run.seed) for run in group.runs),
                " ".join(name for name in names if name),
                ", ".join(config.teachers) or NONE,
                ", ".join(config.methods) or NONE,
                _data(config.data),
            ]
        )
    return TextTable(header, rows)


def _data(config: DataConfig) -> str:
    """The name of the set, and whether a run learns from images without labels."""
    if config.labels == "none" or config.all_unlabelled:
        return f"{config.name}, no labels"
    if config.unlabeled is None:
        return config.name
    return f"{config.name}, {100 * config.unlabeled.share:.0f} % of a step unlabelled"


def _own_architectures() -> list[str]:
    from segkd import registry

    return registry.models.names()


def _any_summary(collection: Collection) -> Summary | None:
    summaries = (summary for group in collection.groups for summary in group.finished)
    return next((summary for summary in summaries if summary.get("teachers")), None)


def _keys(run: Run) -> Sequence[str]:
    return list(run.metrics[0]) if run.metrics else []


def _series(groups: Sequence[Group], key: str) -> Series:
    """(steps, values) of a column of metrics.csv by group and seed."""
    found = {group.name: _column(group.runs, key) for group in groups}
    return {name: seeds for name, seeds in found.items() if seeds}


def _column(runs: Sequence[Run], key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    seeds: list[tuple[np.ndarray, np.ndarray]] = []
    for run in runs:
        rows = [(float(row["step"]), float(row[key])) for row in run.metrics if row.get(key)]
        rows = [row for row in rows if math.isfinite(row[1])]
        if rows:
            steps, values = np.array(rows).T
            seeds.append((steps, values))
    return seeds


def _seconds(run: Run) -> dict[str, float]:
    """Seconds per step by part; of an unfinished run from metrics.csv."""
    if run.summary is not None:
        return run.summary.get("seconds", {})
    found = {}
    for key in _keys(run):
        if key.startswith("seconds/"):
            column = _column([run], key)
            if column:
                found[key.removeprefix("seconds/")] = float(column[0][1].mean())
    return found


def _in_order(splits: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The parts of a step in order."""
    order = ["data", "teacher", "student", "task", "method/", "backward", "update"]
    found = dict.fromkeys(part for split in splits.values() for part in split)

    def place(part: str) -> int:
        return next((n for n, name in enumerate(order) if part.startswith(name)), len(order))

    return sorted(found, key=place)


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1e3 * seconds:.1f}"
