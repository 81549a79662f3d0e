"""Names of written files: none replaces what is read, and images of one stem stay apart."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from segkd.errors import ConfigError
from segkd.inference.media import Source

_RESULTS = ("overlays", "labels", "probabilities")  # folders of `segkd predict`


def refuse_replacing(outputs: Iterable[Path], originals: Iterable[Path]) -> None:
    """Refuses to write over a file that is read; called before anything is computed.

    Args:
        outputs: all files that are to be written.
        originals: all files that are read.

    Raises:
        ConfigError: an output is one of the originals, also by another path to it.
    """
    existing = {_identity(path): path for path in outputs}
    existing.pop(None, None)
    for original in originals if existing else ():
        output = existing.get(_identity(original))
        if output is not None:
            also = "" if output == original else f" (as {output})"
            raise ConfigError(
                f"{original} is read, and a result would replace it{also}. Give another --out. If "
                "it is an earlier result, move it out of the folder of the images"
            )


def without_outputs(source: Source, out: Path) -> Source:
    """A folder's images without those that an earlier prediction wrote into a folder below it.

    Others in that folder stay: ``--out`` may name a folder that has images of the source, too.

    Args:
        source: of any kind; only folders change.
        out: folder of the results.

    Raises:
        ConfigError: ``out`` is the folder of the images, or holds it: folders such as ``labels``
            beside the images may hold annotations; or there are only earlier results.
    """
    if source.kind != "folder":
        return source
    written, images = out.resolve(), source.path.resolve()
    if images.is_relative_to(written):
        relation = "is" if images == written else "holds"
        raise ConfigError(f"--out {out} {relation} the folder of the images itself. Give another")
    files = tuple(file for file in source.files if not _is_result(file.resolve(), written))
    if not files:
        raise ConfigError(
            f"{source.path}: all images there are results of an earlier prediction into {out}. "
            "Give the folder of the images, or another --out"
        )
    return replace(source, files=files, count=len(files))


def _is_result(file: Path, out: Path) -> bool:
    """Whether `segkd predict` writes such a file into the folder ``out``."""
    return file == out / "legend.png" or any(file.is_relative_to(out / one) for one in _RESULTS)


def stem_of(name: str) -> str:
    """``sub/a.jpg`` to ``sub/a``; the number of a video frame is unchanged."""
    return name.removesuffix(Path(name).suffix)


def ambiguous_stems(names: Iterable[str]) -> frozenset[str]:
    """Names without ending that several images have; files of these images keep the ending."""
    stems = Counter(map(stem_of, names))
    return frozenset(stem for stem, count in stems.items() if count > 1)


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for all paths to one file, also where letter case does not count; None: no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
