"""Reads text files of any encoding with a byte order mark, and JSON: lists, specs, predictions."""

import codecs
import json
import math
import re
import shlex
from pathlib import Path

from segkd.errors import DataError

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes, where: Path | str) -> str:
    """Decodes UTF-8, or the encoding of a byte order mark.

    UTF-16 without a mark is recognised by its zero bytes, which text does not have.

    Args:
        data: content of a file.
        where: its name, for the message.

    Raises:
        DataError: the text has another encoding; names the line.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:400] and len(data) % 2 == 0:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{where}, line {line}: the byte 0x{data[error.start]:02x} is not valid "
            f"{encoding.upper()}: the file has another encoding. Save it as UTF-8, e.g. with "
            f"`iconv -f CP1252 -t UTF-8 {shlex.quote(Path(where).name)}` (or -f GBK, SHIFT_JIS, …)"
        ) from None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: the file cannot be read or decoded; names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return decoded(data, path)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of each non-blank line, stripped. Raises like ``read_text``."""
    lines = enumerate(read_text(path).splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def parse_json(text: str, where: str) -> object:
    """Plain data from JSON.

    Args:
        text: JSON.
        where: its source, for the message.

    Raises:
        DataError: the text is not valid JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise DataError(
            f"{where}: is not valid JSON: {error.msg}, {line}column {error.colno}"
        ) from None
    except ValueError:  # Python's limit of digits
        raise DataError(f"{where}: JSON cannot be read: a number is too long") from None
    except RecursionError:
        raise DataError(f"{where}: JSON cannot be read: it is nested too deeply") from None


def json_kind(value: object) -> str:
    """The name of a value's type in JSON: ``null``, ``a text``, ``a list``, …."""
    kinds = {"NoneType": "null", "bool": "true or false", "str": "a text", "list": "a list"}
    kinds |= {"dict": "an object", "int": "a number", "float": "a number"}
    return kinds.get(type(value).__name__, f"a {type(value).__name__}")


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number within the range of float64."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value)
    except OverflowError:
        return False


def require_below(entry: str, where: str) -> str:
    """Checks that a path, e.g. of an image in a list, stays below its folder.

    Files of predictions are named after these entries, so one with ``..`` would be written
    anywhere.

    Args:
        entry: the path.
        where: its source, for the message.

    Returns:
        ``entry``.

    Raises:
        DataError: the path leaves the folder.
    """
    if ".." in re.split(r"[\\/]", entry) or "\0" in entry or re.match(r"[A-Za-z]:[\\/]", entry):
        raise DataError(
            f"{where}: the entry {entry[:90]!r} leads out of the folder of the dataset. Write it "
            "as a path below that folder, without `..`"
        )
    return entry


def target_below(folder: Path, entry: str | Path) -> Path:
    """The path below ``folder`` at which a file named after ``entry`` is written.

    Raises:
        DataError: it would be outside of ``folder``.
    """
    path = Path(entry)
    if path.is_absolute():
        raise DataError(
            f"{entry}: is an absolute path, and would be written outside of {folder}. Name images "
            "by their paths below the folder of the dataset"
        )
    require_below(path.as_posix(), str(folder))
    return Path(folder) / path


def finite(value: object) -> object:
    """The same plain data; NaN and infinities, which JSON does not have, become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def json_text(value: object, indent: int | None = None) -> str:
    """Plain data as standard JSON: null instead of NaN and infinities."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)
