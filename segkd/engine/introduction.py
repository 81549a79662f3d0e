"""With what a run begins: columns of its log, lines about data, networks, taps, warnings."""

from collections.abc import Iterator
from pathlib import Path

from segkd import registry
from segkd.config.networks import ModelConfig, TeacherConfig
from segkd.config.schema import RunConfig
from segkd.engine.optim import first_step, preparation
from segkd.engine.quantizer import about
from segkd.engine.setup import Components
from segkd.engine.trainer import Trainer
from segkd.engine.unlabeled import about_labels
from segkd.evaluation.evaluator import result_columns

_WARNING = "WARNING: "
_SHOWN = 3  # names of frozen parameters
_READERS: dict[
    str, dict[str, tuple[str, ...]]
] = {  # the names that read a key, by block and key; all other keys are read by all
    "optim": {"momentum": ("sgd",), "betas": ("adamw",)},
    "schedule": {
        "power": ("poly",),
        "gamma": ("step",),
        "min_lr_ratio": ("poly", "cosine", "step", "one_cycle"),
        **dict.fromkeys(("pct_start", "div_factor", "final_div_factor"), ("one_cycle",)),
    },
}


def columns(trainer: Trainer) -> list[str]:
    """The columns of metrics.csv."""
    methods = [f"method/{name}" for name in trainer.methods]
    weighing = ["weights"] if trainer.objective.auto.columns() else []
    parts = ["data", "teacher", "student", "task", *methods, *weighing, "backward", "update"]
    return [
        *trainer.terms,
        "lr",
        *trainer.objective.auto.columns(),
        *result_columns(trainer.parts.val_set, trainer.config.eval),
        *(f"val/{name}" for name in trainer.peers.networks),
        *(f"seconds/{name}" for name in parts),
    ]


def beginning(config: RunConfig, trainer: Trainer, folder: Path) -> str:
    """The first line of a new run."""
    count = sum(p.numel() for p in trainer.student.parameters() if p.requires_grad)
    data = f"{len(trainer.parts.train_set)} images of {config.data.name}"
    return f"{folder}: {config.steps} steps, {data}, {count:,} parameters"


def resuming(trainer: Trainer, folder: Path, checkpoint: Path, processes: int) -> Iterator[str]:
    """The first lines of a resumed run.

    Args:
        trainer: with the restored state.
        folder: folder of the run.
        checkpoint: its last.pt.
        processes: number of processes that saved it.
    """
    yield f"{folder}: resuming from step {trainer.step}"
    world = trainer.runtime.world
    if processes != world:
        yield (
            f"WARNING: {checkpoint} was saved by {processes} process(es), now there are {world}: "
            "the numbers will differ from those of an uninterrupted run (random numbers, batch "
            "statistics)"
        )


def components(config: RunConfig, trainer: Trainer) -> Iterator[str]:
    """Lines about data, weights, normalisation, taps and frozen parameters."""
    parts = trainer.parts
    for warning in parts.warnings:
        yield f"WARNING: {warning}"
    yield from _unread(config)
    yield from _encoders(config)
    yield from parts.notes
    yield from about_labels(config, parts, trainer.confident)
    yield from _networks(parts)
    for cache in parts.teachers.caches.values():
        yield from cache.about
    if parts.quantizer:
        yield from about(parts.student, parts.quantizer)
    for name, peer in trainer.peers.networks.items():
        count = sum(p.numel() for p in peer.parameters() if p.requires_grad)
        yield f"peer {name}: {peer.title}, {count:,} parameters; {peer.normalization}"
        if peer.normalization.warning:
            yield f"WARNING: peer {name}: {peer.normalization.warning}"
    for name, taps in parts.chosen_taps.items():
        yield f"methods.{name}: default taps of these networks: {taps}"
    yield from _preparations(config, trainer)
    images = config.data.batch_size // config.optim.accumulate
    for name, method in trainer.methods.items():
        for note in method.notes(config.steps, images):
            sign = _WARNING if note.startswith(_WARNING) else ""
            yield f"{sign}methods.{name}: {note.removeprefix(_WARNING)}"
    if trainer.frozen:
        more = " …" if len(trainer.frozen) > _SHOWN else ""
        shown = ", ".join(trainer.frozen[:_SHOWN]) + more
        yield f"no loss reaches {len(trainer.frozen)} parameters, frozen: {shown}"


def _unread(config: RunConfig) -> Iterator[str]:
    """Warnings about keys that the chosen optimiser or schedule does not read."""
    for title, readers in _READERS.items():
        block = getattr(config, title)
        for key, names in readers.items():
            # A stored config has all keys, also those with their default values.
            default = type(block).model_fields[key].default
            if block.name not in names and getattr(block, key) != default:
                yield (
                    f"WARNING: {title}.{key} is of {', '.join(names)}, and {title}.name is "
                    f"{block.name}: it changes nothing"
                )


def _encoders(config: RunConfig) -> Iterator[str]:
    """Warnings about encoders of networks that have none to choose."""
    blocks: dict[str, ModelConfig | TeacherConfig] = {"student": config.student}
    blocks |= {f"teachers.{name}": teacher for name, teacher in config.teachers.items()}
    for where, block in blocks.items():
        default = type(block).model_fields["encoder"].default
        if block.encoder == default or block.arch not in registry.models:
            continue
        kind = registry.models.get(block.arch)
        # A network of the user may read the key without saying so.
        if kind.__module__.startswith("segkd.") and not kind.chooses_encoder:
            yield (
                f"WARNING: {where}.encoder={block.encoder} changes nothing: {block.arch} has no "
                "encoder to choose"
            )


def _preparations(config: RunConfig, trainer: Trainer) -> Iterator[str]:
    """Lines about entries that first train inner parameters, and then teach."""
    total = config.steps
    for name, method in trainer.methods.items():
        phase, start = preparation(method, total), first_step(method, total)
        steps = None if phase is None else len(phase)
        if phase and method.teaches_meanwhile:
            yield _meanwhile(name, phase, total)
        elif steps and start < total:
            yield (
                f"methods.{name}: its own layers learn for {steps} steps, then they are frozen and "
                f"it teaches from step {start} on"
            )
        elif steps:
            yield (
                f"WARNING: methods.{name}: its own layers learn for {steps} steps, but it would "
                f"teach from step {start} on, and the run has {total} steps"
            )
        elif steps == 0 and config.init_from is None:
            yield (
                f"WARNING: methods.{name}: its own layers learn for 0 steps, so it teaches with "
                "random ones. Give them steps, or `init_from` a run that has trained them"
            )


def _meanwhile(name: str, phase: range, total: int) -> str:
    learn = f"methods.{name}: its own layers learn for {len(phase)} steps"
    if phase.stop < total:
        return f"{learn}; the terms that need them teach from step {phase.stop} on"
    return (
        f"WARNING: {learn}, until step {phase.stop}, and the run has {total} steps: the terms that "
        "need them never teach. Give them fewer steps"
    )


def _networks(parts: Components) -> Iterator[str]:
    for name, match in parts.matches().items():
        yield f"{name}: {match}"
    for name, member in parts.teachers.members.items():
        if member.about_classes:
            yield f"teacher {name}: {member.about_classes}"
    for name, network in parts.networks().items():
        yield f"{name}: {network.normalization}"
        if network.normalization.warning:
            yield f"WARNING: {name}: {network.normalization.warning}"
        if network.licence is not None:
            yield f"{name}: licence {network.licence or 'unknown: look at where it came from'}"
