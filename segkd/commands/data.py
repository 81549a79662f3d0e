"""`segkd data`: writes datasets to disk, and checks existing ones."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segkd import registry
from segkd.commands.display import progress, resumable, say
from segkd.commands.option_keys import with_option
from segkd.config.load import load_config, load_data, require_read
from segkd.data.base import DataConfig, Dataset, data_root
from segkd.data.check import CheckReport, check_dataset
from segkd.data.cityscapes import Cityscapes
from segkd.data.duplicates import find_duplicates, scored_images
from segkd.data.findings import Finding, folded
from segkd.data.unlabeled import open_unlabelled
from segkd.data.voc import VOC
from segkd.errors import ConfigError, DataError, MissingSetError
from segkd.synthetic.make import make_cache, make_culane, make_streets
from segkd.synthetic.make_voc import make_train_aug
from segkd.synthetic.streets import Streets
from segkd.yaml_tree import typed

_TRAIN, _VAL = 800, 200  # if --train and --val are not given
_GOES_ON = "makes those that are left"
_READ = {  # options of `segkd data make`
    "--cache": ("--out",),
    "streets": ("--out", "--train", "--val"),
    "lanes": ("--out", "--train", "--val"),
    "culane": ("--out", "--train", "--val", "--masks"),
    "voc": (),
}

_KEYS_READ = {  # of `data`; those of a set itself, unless named here
    "streets": ("size", "seed", "weather", "train_images", "val_images"),
    "lanes": (
        *("size", "seed", "lane_width", "photographs"),
        *("train_images", "val_images", "test_images"),
    ),
}
_OF_CHECKS = ("name", "root", "resize", "crop", "scale", "pad")  # keys beside the set's own


def make(
    name: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    train: int | None,
    val: int | None,
    cache: bool,
    masks: bool = False,
) -> None:
    """Writes synthetic streets or lanes, CULane's lists, VOC's train_aug, or a decoded cache.

    Args:
        name: name of the dataset.
        overrides: keys of ``data``.
        out: folder; default: the data root of the dataset.
        train, val: numbers of synthetic images, or their ratio for CULane's lists; None: 800 and
            200.
        cache: write decoded images instead.
        masks: also write CULane's masks.

    Raises:
        ConfigError: an option that this dataset does not read.
        SegKDError: the dataset cannot be made, or its files are missing or not writable.
        Interrupted: by a signal; the same command completes it.
    """
    config = load_data(name, overrides)
    options = {"--out": out, "--train": train, "--val": val, "--masks": masks}
    _require_read("--cache" if cache else name, options)
    _require_keys_read(name, config, overrides, cache=cache)
    if cache:
        _make_cache(config, out)
    elif name == "streets":
        _make_streets(_counted(overrides, train, val), out)
    elif name == "culane":
        _make_culane(overrides, out, _share(train, val), masks)
    elif name == "voc":
        _make_voc(config)
    elif name == "lanes":
        _make_lanes(_counted(overrides, train, val), out, val or _VAL)
    else:
        dataset_class = registry.datasets.get(name)
        caches = issubclass(dataset_class, Cityscapes)
        hint = f" Its cache can: segkd data make {name} --cache" if caches else ""
        tree = dataset_class.expected_tree
        made = "only streets, lanes, the lists of culane and voc's train_aug can be made"
        raise ConfigError(f"{made}. '{name}' is expected as\n{tree}{hint}")


def _share(train: int | None, val: int | None) -> float | None:
    """The part for validation of a ratio; None without one. Raises ConfigError for half of one."""
    if train is None and val is None:
        return None
    if train is None or val is None:
        option, other = ("--train", "--val") if val is None else ("--val", "--train")
        raise ConfigError(
            f"{option} without {other}: for culane they are a ratio, so give both, like "
            "--train 4 --val 1"
        )
    return val / (train + val)


def check(target: str, overrides: Sequence[str]) -> bool:
    """Reads both splits of a dataset or config, and its unlabelled images, and prints problems.

    Of a recipe that is each different set of its runs.

    Args:
        target: name of a dataset, or a config.
        overrides: ``key=value`` texts.

    Returns:
        Whether there are no problems.

    Raises:
        SegKDError: unknown target, or the dataset cannot be opened.
    """
    sets = _sets_of(target, overrides)
    sound = True
    reports: dict[str, CheckReport] = {}
    for runs, config in sets:
        if len(sets) > 1:
            say(f"Data of {', '.join(runs)}:")
        sound = _check_set(config, reports) and sound
    return sound


def _check_set(config: DataConfig, reports: dict[str, CheckReport]) -> bool:
    """Prints the problems of both splits and of unlabelled images; returns whether there are none.

    Args:
        config: of the set.
        reports: of what was checked before, to which these are added.
    """
    sound = True
    own: dict[str, CheckReport] = {}
    splits = dict.fromkeys((config.train_split, config.val_split))
    if config.all_unlabelled and config.train_split != config.val_split:
        splits = {config.val_split: None}
        unread = f"{config.name} {config.train_split}"
        say(f"{unread}: training does not read it: data.unlabeled.share is 1")
    for split in splits:
        of_training = split == config.train_split != config.val_split
        labels = config.labels if of_training else "required"
        key = f"{split} of {_facts(config)}, labels {labels}"
        if key in reports:
            say(f"{config.name} {split}: see above")
        else:
            with progress(f"{config.name} {split}") as advance:
                dataset = _opened(config, split)
                reports[key] = check_dataset(dataset, labels=labels, progress=advance)
            _print(reports[key])
        own[split] = reports[key]
        sound = sound and reports[key].ok
    twice = find_duplicates({split: report.fingerprints for split, report in own.items()})
    for finding in folded(twice):
        _print_finding(finding)
    return _check_unlabelled(config, reports, own) and sound and not twice


def _check_unlabelled(
    config: DataConfig, reports: dict[str, CheckReport], own: Mapping[str, CheckReport]
) -> bool:
    """Prints the problems of ``data.unlabeled``; returns whether there are none.

    Args:
        config: of the set.
        reports: see ``_check_set``.
        own: those of the splits of this set, which the images are compared with.
    """
    if config.unlabeled is None or config.unlabeled.share == 0:
        return True
    what = "unlabelled images"
    key = f"{what} {config.unlabeled.model_dump(exclude={'share'})} beside {_facts(config)}"
    report = reports.get(key)
    if report is None:
        dataset = open_unlabelled(config, _opened(config, config.val_split))
        with progress(what) as advance:
            report = reports[key] = check_dataset(dataset, labels="none", progress=advance)
        compared = _beside(config, report, own)
        _print(replace(report, findings=[*report.findings, *compared]), what)
    else:
        say(f"{what}: see above")
        for finding in folded(_beside(config, report, own)):
            _print_finding(finding)  # the splits may be others than above
    return report.ok


def _beside(
    config: DataConfig, report: CheckReport, own: Mapping[str, CheckReport]
) -> list[Finding]:
    """Warnings about unlabelled images beside the splits; see ``_check_unlabelled``."""
    found = scored_images(report.fingerprints, own[config.val_split].fingerprints)
    trained = own.get(config.train_split)
    if trained is None or config.all_unlabelled or config.crop or config.resize:
        return found
    sizes = set(report.sizes), set(trained.sizes)
    if all(len(one) == 1 for one in sizes) and sizes[0] != sizes[1]:  # else told of one of them
        (height, width), (h, w) = (next(iter(one)) for one in sizes)
        where = f"split '{config.train_split}'"
        text = f"unlabelled images have {height}x{width}, those of {where} {h}x{w}"
        repair = "Set data.crop or data.resize to train on both."
        found.append(Finding("warning", "", text, repair))
    return found


def _opened(config: DataConfig, split: str) -> Dataset:
    """A split. Raises DataError, which for the evaluation split says how to do without it."""
    try:
        return registry.datasets.get(config.name)(config, split)
    except MissingSetError as error:
        if split == config.train_split:
            raise
        raise DataError(
            f"{error}\nFor split '{config.train_split}' alone: data.val_split={config.train_split}"
        ) from None


def _facts(config: DataConfig) -> dict[str, Any]:
    """What a check of a split depends on: the set's own keys, and those of sizes."""
    general = set(DataConfig.model_fields) - set(_OF_CHECKS)
    return config.model_dump(exclude=general)


