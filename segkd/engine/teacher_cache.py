"""The teachers of a run whose outputs are kept on disk: checks, sizes, and lines for the log."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segkd.config.schema import RunConfig
from segkd.config.teacher_cache import CacheConfig
from segkd.data.base import Dataset
from segkd.data.cached_outputs import CacheFolder, Views
from segkd.data.output_files import OutputFolder
from segkd.engine.cache_key import cache_facts, differences, key_of
from segkd.engine.step_record import teacher_of
from segkd.errors import ConfigError, DataError, SegKDError
from segkd.methods.base import Method
from segkd.models.frozen import Teacher
from segkd.models.output_cache import OutputCache
from segkd.models.teacher import Teachers
from segkd.texts import parse_json, read_text

RECORD = "record.json"
_HEADER = 512  # bytes of a file, apart from its logits
_SHOWN = 3


def default_folder() -> Path:
    """``$SEGKD_TEACHER_CACHE``, else ``runs/teacher_cache``."""
    return Path(os.environ.get("SEGKD_TEACHER_CACHE") or "runs/teacher_cache")


def views_of(config: RunConfig) -> Views | None:
    """The views of the training images, if a teacher's outputs are stored for them.

    Raises:
        ConfigError: teachers want different views.
    """
    found = {
        name: Views(teacher.cache.count, teacher.cache.seed)
        for name, teacher in config.teachers.items()
        if teacher.cache is not None and teacher.cache.kind == "views"
    }
    if len(set(found.values())) > 1:
        texts = [f"teachers.{n}: {one.count} of seed {one.seed}" for n, one in found.items()]
        raise ConfigError(
            f"cache: the student sees the same views as all teachers, but {', '.join(texts)}. Give "
            "all of them the same `views` and `seed`"
        )
    return next(iter(found.values()), None)


def open_caches(
    config: RunConfig, teachers: Teachers, methods: Mapping[str, Method], images: Dataset
) -> list[str]:
    """Gives ``teachers`` the caches of those that methods use. Nothing is written.

    Returns:
        Warnings.

    Raises:
        ConfigError: a method cannot use stored outputs, or the folder cannot hold them.
    """
    views_of(config)
    used, found, warnings = teachers.needed(), teachers.caches, []
    promised: dict[int, float] = {}
    for name, member in teachers.members.items():
        cache = config.teachers[name].cache if name in config.teachers else None
        if cache is None:
            continue
        if name not in used or not isinstance(member, Teacher):
            warnings.append(f"teachers.{name}.cache: no method uses this teacher")
            continue
        _check_methods(name, obstacles(name, teachers, methods), methods)
        if cache.kind == "images" and images.task == "lanes":
            raise ConfigError(
                f"teachers.{name}.cache: `images` is for segmentation: a flip would exchange "
                "lanes. Use cache: views"
            )
        folder = (cache.dir or default_folder()).expanduser()
        facts = cache_facts(config, cache, name, member, images)
        stride = member.network.tap_info(["logits"])["logits"].stride
        outputs = OutputFolder(folder / key_of(facts))
        found[name] = OutputCache(name, member, CacheFolder(outputs, cache.kind, stride))
        found[name].facts = facts
        size = _size(config, cache, images)
        found[name].about = _about(found[name], config, cache, images, size, promised)
    return warnings


def obstacles(
    name: str, teachers: Teachers, methods: Mapping[str, Method]
) -> Iterator[tuple[str, str]]:
    """Entries of ``methods:`` that rule out a cache of teacher ``name``, each with the reason."""
    for entry, method in methods.items():
        reason = ""
        if method.needs.rewrites_batch or teacher_of(method, teachers.names) == name:
            reason = method.needs.why_not_cached()
        further = method.further_teachers.get(name)
        if not reason and further is not None:
            reason = method.needs.why_not_cached(further)
        if reason:
            yield entry, reason


def _check_methods(
    name: str, found: Iterator[tuple[str, str]], methods: Mapping[str, Method]
) -> None:
    for entry, reason in found:
        repair = (
            f"Set teachers.{name}.cache=null, or give this method the same network as another "
            "teacher without a cache"
        )
        if methods[entry].needs.rewrites_batch:
            repair = f"Remove this method, or set teachers.{name}.cache=null"
        raise ConfigError(f"teachers.{name}.cache: methods.{entry} {reason}. {repair}")


def _size(config: RunConfig, cache: CacheConfig, images: Dataset) -> tuple[int, int]:
    """(H, W) of what the teacher sees; of the first readable image if sizes are not fixed."""
    data = config.data
    fixed = (data.crop or data.resize) if cache.kind == "views" else data.resize
    if fixed:
        return fixed
    for index in range(len(images)):
        try:
            height, width = images.read(index).image.shape[:2]
        except DataError:
            continue
        return height, width
    return (0, 0)


def _about(
    cache: OutputCache,
    config: RunConfig,
    keys: CacheConfig,
    images: Dataset,
    size: tuple[int, int],
    promised: dict[int, float],
) -> list[str]:
    """Lines about what is stored. Raises ConfigError if there is no space, or no access."""
    outputs, key = cache.source.outputs, f"teachers.{cache.name}.cache"
    grid = [-(-side // cache.source.stride) for side in size]
    each = 2 * cache.teacher.num_classes * grid[0] * grid[1] + _HEADER
    total = len(images) * keys.count
    if keys.kind == "views":
        total = min(total, config.steps * config.data.batch_size)
    there, _ = outputs.size()
    there = min(there, total)  # earlier runs may have had more views
    above = next(one for one in (outputs.path, *outputs.path.absolute().parents) if one.exists())
    views = f"views: {keys.count}" if keys.kind == "views" else "kind: images"
    elsewhere = f"another folder: {key}={{{views}, dir: FOLDER}}"
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "it is a file" if not above.is_dir() else "no write access"
        raise ConfigError(
            f"{key}.dir: cannot write into {outputs.path.parent}: {above}: {why}. Choose "
            f"{elsewhere}"
        )
    device, free = above.stat().st_dev, shutil.disk_usage(above).free
    needed = max(0, total - there) * each + promised.get(device, 0.0)
    promised[device] = needed
    what = f"{keys.count} views of each of {len(images)} images"
    what = what if keys.kind == "views" else f"{len(images)} whole images"
    shape = f"{cache.teacher.num_classes}x{grid[0]}x{grid[1]}"
    space = f"about {byte_text(total * each)} of {shape} halves"
    if needed > free:
        raise ConfigError(
            f"{key}: the outputs for {what} take {space}; {byte_text(needed)} are still to be "
            f"written, and {byte_text(free)} are free at {above}. Free some space, or choose "
            f"{elsewhere}"
        )
    begin = f"teacher {cache.name}: cache: "
    lines = [
        f"{begin}the outputs for {what}, {space}, in {outputs.path}: {there} of {total} are there; "
        f"{byte_text(free)} are free"
    ]
    if not there:
        lines += [f"{begin}{text}" for text in _nearest(outputs.path, cache.facts)]
    if keys.kind == "images":
        lines.append(
            f"{begin}an approximation: the teacher sees whole images without augmentation, and its "
            "outputs move with the crops. On labelled images the teacher itself may teach more"
        )
    return lines


def _nearest(path: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """A line about the folder beside this one whose facts are the most alike."""
    found = []
    for record in sorted(path.parent.glob(f"*/{RECORD}")):
        with contextlib.suppress(SegKDError, OSError):
            others = parse_json(read_text(record), str(record))
            if isinstance(others, dict):
                found.append((differences(facts, others), record.parent))
    if found:
        keys, other = min(found, key=lambda one: len(one[0]))
        more = " …" if len(keys) > _SHOWN else ""
        differ = "differs from that" if len(keys) == 1 else "differ from those"
        yield f"new, because {', '.join(keys[:_SHOWN])}{more} {differ} of {other}"


def byte_text(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
