"""`segkd data`: writes datasets to disk, and checks those that are there."""

from collections.abc import Sequence
from pathlib import Path

from segkd import registry
from segkd.commands.display import progress, say
from segkd.config.load import load_config, load_data
from segkd.data.base import DataConfig, data_root
from segkd.data.check import CheckReport, check_dataset
from segkd.data.make import make_cache, make_streets
from segkd.errors import ConfigError


def make(
    name: str, overrides: Sequence[str], *, out: Path | None, train: int, val: int, cache: bool
) -> None:
    """Writes synthetic streets as a Cityscapes tree, or the decoded cache of a set on disk."""
    config = load_data(name, overrides)
    if cache:
        _make_cache(config, out)
    elif name == "streets":
        target = out or data_root("streets", config)
        counts = {"train": train, "val": val}
        with progress(f"streets -> {target}") as advance:
            make_streets(target, counts, config.size, seed=config.seed, progress=advance)
        say(f"{target}: {train} + {val} scenes. Use them: data.name=cityscapes data.root={target}")
    else:
        dataset_class = registry.datasets.get(name)
        hint = f" Its cache can: segkd data make {name} --cache" if _caches(dataset_class) else ""
        tree = dataset_class.expected_tree
        raise ConfigError(f"only streets can be made. '{name}' is expected as\n{tree}{hint}")


def check(target: str, overrides: Sequence[str]) -> bool:
    """Reads both splits of a dataset or config and says what is wrong; True if nothing is."""
    config = _data_of(target, overrides)
    dataset_class, sound = registry.datasets.get(config.name), True
    for split in dict.fromkeys((config.train_split, config.val_split)):
        dataset = dataset_class(config, split)
        with progress(f"{config.name} {split}") as advance:
            report = check_dataset(dataset, progress=advance)
        _print(report)
        sound = sound and report.ok
    return sound


def _data_of(target: str, overrides: Sequence[str]) -> DataConfig:
    if target in registry.datasets:
        return load_data(target, overrides)
    try:
        loaded = load_config(target, overrides)
    except ConfigError as error:
        names = ", ".join(registry.datasets.names())
        raise ConfigError(f"{error}\nDatasets that can be checked by name: {names}") from None
    run = loaded.run or next(iter(loaded.recipe.runs.values())).config
    return run.data


def _make_cache(config: DataConfig, out: Path | None) -> None:
    dataset_class = registry.datasets.get(config.name)
    if not _caches(dataset_class):
        raise ConfigError(f"dataset '{config.name}' has no decoded cache; cityscapes has one")
    for split in dict.fromkeys((config.train_split, config.val_split)):
        with progress(f"{config.name} {split}") as advance:
            folder = make_cache(dataset_class(config, split), out, progress=advance)
    say(f"decoded images: {folder}. Use them: data.cache={folder}")


def _caches(dataset_class: type) -> bool:
    return hasattr(dataset_class, "cache_files")


def _print(report: CheckReport) -> None:
    sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in report.sizes.most_common(5))
    say(f"{report.dataset} {report.split}: {report.images} images, {sizes}")
    shares = zip(report.classes, report.shares.tolist(), strict=True)
    say("  " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares))
    say(f"  void {100 * report.ignore_share:.2f} %")
    for finding in report.findings:
        where = f"{finding.file}: " if finding.file else ""
        say(f"  {finding.level}: {where}{finding.text}. {finding.repair}".rstrip())
    if not report.findings:
        say("  nothing is wrong")