def _sets_of(target: str, overrides: Sequence[str]) -> list[tuple[list[str], DataConfig]]:
    """The sets to check, each with the runs of a recipe that it is of."""
    if target in registry.datasets:
        return [([], load_data(target, overrides))]
    try:
        loaded = load_config(target, overrides)
    except ConfigError as error:
        names = ", ".join(registry.datasets.names())
        raise ConfigError(f"{error}\nDatasets that can be checked by name: {names}") from None
    if loaded.run is not None:
        return [([], loaded.run.data)]
    assert loaded.recipe is not None  # a config is a run or a recipe
    sets: dict[str, tuple[list[str], DataConfig]] = {}
    for name, run in loaded.recipe.runs.items():
        data = run.config.data
        splits = data.train_split, data.val_split
        facts = f"{splits} of {_facts(data)}, labels {data.labels}, beside {data.unlabeled}"
        sets.setdefault(facts, ([], data))[0].append(name)
    return list(sets.values())


def _require_read(made: str, options: Mapping[str, Any]) -> None:
    """Refuses an option that what is made does not read.

    Args:
        made: a dataset that can be made, or ``--cache``; any other has a message of its own.
        options: values by option; None or False if they are not given.

    Raises:
        ConfigError: names the first.
    """
    read = _READ.get(made, tuple(options))
    unread = [option for option, value in options.items() if value and option not in read]
    if unread:
        known = f"It reads {', '.join(read)}" if read else "It reads none of these options"
        where = "; files go into the data root: data.root=FOLDER" if unread[0] == "--out" else ""
        raise ConfigError(
            f"{unread[0]} would change nothing: `segkd data make` of {made} does not read it"
            f"{where}. {known}"
        )


