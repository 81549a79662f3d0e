"""`segkd data map`: which class of one list is which of another."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkd import registry
from segkd.commands.display import say
from segkd.data.class_files import find_class_file, read_class_file
from segkd.errors import ConfigError, did_you_mean, shortened
from segkd.files import write_text
from segkd.models.class_draft import Match, draft
from segkd.models.label_sets import LabelSet, is_set, label_set, named, set_names
from segkd.texts import parse_json, read_text
from segkd.yaml_tree import inline, parse

_ENDINGS = (".yaml", ".yml")
_PLAIN = re.compile(r"[A-Za-z][\w()/.'-]*( [\w()/.'-]+)*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # of YAML 1.1 and 1.2


def show_map(source: str, target: str, path: Path | None) -> None:
    """Prints what each class of ``source`` is in ``target``, and writes it.

    Args:
        source, target: see ``labels_of``.
        path: YAML file to write, or None.

    Raises:
        SegKDError: names that are not known, no class in common, or a file that exists.
    """
    theirs, ours = labels_of(source), labels_of(target)
    matches = draft(theirs, ours)
    if not any(one.target for one in matches):
        raise ConfigError(
            f"no class of {source} is one of {target}, by names and meanings. Classes of {source}: "
            f"{shortened(list(theirs.classes))}; of {target}: {shortened(list(ours.classes))}. "
            "Write the table by hand: lines `class of the first: class of the second`"
        )
    if path is not None and path.exists():
        raise ConfigError(f"--write: {path} exists. Give another file, or remove it")
    say("\n".join(_lines(source, target, ours, matches)))
    if path is not None:
        write_text(path, as_yaml(source, target, ours, matches))
        use = f"classes: {inline({'map': str(path)})}"
        say(f"\n{path}: look at the lines with a comment, then use it: {use}")


def labels_of(text: str) -> LabelSet:
    """The class names of a data set, file, folder, or model of transformers.

    Args:
        text: a name of `segkd list datasets` or of `segkd/class_maps`; a YAML file with a list of
            names or with `classes:`; a text of one name per line, as `segkd init` reads it; a
            folder with such a file, with ``classes.json`` or with the ``config.json`` of a model;
            an id of the hub.

    Raises:
        SegKDError: there is nothing of this name, or it has no classes.
    """
    path = Path(text).expanduser()
    if is_set(text):
        return label_set(text)
    if text in registry.datasets:
        classes = getattr(registry.datasets.get(text), "classes", None)
        if classes:
            return named(classes)
        raise ConfigError(f"the classes of dataset '{text}' are not fixed: give its spec or folder")
    if path.is_file():
        return _named(_of_file(path), path)
    if path.is_dir():
        return _named(_of_folder(path), path)
    if re.fullmatch(r"[\w-]+/[\w.-]+", text) and path.suffix not in (*_ENDINGS, ".json"):
        from segkd.models.hf_source import read_source

        return named(read_source(text).classes)
    hint = did_you_mean(text, {*set_names(), *registry.datasets.names()})
    raise ConfigError(f"'{text}' is no data set that segkd knows, no file and no folder.{hint}")


def as_yaml(source: str, target: str, ours: LabelSet, matches: Sequence[Match]) -> str:
    """The table as YAML that ``class_map.read_table`` reads, with comments.

    Args:
        source, target: as given by the user.
        ours: the second list.
        matches: of the classes of the first.
    """
    lines = [f"# Classes of {source} as those of {target}: `segkd data map`. ~ is left over."]
    for one in dict.fromkeys(matches):
        line = f"{_scalar(one.source)}: {'~' if one.target is None else _scalar(one.target)}"
        lines.append(
            f"{line}  # {'' if one.target is None else 'check: '}{one.why}" if one.why else line
        )
    missing = _missing(ours, matches)
    lines += [f"# without a source: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def _lines(source: str, target: str, ours: LabelSet, matches: Sequence[Match]) -> list[str]:
    left = [one for one in matches if one.target is None]
    doubtful = [one for one in matches if one.target is not None and one.why]
    lines = [
        f"{source} ({len(matches)} classes) -> {target} ({len(ours.classes)}): "
        f"{len(matches) - len(left)} mapped, {len(doubtful)} of them to be checked; "
        f"{len(left)} left over"
    ]
    width = max(len(one.source) for one in matches)
    groups = [("matched", [one for one in matches if one.target and not one.why])]
    groups += [("to be checked", doubtful)]
    for title, group in groups:
        lines += ["", f"{title}:"] if group else []
        for one in group:
            lines.append(
                f"  {one.source:{width}}  {one.target}{f'  ({one.why})' if one.why else ''}"
            )
    texts = [f"{one.source} ({one.why})" if one.why else one.source for one in left]
    lines += ["", f"left over of {source}: {', '.join(texts)}"] if left else []
    missing = _missing(ours, matches)
    return lines + (["", f"not in {source}: {', '.join(missing)}"] if missing else [])


def _missing(ours: LabelSet, matches: Sequence[Match]) -> list[str]:
    found = {one.target for one in matches}
    return [name for name in ours.classes if name not in found]


def _scalar(name: str) -> str:
    plain = _PLAIN.fullmatch(name) and name.casefold() not in _WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


def _named(classes: Sequence[str] | None, path: Path) -> LabelSet:
    if not classes:
        raise ConfigError(
            f"{path} has no class names. Expected a YAML list of names, a spec with `classes:`, a "
            "classes.txt, or the folder of a model with `id2label` in its config.json"
        )
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} names a class twice: {', '.join(twice)}. Give each its own name")
    return named(classes)


def _of_file(path: Path) -> list[str] | None:
    if path.suffix == ".json":
        return _of_json(parse_json(read_text(path), str(path)))
    if path.suffix in (".txt", ".csv", ".names"):
        return [one.name for one in read_class_file(path)] or None
    tree = parse(read_text(path), str(path)).plain()
    return _names(tree.get("classes") if isinstance(tree, dict) else tree)


def _of_json(tree: Any) -> list[str] | None:
    """Names of a model's ``id2label``, or of the rows of a ``classes.json``."""
    labels = tree.get("id2label") if isinstance(tree, dict) else None
    if not isinstance(labels, dict):
        return _names(tree)
    try:
        return [str(labels[key]) for key in sorted(labels, key=int)]
    except ValueError:
        return None


def _names(rows: Any) -> list[str] | None:
    """Names of a list of names or of mappings with `name`."""
    if not isinstance(rows, list):
        return None
    found = [row.get("name") if isinstance(row, dict) else row for row in rows]
    names = [name for name in found if isinstance(name, str) and name.strip()]
    return names if len(names) == len(found) else None


def _of_folder(folder: Path) -> list[str] | None:
    for name in ("config.json", "classes.json"):
        if (folder / name).is_file():
            return _of_file(folder / name)
    files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)
    found = {path: _of_file(path) for path in files}
    having = [path for path, names in found.items() if names]
    if len({tuple(found[path] or ()) for path in having}) > 1:
        shown = ", ".join(path.name for path in having)
        raise ConfigError(f"{folder} has several files with classes: {shown}. Name one of them")
    if having:
        return found[having[0]]
    beside = find_class_file(folder)  # as `segkd init` finds it
    return [one.name for one in beside[1]] if beside else None
