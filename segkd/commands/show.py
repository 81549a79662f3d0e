"""`segkd data show`: draws training images as the student sees them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd import registry
from segkd.commands.display import say
from segkd.config.load import load_config, load_data
from segkd.config.recipe import expand
from segkd.config.schema import RunConfig
from segkd.data.base import DataConfig, Dataset
from segkd.data.loader import train_loader
from segkd.data.unlabeled import Joined
from segkd.data.writing import require_writable, write_image
from segkd.engine.setup import open_dataset, open_training_set
from segkd.errors import ConfigError, did_you_mean
from segkd.viz.sample_sheet import sample_sheet


def show(
    target: str, overrides: Sequence[str], *, out: Path, images: int, run: str | None = None
) -> None:
    """Draws the first training images of a dataset or config, as the student sees them.

    Args:
        target: name of a dataset, or a config.
        overrides: ``key=value`` texts.
        out: the PNG to write.
        images: number of images.
        run: run of a recipe; default: the first one.

    Raises:
        SegKDError: unknown config, dataset or run, or an image cannot be read.
    """
    require_writable(out)
    dataset, config, seed = _training_set(target, overrides, run)
    shown: list[np.ndarray] = []
    labels: list[np.ndarray | None] = []
    lanes: list[Sequence[np.ndarray]] = []
    # The order of images does not depend on the batch size, except for a share of unlabelled ones.
    batch_size = config.batch_size if isinstance(dataset, Joined) else 1
    loader = train_loader(
        dataset,
        config=config.model_copy(update={"workers": 0}),
        batch_size=batch_size,
        seed=seed,
        start=0,
        stop=-(-images // batch_size),
    )
    for batch in loader:
        known = [True] * len(batch) if batch.labelled is None else batch.labelled.tolist()
        shown += list(batch.images.permute(0, 2, 3, 1).numpy())
        maps = [None] * len(batch) if batch.labels is None else list(batch.labels.numpy())
        labels += [one if has else None for one, has in zip(maps, known, strict=True)]
        points = batch.extra.get("lanes")
        lanes += [()] * len(batch) if points is None else list(points.numpy())
    sheet = sample_sheet(
        shown[:images],
        labels[:images],
        lanes[:images] if dataset.task == "lanes" else None,
        dataset.palette,
        dataset.classes,
        title=f"{config.name} {dataset.split}: training images of seed {seed}",
    )
    write_image(out, sheet)
    text = f"{out}: the first {len(shown[:images])} training images of seed {seed}"
    if images > len(dataset):
        text += f"; the set has {len(dataset)}, so some are there twice"
    say(text)


def _training_set(
    target: str, overrides: Sequence[str], run: str | None
) -> tuple[Dataset, DataConfig, int]:
    """The training set of a dataset or config, its block ``data:``, and the seed."""
    if target in registry.datasets:
        if run is not None:
            raise ConfigError(f"--run {run}: {target} is a dataset, not a recipe. Remove it")
        config = load_data(target, overrides)
        if config.unlabeled is not None:
            raise ConfigError(
                f"data.unlabeled would change nothing: of {target} the training split is drawn. "
                "Leave it out, or give a config that has it"
            )
        return registry.datasets.get(target)(config, config.train_split), config, 0
    chosen = _run_of(target, overrides, run)
    val_set = open_dataset(chosen, chosen.data.val_split)
    return open_training_set(chosen, val_set), chosen.data, chosen.seed


def _run_of(target: str, overrides: Sequence[str], run: str | None) -> RunConfig:
    loaded = load_config(target, overrides)
    if loaded.run is not None:
        if run is not None:
            raise ConfigError(f"--run {run}: {target} is a single run, not a recipe. Remove it")
        return loaded.run
    assert loaded.recipe is not None  # a config is a run or a recipe
    plan = {one.name: one.config for one in reversed(expand(loaded.recipe))}  # the first seed
    name = next(iter(loaded.recipe.runs)) if run is None else run
    if name not in plan:
        raise ConfigError(f"--run: {target} has no run '{run}'.{did_you_mean(name, plan)}")
    return plan[name]
