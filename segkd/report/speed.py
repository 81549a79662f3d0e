"""The section about latency and size of the networks."""

import torch

from segkd.evaluation.results import NONE
from segkd.evaluation.table import TextTable
from segkd.metrics.cost import flops, parameters
from segkd.report.blocks import Section, Table
from segkd.report.evidence import Evidence


def speed_section(evidence: Evidence) -> Section:
    """Size and latency of the networks."""
    section = Section("speed", "Latency and size")
    if not evidence.actors:
        section.say("There is no network to measure yet.")
        return section
    teacher = evidence.actor("teacher")
    slow = evidence.seconds.get(teacher.name) if teacher else None
    rows = []
    for actor in evidence.actors:
        own = actor.network.state_dict().values()
        size = sum(value.numel() * value.element_size() for value in own)
        operations = flops(actor.network, evidence.size) if evidence.size else None
        seconds = evidence.seconds.get(actor.name)
        rows.append(
            [
                actor.name,
                f"{parameters(actor.network) / 1e6:.2f}",
                f"{size / 2**20:.2f}",
                NONE if operations is None else f"{operations / 1e9:.2f}",
                NONE if seconds is None else f"{1e3 * seconds:.1f}",
                NONE if seconds is None else f"{1 / seconds:.1f}",
                NONE if seconds is None or slow is None else f"{slow / seconds:.1f}",
            ]
        )
    header = ["network", "params M", "weights MiB", "GFLOPs", "ms/image", "images/s", "× teacher"]
    section.blocks.append(Table(TextTable(header, rows)))
    section.say(_how(evidence))
    return section


def _how(evidence: Evidence) -> str:
    """How the numbers were measured."""
    if evidence.size is None:
        return "Without an image there is no input size to count operations for."
    height, width = evidence.size
    operations = "GFLOPs: a multiply-add counted as two."
    if not evidence.seconds:
        return f"For one image of {height}x{width}. {operations} Latency was not measured."
    threads = torch.get_num_threads()
    where = f"{evidence.runtime.device}, {threads} thread{'s' * (threads > 1)}"
    return (
        f"One image of {height}x{width} in eager mode on {where}: medians, the networks taking "
        f"turns. {operations} `segkd export` makes faster files and measures them."
    )
