"""Writes a report from folders of runs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segkd.evaluation.plots import run_colors
from segkd.files import require_place
from segkd.report.blocks import Section
from segkd.report.collect import Collection, Role, collect
from segkd.report.evidence import Bar, Evidence, gather
from segkd.report.insight import (
    boundary_section,
    classes_section,
    confusion_section,
    images_section,
)
from segkd.report.page import Page
from segkd.report.sections import (
    assistants_section,
    cost_section,
    rate_section,
    result_section,
    setup_section,
    training_section,
)
from segkd.report.speed import speed_section

_OMITTED = (
    "These runs detect lanes: the sections of semantic segmentation (classes, confusion matrix, "
    "boundaries and images) are omitted."
)


@dataclass(frozen=True)
class Written:
    """The files of a report.

    Attributes:
        html, markdown: paths of the pages.
        notes: what could not be shown.
    """

    html: Path
    markdown: Path
    notes: list[str]


def make_report(
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    latency: bool = True,
    bar: Bar,
) -> Written:
    """Writes report.html, and report.md with its images.

    Args:
        paths: folders of runs or recipes, finished or not.
        out: folder to write to; default: ``report`` in the folder, or in the current folder for
            several.
        baseline: name of the student baseline; default: found from the configurations.
        overrides: keys of ``data``, ``eval`` and ``runtime``, e.g. the folder of the images.
        limit: number of images to evaluate; default: all.
        latency: whether to measure latencies.
        bar: opens a progress bar with a title.

    Raises:
        SegKDError: no runs, or wrong arguments. The page says what is merely missing.
        OSError: the folder cannot be made, as it is below a file.
    """
    collection = collect(paths, baseline)
    folder = out or collection.folder
    require_place(folder)
    evidence = gather(
        collection, folder, overrides=overrides, limit=limit, latency=latency, bar=bar
    )
    made = time.strftime("%Y-%m-%d %H:%M")
    page = Page(collection.title, sections(collection, evidence), made)
    return Written(*page.write(folder), evidence.notes)


def sections(collection: Collection, evidence: Evidence) -> list[Section]:
    """The sections of the page, in order."""
    lanes = collection.task != "segmentation"
    roles: dict[str, Role] = {group.name: group.role for group in collection.groups}
    roles |= {actor.name: actor.role for actor in evidence.actors if actor.name not in roles}
    palette = run_colors(list(roles), roles)
    result = result_section(collection, _OMITTED if lanes else "")
    for note in evidence.notes:
        result.say(note)
    assistants = assistants_section(collection)
    return [
        result,
        *([assistants] if assistants.blocks else []),
        *([] if lanes else pictured(collection, evidence, palette)),
        training_section(collection, palette),
        rate_section(collection, palette),
        cost_section(collection),
        speed_section(evidence),
        setup_section(collection),
    ]


def pictured(
    collection: Collection, evidence: Evidence, palette: Mapping[str, str]
) -> list[Section]:
    """The sections of semantic segmentation."""
    return [
        classes_section(collection, evidence, palette),
        images_section(collection, evidence),
        boundary_section(collection, evidence, palette),
        confusion_section(collection, evidence),
    ]