def _require_keys_read(
    name: str, config: DataConfig, overrides: Sequence[str], *, cache: bool
) -> None:
    """Refuses keys of ``data`` that what is made does not depend on.

    Args:
        name: of the dataset.
        config: its block ``data:`` with the overrides.
        overrides: ``key=value`` texts.
        cache: whether decoded images are made.

    Raises:
        ConfigError: names the first.
    """
    if config.name != name:
        raise ConfigError(f"data.name={config.name} is not '{name}': leave data.name out")
    if not cache and name not in _READ:
        return  # it cannot be made, which has a message of its own
    own = [key for key in type(config).model_fields if key not in DataConfig.model_fields]
    keys = _KEYS_READ.get(name, ("root", *own))
    keys = (*keys, "train_split", "val_split") if cache else keys
    made = f"`segkd data make {name}{' --cache' if cache else ''}`"
    require_read(overrides, [f"data.{key}" for key in ("name", *keys)], made)


def _counted(overrides: Sequence[str], train: int | None, val: int | None) -> list[str]:
    """The overrides with the numbers of scenes: of options, else of keys, else the usual ones."""
    usual = [f"data.train_images={_TRAIN}", f"data.val_images={_VAL}"]
    given = with_option(overrides, "--train", "data.train_images", train)
    return [*usual, *with_option(given, "--val", "data.val_images", val)]


def _make_streets(overrides: Sequence[str], out: Path | None) -> None:
    config = load_data("streets", overrides)
    assert isinstance(config, Streets.Config)  # of the dataset of this name
    target = out or data_root("streets", config)
    with resumable(f"streets -> {target}", "draws all of them anew") as advance:
        make_streets(config, target, progress=advance)
    scenes = f"{config.train_images} + {config.val_images}"
    use = f"data.name=cityscapes {typed('data.root', target)}"
    say(f"{target}: {scenes} scenes. Use them: {use}")


