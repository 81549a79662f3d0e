"""The sections about differences between networks: classes, confusions, boundaries, images."""

import math
from collections.abc import Mapping

import numpy as np

from segkd.evaluation.table import TextTable, percent, points
from segkd.metrics.boundary import boundary_iou, mean_boundary_iou
from segkd.metrics.confusion import iou, mean_iou
from segkd.report.blocks import Gallery, Section, Table
from segkd.report.charts import class_bars, color_key, confusion_chart
from segkd.report.collect import Collection, Group
from segkd.report.evidence import Evidence
from segkd.report.pictures import choose, draw

Scores = dict[str, dict[str, float]]
_NOTHING = "There is no evaluation to show yet."
_MOST_CONFUSIONS = 10
_WORDS = ("gains most over", "loses most against")


def classes_section(
    collection: Collection, evidence: Evidence, palette: Mapping[str, str]
) -> Section:
    """IoU of each class for teacher, student baseline, and student."""
    section = Section("classes", "Classes")
    scores = class_scores(collection, evidence)
    if not scores:
        section.say(_NOTHING)
        return section
    pair = _gain_pair(collection, scores)
    section.show(
        class_bars(scores, palette, name="class-iou", measure="IoU", gain_of=pair),
        f"On the right: gain of {pair[1]} over {pair[0]} in points of IoU." if pair else "",
    )
    for actor in evidence.actors:
        group = next((g for g in collection.groups if g.name == actor.name), None)
        if group is not None and not group.finished:
            section.say(f"{actor.name} is unfinished: this is its best.pt of step {actor.step}.")
    if not evidence.complete:
        section.say(_number_of_images(evidence))
    table_scores = _with_others(scores, collection) if evidence.complete else scores
    section.blocks.append(Table(_class_table(table_scores, pair), "Numbers"))
    return section


def class_scores(collection: Collection, evidence: Evidence) -> Scores:
    """IoU by network and class: means over finished seeds, else of the report's evaluation.

    If only some images were evaluated, the scores of all networks are of those.
    """
    found: Scores = {}
    classes = () if evidence.dataset is None else evidence.dataset.classes
    groups = {group.name: group for group in collection.groups}
    for name in _names(collection, evidence):
        stored = _stored_iou(groups.get(name), collection, name) if evidence.complete else None
        seen = evidence.look_of(name)
        if stored:
            found[name] = stored
        elif seen is not None:
            values = iou(seen.matrix).tolist()
            found[name] = dict(zip(classes, values, strict=True))
    # The student's classes, which are those of the report's images.
    own = found.get(collection.student.name) or next(iter(found.values()), {})
    return {name: scores for name, scores in found.items() if scores.keys() == own.keys()}


def confusion_section(collection: Collection, evidence: Evidence) -> Section:
    """The student's confusion matrix and its most frequent confusions."""
    section = Section("confusion", "Confusion matrix")
    student = collection.student
    matrix, classes = _matrix(student, evidence)
    if matrix is None:
        section.say(_NOTHING)
        return section
    section.show(
        confusion_chart(matrix, classes, name="confusion-matrix"),
        f"{student.name}: share of each label's pixels, in %, that is predicted as each class.",
    )
    baseline, other = collection.role("baseline"), None
    if baseline is not None and baseline != student:
        found, own = _matrix(baseline, evidence)
        other = found if own == classes else None
    table = _confusions(matrix, other, classes, student.name, baseline.name if baseline else "")
    section.blocks.append(Table(table))
    return section


def boundary_section(
    collection: Collection, evidence: Evidence, palette: Mapping[str, str]
) -> Section:
    """Boundary IoU of all evaluated networks."""
    section = Section("boundary", "Boundaries")
    found = {actor.name: evidence.look_of(actor.name) for actor in evidence.actors}
    looks = {name: seen for name, seen in found.items() if seen is not None}
    dataset = evidence.dataset
    if not looks or dataset is None:
        section.say(_NOTHING)
        return section
    scores = {
        name: dict(zip(dataset.classes, boundary_iou(seen.boundary).tolist(), strict=True))
        for name, seen in looks.items()
    }
    pair = _gain_pair(collection, scores)
    rows = [
        [
            name,
            percent(mean_iou(seen.matrix)),
            percent(mean_boundary_iou(seen.boundary)),
        ]
        for name, seen in looks.items()
    ]
    table = TextTable(["network", "mIoU %", "boundary mIoU %"], rows)
    section.blocks.append(Table(table))
    section.say(
        "Boundary IoU (arXiv 2103.16562) is the IoU of the pixels within 2 % of the image's "
        f"diagonal of their class's border. {_number_of_images(evidence)}"
    )
    measure = "boundary IoU"
    section.show(class_bars(scores, palette, name="class-boundary", measure=measure, gain_of=pair))
    section.blocks.append(Table(_class_table(scores, pair), "Numbers"))
    return section


