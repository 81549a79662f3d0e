"""Active mixup: a student from few images without labels, and few queries to a black box.

Wang, Li, Wang, Gong: Neural Networks Are More Productive Teachers Than Human Raters: Active Mixup
for Data-Efficient Knowledge Distillation from a Blackbox Model. CVPR 2020, arXiv 2003.13960.

The teacher predicts the N real images, and a student is trained on them. Then, in each round, pairs
of real images are mixed with weights 0.30, 0.34, …, 0.70; of each pair the weight at which the
student is least confident is kept; the pairs of lowest confidence are queried and added, and the
student is trained from scratch on all images so far.

For dense prediction the confidence of an image is the mean over its pixels of the largest class
probability. Pairs are many (499,000 for 1000 images), so only ``pool`` of them, drawn anew in each
round, are scored. A mixed image is rounded to bytes once: scored, queried, stored and trained on
are the same numbers, where public code scores one rounding and trains on another.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkd import registry
from segkd.config.black_box import BlackBoxConfig
from segkd.config.schema import RunConfig, TeacherConfig
from segkd.data.base import Dataset, UnlabeledConfig
from segkd.data.reading import read_image
from segkd.data.transforms import resize_image
from segkd.data.writing import write_image
from segkd.engine.mixup_plan import (
    Mix,
    MixupPlan,
    Pair,
    mixed,
    mixed_name,
    mixed_pair,
    read_pairs,
    real_name,
    require_same_plan,
    store_plan,
    write_pairs,
)
from segkd.engine.run import train_run
from segkd.engine.setup import open_dataset, open_training_set
from segkd.engine.teacher_store import open_store
from segkd.errors import ConfigError
from segkd.files import write_text
from segkd.inference.store import PredictionStore
from segkd.inference.views import padded_outputs
from segkd.models.build import network_from_file
from segkd.runtime import Runtime, derive_seed

WEIGHTS = tuple(round(0.30 + 0.04 * step, 2) for step in range(11))
_KEPT = 200  # images in memory


def active_mixup(
    config: RunConfig, teacher: str, plan: MixupPlan, tell: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Trains a student per round; the same call goes on with an interrupted one.

    Args:
        config: the run of each round; its training images are used without labels, and ``out``,
            ``data.unlabeled``, ``task.weight`` and ``teachers`` are replaced.
        teacher: name of the teacher.
        plan: rounds and budget.
        tell: called with lines of text.

    Returns:
        A row per round: ``round``, ``images``, ``queries``, ``score``, ``score_name``.

    Raises:
        SegKDError: the teacher, the images or a run cannot be used, or the folder was begun with
            other options.
    """
    _check(config, teacher, plan)
    val_set = open_dataset(config, config.data.val_split)
    real = open_training_set(config, val_set)
    count = min(len(real), plan.images or len(real))
    if count < 3:
        raise ConfigError(f"active mixup needs 3 images to mix or more, got {count}")
    _require_pairs(plan, count)
    module, store = _begun(config, teacher, plan, count, val_set)
    tell(f"{plan.out}: {count} real images, {count + plan.rounds * plan.queries} queries in all")
    names = [_add_real(plan, real, index, module, store) for index in range(count)]
    rows: list[dict[str, Any]] = []
    taken: set[tuple[int, int]] = set()
    for number in range(plan.rounds + 1):
        if number:
            chosen = _chosen(config, plan, number, count, taken)
            taken |= {(pair.first, pair.second) for pair in chosen}
            for place, pair in enumerate(chosen):
                names.append(mixed_name(number, place))
                _add_mixed(plan, config, number, place, pair, module, store)
        write_text(plan.out / f"round{number}.txt", "\n".join(names) + "\n")
        # Not extended to more steps: the pairs of a round were chosen by the student before it.
        summary = train_run(_run(config, teacher, plan, number), extend=False)
        rows.append(
            {
                "round": number,
                "images": len(names),
                "queries": len(names),
                "score": summary["score"],
                "score_name": summary["score_name"],
            }
        )
        write_text(plan.out / "rounds.json", json.dumps(rows, indent=2) + "\n")
    return rows