def _make_cache(config: DataConfig, out: Path | None) -> None:
    dataset_class = registry.datasets.get(config.name)
    if not issubclass(dataset_class, Cityscapes):
        raise ConfigError(f"dataset '{config.name}' has no decoded cache; cityscapes has one")
    for split in dict.fromkeys((config.train_split, config.val_split)):
        with resumable(f"{config.name} {split}", _GOES_ON) as advance:
            dataset = _opened(config, split)
            assert isinstance(dataset, Cityscapes)
            folder = make_cache(dataset, out, progress=advance)
    use = f"data.name={config.name} {typed('data.root', data_root(config.name, config))}"
    say(f"decoded images: {folder}. Use them: {use} {typed('data.decoded', folder)}")


def _make_lanes(overrides: Sequence[str], out: Path | None, test: int) -> None:
    from segkd.synthetic.lanes import LanesConfig
    from segkd.synthetic.make_lanes import CULANE_SIZE, make_lanes

    usual = [f"data.size={list(CULANE_SIZE)}", f"data.test_images={test}"]
    config = load_data("lanes", [*usual, *overrides])
    assert isinstance(config, LanesConfig)  # of the dataset of this name
    target = out or data_root("lanes", config)
    with resumable(f"lanes -> {target}", _GOES_ON) as advance:
        make_lanes(config, target, progress=advance)
    counts = f"{config.train_images} + {config.val_images} + {config.test_images}"
    root = typed("data.root", target)
    use = f"data.name=culane {root} data.lane_width={config.lane_width}"
    say(f"{target}: {counts} scenes. Use them: {use}")


def _make_culane(
    overrides: Sequence[str], out: Path | None, val_share: float | None, masks: bool
) -> None:
    config = load_data("culane", overrides)
    root = data_root("culane", config)
    with resumable(f"culane {root}", "writes the lists, and keeps masks") as advance:
        counts = make_culane(config, out, val_share=val_share, masks=masks, progress=advance)
    lists = [typed("data.lists", out / "list")] if out else []
    # Keys like data.num_lanes, with which the lists were made, are needed to read them as well
    replaced = ("data.name=", "data.root=", *(["data.lists="] if out else []))
    kept = [shlex.quote(one) for one in overrides if not one.startswith(replaced)]
    uses = " ".join(["data.name=culane", typed("data.root", root), *lists, *kept])
    written = " + ".join(f"{number} {split}" for split, number in counts.items())
    say(f"{written} images listed. Use them: {uses}")


def _make_voc(config: DataConfig) -> None:
    dataset = VOC(config, "train")
    with resumable(f"voc {dataset.root}", _GOES_ON) as advance:
        number = make_train_aug(dataset, progress=advance)
    use = f"data.name=voc {typed('data.root', data_root('voc', config))}"
    say(f"{number} images listed. Use them: {use} data.train_split=train_aug")


def _print(report: CheckReport, title: str = "") -> None:
    sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in report.sizes.most_common(5))
    say(f"{title or f'{report.dataset} {report.split}'}: {report.images} images, {sizes}")
    if report.labelled:
        shares = zip(report.classes, report.shares.tolist(), strict=True)
        say("  " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares))
        say(f"  void {100 * report.ignore_share:.2f} %")
    if report.exist is not None:
        lanes = zip(report.classes[1:], report.exist.tolist(), strict=True)
        say("  images with " + ", ".join(f"{name}: {number}" for name, number in lanes))
    for finding in folded(report.findings):
        _print_finding(finding)
    if not report.findings:
        say("  no problems")


def _print_finding(finding: Finding) -> None:
    where = f"{finding.file}: " if finding.file else ""
    say(f"  {finding.level}: {where}{finding.text}. {finding.repair}".rstrip())