def images_section(collection: Collection, evidence: Evidence) -> Section:
    """The images on which the student gains and loses most."""
    section = Section("images", "Images")
    student, reference = evidence.actor(""), evidence.reference
    student = student or (evidence.actors[-1] if evidence.actors else None)
    dataset = evidence.dataset
    if student is None or dataset is None or student.fingerprint not in evidence.looks:
        section.say(_NOTHING)
        return section
    own = evidence.looks[student.fingerprint]
    other = None if reference is None else evidence.looks.get(reference.fingerprint)
    chosen = choose(own, other)
    if reference is None:
        titles = ["Best", "Worst"]
    else:
        titles = [f"{student.name} {word} {reference.name}" for word in _WORDS]
        section.say(
            f"By mean IoU over the classes of an image. Disagreement: green where only "
            f"{student.name} is right, orange where only {reference.name} is, grey where both "
            "are wrong."
        )
    section.show(color_key(dataset.classes, dataset.palette))
    for name, title, places in zip(
        ("gains", "losses"), titles, (chosen.gains, chosen.losses), strict=True
    ):
        arguments = evidence.actors, evidence.looks, reference, evidence.runtime, evidence.config
        shown = draw(places, dataset, *arguments) if places else []
        if shown:
            section.blocks.append(Gallery(name, title, shown))
        else:
            section.say(f"{title}: no image.")
    steps = {actor.name: actor.step for actor in evidence.actors if actor.step is not None}
    kept = ", ".join(f"{name} after step {step}" for name, step in steps.items())
    section.say(f"Predictions of best.pt: {kept}. {_number_of_images(evidence)}")
    return section


def _names(collection: Collection, evidence: Evidence) -> list[str]:
    """Names of teacher, student baseline, student."""
    names = [actor.name for actor in evidence.actors]
    for role in ("teacher", "baseline"):
        group = collection.role(role)
        if group is not None and group.name not in names:
            names.insert(0 if role == "teacher" else len(names), group.name)
    student = collection.student.name
    return [*(name for name in names if name != student), student]


def _with_others(scores: Scores, collection: Collection) -> Scores:
    """The scores, and stored ones of further runs with the same classes."""
    found, classes = dict(scores), next(iter(scores.values())).keys()
    for group in collection.groups:
        stored = _stored_iou(group, collection, group.name)
        if stored and stored.keys() == classes:
            found.setdefault(group.name, stored)
    return found


def _stored_iou(group: Group | None, collection: Collection, name: str) -> dict[str, float] | None:
    """Stored IoU by class: of a group's finished seeds, or of a teacher."""
    if (
        group is not None
        and group == collection.role("teacher")
        and collection.teacher_is_elsewhere
    ):
        facts = [collection.facts_of_teacher]
    elif group is None:
        summaries = [summary for other in collection.groups for summary in other.finished]
        facts = [summary.get("teachers", {}).get(name, {}) for summary in summaries]
    else:
        facts = group.finished
    stored = [item["iou"] for item in facts if item.get("iou")]
    if group is None:
        stored = stored[:1]
    if not stored:
        return None
    return {
        key: _mean([math.nan if iou[key] is None else iou[key] for iou in stored])
        for key in stored[0]
    }


def _mean(values: list[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def _gain_pair(collection: Collection, scores: Mapping[str, object]) -> tuple[str, str] | None:
    """Student baseline and student, if both have scores."""
    baseline, student = collection.role("baseline"), collection.student
    if baseline is None or baseline == student:
        return None
    names = baseline.name, student.name
    return names if all(name in scores for name in names) else None


def _class_table(scores: Scores, pair: tuple[str, str] | None) -> TextTable:
    rows = []
    for key in next(iter(scores.values())):
        row = [key, *(percent(own[key], "absent") for own in scores.values())]
        if pair:
            row.append(points(scores[pair[1]][key] - scores[pair[0]][key]))
        rows.append(row)
    means = {name: _mean(list(own.values())) for name, own in scores.items()}
    gains = [points(means[pair[1]] - means[pair[0]])] if pair else []
    rows.append(["mean", *map(percent, means.values()), *gains])
    return TextTable(["class", *scores, *(["gain"] if pair else [])], rows, footer=True)


def _matrix(group: Group, evidence: Evidence) -> tuple[np.ndarray | None, list[str]]:
    """Confusion matrix (K, K) over all finished seeds, else of the report's evaluation."""
    stored = [summary for summary in group.finished if summary.get("matrix")]
    if stored and evidence.as_trained:
        return np.sum([np.array(item["matrix"]) for item in stored], axis=0), stored[0]["classes"]
    seen = evidence.look_of(group.name)
    if seen is None or evidence.dataset is None:
        return None, []
    return seen.matrix.numpy(), list(evidence.dataset.classes)


def _confusions(
    matrix: np.ndarray, other: np.ndarray | None, classes: list[str], name: str, alone: str
) -> TextTable:
    """The most frequent pairs of label and wrong prediction."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    rows = []
    for label, guess in zip(*np.unravel_index(places, wrong.shape), strict=True):
        if wrong[label, guess]:
            row = [classes[label], classes[guess], _share(matrix, label, guess)]
            rows.append(row if other is None else [*row, _share(other, label, guess)])
    header = ["label", "predicted as", f"{name} %", *([] if other is None else [f"{alone} %"])]
    notes = ["The most frequent confusions, as shares of the label's pixels."]
    return TextTable(header, rows, notes=notes)


def _share(matrix: np.ndarray, label: int, guess: int) -> str:
    total = matrix[label].sum()
    return percent(matrix[label, guess] / total if total else math.nan)


def _number_of_images(evidence: Evidence) -> str:
    seen = next(iter(evidence.looks.values()), None)
    if seen is None or evidence.dataset is None:
        return ""
    count = len(seen.indices)
    return f"On {count} of {len(evidence.dataset)} images of split '{evidence.dataset.split}'."