def pair_at(number: int, count: int) -> tuple[int, int]:
    """The pair of a number in index rotation: (j, j − i) for i = 1, 2, … and j from 0.

    Args:
        number: 0 to ``pair_count(count) - 1``.
        count: number of images.
    """
    shift, first = divmod(number, count)
    return first, (first - shift - 1) % count


def pair_count(count: int) -> int:
    """The number of pairs of index rotation: no unordered pair twice; all if ``count`` is odd."""
    return count * ((count - 1) // 2)


@torch.no_grad()
def confidence(student: nn.Module, images: Tensor) -> Tensor:
    """(B,): the mean over pixels of the largest class probability.

    Args:
        student: returns ``Outputs``; in eval mode.
        images: (B, 3, H, W) uint8.
    """
    outputs, extent = padded_outputs(student, images)
    rows, columns = (max(1, round(side)) for side in extent)
    highest = outputs.logits[:, :, :rows, :columns].float().softmax(1).amax(1)
    return highest.flatten(1).mean(1)


def least_confident(
    student: nn.Module,
    image: Callable[[int], np.ndarray],
    pairs: Sequence[tuple[int, int]],
    mix: Mix = "mixup",
    resize: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> list[Pair]:
    """Each pair with the weight at which the student is least confident.

    Args:
        student: in eval mode, on ``device``.
        image: the real image (H, W, 3) at a position.
        pairs: positions of two of them.
        mix: how they are mixed.
        resize: (h, w) to which mixed images are resized, as in training.
        device: of the student; None: the CPU.
    """
    found = []
    for first, second in pairs:
        tries = [mixed(image(first), image(second), weight, mix) for weight in WEIGHTS]
        tries = [one if resize is None else resize_image(one, resize) for one in tries]
        batch = torch.from_numpy(np.stack(tries).transpose(0, 3, 1, 2).copy()).to(device)
        values = confidence(student, batch)
        lowest = int(values.argmin())
        found.append(Pair(first, second, WEIGHTS[lowest], float(values[lowest])))
    return found


def _check(config: RunConfig, teacher: str, plan: MixupPlan) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("active mixup runs in one process: start it without torchrun")
    for name, entry in config.methods.items():
        if entry.teacher not in (None, "", teacher):
            raise ConfigError(
                f"methods.{name}: its teacher is '{entry.teacher}', and active mixup has "
                f"'{teacher}' alone. Leave it out: methods.{name}=null"
            )
        needs = registry.methods.get(entry.method or name)(entry).needs
        stored = set(needs.teacher) <= {"logits"} and needs.accepts_log_prob
        stored = stored and not needs.teacher_gradient
        if needs.rewrites_batch or (needs.teacher and not stored):
            what = "makes new images" if needs.rewrites_batch else "needs logits or features"
            raise ConfigError(
                f"methods.{name}: {what}, and active mixup stores the teacher's probabilities of "
                f"its images. Use a method on probabilities, such as kd: methods.{name}=null"
            )
    if not config.methods:
        raise ConfigError("active mixup has no labels, only a teacher: add one, methods.kd={}")
    if plan.rounds < 1 or plan.queries < 1:
        raise ConfigError("--rounds and --queries must be 1 or more")


def _require_pairs(plan: MixupPlan, count: int) -> None:
    """Refuses rounds for which ``count`` real images have too few pairs, before any is queried."""
    if plan.select == "confidence" and plan.pool is not None and plan.pool < plan.queries:
        raise ConfigError(
            f"--pool {plan.pool}: the {plan.queries} pairs of --queries are chosen among as many, "
            "or more. Raise it, or leave it out"
        )
    most = pair_count(count) // plan.rounds if plan.rounds else plan.queries
    if plan.queries > most:
        raise ConfigError(
            f"{count} real images have {pair_count(count)} pairs, and {plan.rounds} rounds of "
            f"--queries {plan.queries} need {plan.rounds * plan.queries}: lower it to {most}, or "
            "take more images"
        )


def _begun(
    config: RunConfig, teacher: str, plan: MixupPlan, count: int, data: Dataset
) -> tuple[nn.Module, PredictionStore]:
    """The teacher and its predictions in the folder, which has this plan from now on."""
    require_same_plan(plan, count)
    folder = plan.out / "predictions"
    module, store = open_store(
        config, teacher, folder, stride=plan.stride, top_k=plan.top_k, data=data
    )
    store_plan(plan, count)
    store.begin()
    return module, store


def _run(config: RunConfig, teacher: str, plan: MixupPlan, number: int) -> RunConfig:
    """The run of a round: the listed images, no labels, and stored predictions."""
    box = BlackBoxConfig(predictions=plan.out / "predictions", stride=plan.stride)
    listed = plan.out / f"round{number}.txt"
    unlabeled = UnlabeledConfig(root=plan.out / "images", list=listed.absolute(), share=1)
    return config.model_copy(
        update={
            "out": plan.out / "runs" / f"round{number}",
            "teachers": {teacher: TeacherConfig(black_box=box)},
            "task": config.task.model_copy(update={"weight": 0.0}),
            "data": config.data.model_copy(update={"unlabeled": unlabeled}),
        }
    )


def _add_real(
    plan: MixupPlan, data: Dataset, index: int, teacher: nn.Module, store: PredictionStore
) -> str:
    """Copies and queries a real image unless that was done before; returns its name."""
    name = real_name(index)
    path = plan.image(name)
    if not path.is_file():
        write_image(path, data.read_unlabelled(index).image)
    if not store.file(name).is_file():
        store.add(teacher, name, read_image(path))
    return name


def _add_mixed(
    plan: MixupPlan,
    config: RunConfig,
    number: int,
    place: int,
    pair: Pair,
    teacher: nn.Module,
    store: PredictionStore,
) -> None:
    """Writes and queries a mixed image unless that was done before."""
    name = mixed_name(number, place)
    path = plan.image(name)
    if not path.is_file():
        write_image(path, mixed_pair(plan, pair, plan.mix))
    if not store.file(name).is_file():
        store.add(teacher, name, read_image(path))


def _chosen(
    config: RunConfig, plan: MixupPlan, number: int, count: int, taken: set[tuple[int, int]]
) -> list[Pair]:
    """The pairs of a round, from its file if they have been chosen before."""
    path = plan.pairs(number)
    if path.is_file():
        return read_pairs(path)
    draw = np.random.default_rng(derive_seed(config.seed, "active mixup", number))
    free = [n for n in draw.permutation(pair_count(count)) if pair_at(int(n), count) not in taken]
    pairs = [pair_at(int(n), count) for n in free[: plan.drawn]]
    if plan.select == "random":
        weights = draw.choice(WEIGHTS, len(pairs))
        chosen = [Pair(*pair, float(w), 1.0) for pair, w in zip(pairs, weights, strict=True)]
    else:
        chosen = _scored(config, plan, number, pairs)
    write_pairs(path, chosen)
    return chosen


def _scored(
    config: RunConfig,
    plan: MixupPlan,
    number: int,
    pairs: Sequence[tuple[int, int]],
) -> list[Pair]:
    """The pairs of which the student of the round before is least sure."""
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    student = network_from_file(plan.out / "runs" / f"round{number - 1}")[0].to(runtime.device)

    @functools.lru_cache(maxsize=_KEPT)
    def image(index: int) -> np.ndarray:
        return read_image(plan.image(real_name(index)))

    resize, device = config.data.resize, runtime.device
    found = least_confident(student, image, pairs, plan.mix, resize, device)
    return sorted(found, key=lambda pair: pair.confidence)[: plan.queries]
