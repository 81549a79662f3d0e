"""What summary.json of a run holds: scores, costs, times."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segkd.config.schema import RunConfig
from segkd.engine.placement import uncompiled
from segkd.engine.trainer import Trainer
from segkd.evaluation.evaluator import Outcome, Result
from segkd.metrics.cost import flops, parameters, peak_memory
from segkd.models.quantized import facts_of, stored_bytes

Summary = dict[str, Any]


def scores(value: float, name: str, prefix: str = "") -> dict[str, float]:
    """``{prefix}score``, and also ``{prefix}miou`` if the score is mIoU.

    Args:
        value: the score, 0 to 1.
        name: its name, such as ``mIoU``.
        prefix: of the keys.
    """
    own = {f"{prefix}miou": value} if name == Result.score_name else {}
    return own | {f"{prefix}score": value}


def score_of(facts: Mapping[str, Any]) -> float:
    """The score of a summary, which in version 0.1 has mIoU only; NaN if undefined."""
    score = facts.get("score", facts.get("miou"))
    return math.nan if score is None else score


def costs(network: nn.Module, config: RunConfig) -> dict[str, float | None]:
    """Parameters and FLOPs of a network at the training size; FLOPs are None if that varies."""
    size = config.data.crop or config.data.resize
    with uncompiled(config.runtime):
        return {
            "parameters": parameters(network),
            "flops": flops(network, size) if size else None,
        }


def summarize(
    config: RunConfig,
    folder: Path,
    trainer: Trainer,
    result: Outcome,
    *,
    best: float,
    teachers: Mapping[str, Any],
    peers: Mapping[str, Any],
) -> Summary:
    """The summary of a finished run.

    Args:
        config: the run.
        folder: its folder.
        trainer: after the last step.
        result: of the last evaluation.
        best: best score of all evaluations.
        teachers: scores and costs of the teachers by name.
        peers: scores of the networks that learned beside the student by name.
    """
    seconds = trainer.tally.seconds_per_step()
    data = trainer.parts.train_set
    return {
        "name": str(folder),
        "steps": config.steps,
        "seed": config.seed,
        **scores(best, result.score_name, "best_"),
        "student": costs(trainer.student, config),
        "teachers": dict(teachers),
        **_quantization(trainer.network),
        **_peers(trainer, config, peers),
        "training_parameters": sum(p.numel() for p in trainer.objective.parameters()),
        "training_images": {
            "labelled": len(data) - data.unlabelled,
            "unlabelled": data.unlabelled,
        },
        "seconds_per_step": sum(seconds.values()),
        "median_seconds_per_step": trainer.tally.median_seconds_per_step(),
        "seconds": seconds,
        "peak_memory": peak_memory(trainer.runtime.device),
        "processes": trainer.runtime.world,
        "skipped_in_training": len(trainer.tally.unusable(trainer.runtime)),
        "without_teacher": trainer.tally.left_out(trainer.runtime),
        **result.to_dict(),
    }


def _quantization(network: nn.Module) -> dict[str, Any]:
    """How a student is quantised, and its size in bytes with and without."""
    facts = facts_of(network)
    if facts is None:
        return {}
    sizes = {"bytes": stored_bytes(network, facts), "float_bytes": stored_bytes(network, None)}
    settings = facts.settings.model_dump(mode="json")
    return {"quantization": {**settings, "layers": len(facts.layers), **sizes}}


def _peers(
    trainer: Trainer, config: RunConfig, found: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """``peers``: scores and costs by name; nothing for a run without any."""
    networks = trainer.peers.networks.items()
    rows = {name: {**found[name], **costs(network, config)} for name, network in networks}
    return {"peers": rows} if rows else {}


def last_lines(config: RunConfig, summary: Summary, result: Outcome) -> Iterator[str]:
    """The last lines of a run's log: images without a teacher; score, time and memory."""
    yield from _about_left_out(config, summary)
    parts = sorted(summary["seconds"].items(), key=lambda item: -item[1])
    split = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in parts)
    peers = "".join(
        f"; {name} {100 * facts['score']:.2f}" for name, facts in summary.get("peers", {}).items()
    )
    yield (
        f"{summary['name']}: {result.score_name} {100 * result.score:.2f}{peers} after "
        f"{summary['steps']} steps; {summary['seconds_per_step']:.3f} s/step (ms: {split}); peak "
        f"memory {summary['peak_memory'] / 2**30:.2f} GiB"
    )


def _about_left_out(config: RunConfig, summary: Mapping[str, Any]) -> Iterator[str]:
    """Lines about images that were trained without a teacher, as it had no prediction."""
    shown = config.steps * config.data.batch_size
    for name, count in summary["without_teacher"].items():
        if count:
            sign = "WARNING: " if 2 * count > shown else ""
            yield (
                f"{sign}teacher {name}: had no prediction for {count} of the {shown} images of all "
                "steps, which were trained without it"
            )


def finished_before(config: RunConfig, summary: Mapping[str, Any]) -> str:
    """The message that a run is finished already, and how to start another one."""
    score = summary.get("score", summary.get("miou"))
    shown = "no score" if score is None else f"{100 * score:.2f}"
    return (
        f"{config.out}: already finished: {summary.get('score_name', 'mIoU')} {shown} after "
        f"{summary['steps']} steps. A new run: out=runs/NAME; a longer one: steps=N, if the "
        "schedule allows it"
    )
