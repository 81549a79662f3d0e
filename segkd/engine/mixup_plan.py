"""The plan of active mixup: options, mixed pairs, and whether a folder was begun with the same."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkd.data.reading import read_image
from segkd.data.transforms import resize_image
from segkd.errors import ConfigError
from segkd.files import write_text

Mix = Literal["mixup", "cutmix"]
_COLUMNS = ("first", "second", "weight", "confidence")
_OF_ROUNDS = ("queries", "pool", "mix", "select")  # not read before the first round of mixing


@dataclass(frozen=True)
class MixupPlan:
    """How many images are mixed and queried.

    Attributes:
        out: folder of images, predictions and runs.
        rounds: of mixing, after the training on the real images.
        queries: mixed images per round.
        pool: pairs that are scored per round; None: ten for each query.
        images: number of real images, the first of the training split; None: all.
        mix: mixup (a weighted sum), or cutmix (the left of the first, the right of the second).
        select: confidence (the lowest), or random (pairs and weights), as a baseline.
        stride: one stored prediction per N x N pixels.
        top_k: number of classes of a stored prediction; None: all.
    """

    out: Path
    rounds: int = 3
    queries: int = 100
    pool: int | None = None
    images: int | None = None
    mix: Mix = "mixup"
    select: Literal["confidence", "random"] = "confidence"
    stride: int = 4
    top_k: int | None = None

    @property
    def drawn(self) -> int:
        """Pairs that are drawn per round."""
        return self.queries if self.select == "random" else self.pool or 10 * self.queries

    @property
    def file(self) -> Path:
        """The options that the folder was begun with."""
        return self.out / "plan.json"

    def image(self, name: str) -> Path:
        """The file of an image."""
        return self.out / "images" / f"{name}.png"

    def pairs(self, number: int) -> Path:
        """The file of the pairs of a round."""
        return self.out / f"round{number}.csv"


@dataclass(frozen=True)
class Pair:
    """A mixed image: positions of two real ones, the weight of the first, and the confidence."""

    first: int
    second: int
    weight: float
    confidence: float


def real_name(index: int) -> str:
    """The name of a real image."""
    return f"real/{index:05d}"


def mixed_name(number: int, place: int) -> str:
    """The name of a mixed image of a round."""
    return f"round{number}/{place:05d}"


def mixed(first: np.ndarray, second: np.ndarray, weight: float, mix: Mix = "mixup") -> np.ndarray:
    """A mixed image, rounded to bytes.

    Args:
        first, second: (H, W, 3) uint8; the second is resized to the first.
        weight: share of the first.
        mix: how.
    """
    height, width = first.shape[:2]
    second = resize_image(second, (height, width))
    if mix == "mixup":
        total = weight * first.astype(np.float32) + (1 - weight) * second
        return np.rint(total).astype(np.uint8)
    # Rows keep their place: in a street the ground stays below the sky.
    found = first.copy()
    found[:, round(weight * width) :] = second[:, round(weight * width) :]
    return found


def mixed_pair(plan: MixupPlan, pair: Pair, mix: Mix) -> np.ndarray:
    """The mixed image (H, W, 3) of two real ones of the folder. Raises DataError."""
    first, second = (
        read_image(plan.image(real_name(index))) for index in (pair.first, pair.second)
    )
    return mixed(first, second, pair.weight, mix)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a round."""
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return [
        Pair(int(r["first"]), int(r["second"]), float(r["weight"]), float(r["confidence"]))
        for r in rows
    ]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes the pairs of a round."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([p.first, p.second, p.weight, p.confidence] for p in pairs)
    write_text(path, text.getvalue())


def require_same_plan(plan: MixupPlan, count: int) -> None:
    """Checks that what the folder holds was made with the same options.

    More or fewer rounds are no other plan: those that are done stay as they are. What only the
    rounds of mixing read may be changed until the pairs of the first are chosen.

    Args:
        plan: the options.
        count: number of real images.

    Raises:
        ConfigError: with other ones; names them.
    """
    asked = _options(plan, count)
    stored = _stored(plan) if plan.file.is_file() else _told_by_files(plan)
    if not plan.pairs(1).is_file():
        stored = {key: value for key, value in stored.items() if key not in _OF_ROUNDS}
    elif "random" in (stored.get("select"), plan.select):
        stored.pop("pool", None)  # random pairs have none
    changed = [key for key in asked if key in stored and stored[key] != asked[key]]
    if changed:
        lines = "\n  ".join(
            f"--{key.replace('_', '-')}: {stored[key]} -> {asked[key]}" for key in changed
        )
        raise ConfigError(
            f"{plan.out} was begun with other options:\n  {lines}\nRepeat those to go on, or "
            "choose another folder: --out DIR"
        )


def store_plan(plan: MixupPlan, count: int) -> None:
    """Writes the options that decide results, to be compared with those of a later call."""
    write_text(plan.file, json.dumps(_options(plan, count), indent=2) + "\n")


def _options(plan: MixupPlan, count: int) -> dict[str, Any]:
    return {
        "images": count,
        "queries": plan.queries,
        "pool": plan.drawn,
        "mix": plan.mix,
        "select": plan.select,
        "stride": plan.stride,
        "top_k": plan.top_k,
    }


def _stored(plan: MixupPlan) -> dict[str, Any]:
    try:
        return dict(json.loads(plan.file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{plan.file} is damaged: {error}. Delete it, and repeat the command with the options "
            "that the folder was begun with, or choose another folder: --out DIR"
        ) from None


def _told_by_files(plan: MixupPlan) -> dict[str, Any]:
    """What the files of a folder without plan.json tell of its options."""
    found: dict[str, Any] = {}
    images = _trained_images(plan)
    if images is not None:
        found["images"] = images
    if not plan.pairs(1).is_file():
        return found
    pairs = read_pairs(plan.pairs(1))
    found["queries"] = len(pairs)
    # Random pairs are not scored: all of them have the confidence 1.
    is_random = all(pair.confidence == 1 for pair in pairs)
    found["select"] = "random" if is_random else "confidence"
    names = [mixed_name(1, 0), *(real_name(i) for i in (pairs[0].first, pairs[0].second))]
    if all(plan.image(name).is_file() for name in names):
        seen = read_image(plan.image(names[0]))
        kinds: tuple[Mix, ...] = ("mixup", "cutmix")
        made = [one for one in kinds if np.array_equal(seen, mixed_pair(plan, pairs[0], one))]
        if len(made) == 1:
            found["mix"] = made[0]
    return found


def _trained_images(plan: MixupPlan) -> int | None:
    """The number of real images; of the finished run, as the list may have been overwritten."""
    try:
        text = (plan.out / "runs" / "round0" / "summary.json").read_text(encoding="utf-8")
        return int(json.loads(text)["training_images"]["unlabelled"])
    except (OSError, ValueError, LookupError, TypeError):
        listed = plan.out / "round0.txt"
        return len(listed.read_text(encoding="utf-8").split()) if listed.is_file() else None
