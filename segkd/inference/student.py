"""A trained student at work, in Python: label maps of images, folders and videos."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from segkd.config.load import stored_evaluation
from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import ConfigError, SegKDError
from segkd.inference.broken import raise_if_broken
from segkd.inference.images import as_array
from segkd.inference.media import Frame, Source, open_source
from segkd.inference.prediction_files import PredictionFiles, Wanted
from segkd.inference.predictor import Answer, Predictor
from segkd.models.build import load_weights, network_from_file
from segkd.models.facts import Facts
from segkd.models.module import wrap
from segkd.models.network import Network
from segkd.models.weights import load_student_file
from segkd.runtime import Runtime

Student = str | Path | nn.Module
Picture = np.ndarray | str | Path
Size = tuple[int, int]


def opened(
    student: Student, module: nn.Module | None = None, classes: Sequence[str] = ()
) -> Network:
    """The network that is meant, with its classes and colours; from a file it is in eval mode.

    Args:
        student: a run folder, a checkpoint, an exported ``.onnx``, ``pretrained:NAME``; or a
            network: one of segkd, or any module that takes normalised images and returns logits.
        module: the caller's own network, if the student of that file was one; its weights are
            overwritten.
        classes: names, of a module that was read from no file.

    Raises:
        SegKDError: no such student, or one that the arguments do not fit.
    """
    if isinstance(student, nn.Module):
        if module is not None:
            raise ConfigError(
                "module: goes with the file of a student, e.g. a run folder, but the student is a "
                f"{type(student).__name__} already. Leave it out"
            )
        return _own(student, classes)
    if module is None:
        return network_from_file(student)[0]
    payload = load_student_file(student)
    network = _wrapped(module, len(payload["classes"]))
    load_weights(network, payload["weights"], str(student))
    network.facts = Facts.of(payload)
    return network.eval()


def predict(
    student: Student,
    pictures: Picture | Iterable[Picture],
    *,
    module: nn.Module | None = None,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    batch_size: int = 1,
    out: str | Path | None = None,
) -> np.ndarray | list[np.ndarray] | dict[str, np.ndarray]:
    """Labels every pixel, as ``segkd predict`` does.

    Args:
        student, module, classes: see ``opened``.
        pictures: an image, (H, W, 3) uint8 RGB or the path of a file; several of them; or the
            path of a folder or of a video.
        overrides: keys of ``eval``, ``data`` and ``runtime``, e.g. ``["eval.flip=true"]``.
        batch_size: images of one size that are computed together.
        out: folder for overlays and label maps; None: no files are written.

    Returns:
        Class ids (H, W), uint8, or int64 for more than 256 classes: of one image an array, of
        several a list, of a folder or video a dictionary by name. What cannot be read in a folder
        or video is left out, with a warning.

    Raises:
        SegKDError: what cannot be read, of one or several images; nothing could, of a folder.
    """
    network = opened(student, module, classes)
    frames, kind = _frames(pictures)
    config = stored_evaluation(network.facts.payload, overrides)
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    network = network.to(runtime.device)
    predictor = Predictor(
        network, config.eval, config.data.resize, batch_size, autocast=runtime.autocast
    )
    files = None
    if out is not None:
        target = Path(out).expanduser()
        names = [path.name for path in frames.files] if isinstance(frames, Source) else ()
        files = PredictionFiles(target, Wanted(), network.classes, network.palette, names)
        files.write_facts()
    found: dict[str, np.ndarray] = {}
    for answer in predictor.answers(frames):
        found[answer.frame.name] = answer.label
        if files is not None:
            _write(files, answer)
    return _returned(found, predictor.broken, kind)


def _own(module: nn.Module, classes: Sequence[str]) -> Network:
    """A module as a network that knows its classes."""
    if not isinstance(module, Network):
        if not classes:
            raise ConfigError(
                f"a {type(module).__name__} has no names of classes: give classes=['road', …], in "
                "the order of its logits"
            )
        module = wrap(module, len(classes))
    if classes:
        if len(classes) != module.num_classes:
            raise ConfigError(
                f"classes: got {len(classes)} names, but the network has {module.num_classes} "
                "classes. Name each once, in the order of its logits"
            )
        module.facts = Facts.of({**module.facts.payload, "classes": list(classes)})
    return module


def _wrapped(module: nn.Module, num_classes: int) -> Network:
    return module if isinstance(module, Network) else wrap(module, num_classes)


class _Given:
    """Images in memory or scattered over folders, in the place of a ``Source``."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures, self.count = pictures, len(pictures)

    def frames(self) -> Iterable[Frame]:
        for number, picture in enumerate(self.pictures):
            yield Frame(number, f"{number:05d}.png", as_array(picture))


def _frames(pictures: Picture | Iterable[Picture]) -> tuple[Source | _Given, str]:
    """What to go through, and whether that is ``one`` image, ``several``, or ``named`` ones."""
    if isinstance(pictures, str | Path):
        path = Path(pictures).expanduser()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir():
            return _Given([path]), "one"
        return open_source(path), "named"
    if isinstance(pictures, np.ndarray) and pictures.ndim != 4:
        return _Given([pictures]), "one"
    if not isinstance(pictures, Iterable):
        return _Given([pictures]), "one"  # refused where it is read, with what was got
    return _Given(list(pictures)), "several"


def _returned(
    found: dict[str, np.ndarray], broken: dict[str, str], kind: str
) -> np.ndarray | list[np.ndarray] | dict[str, np.ndarray]:
    if broken and (kind != "named" or not found):
        raise_if_broken(broken, len(found))
    if kind == "named":
        try:
            raise_if_broken(broken, len(found))
        except SegKDError as error:
            warnings.warn(str(error), stacklevel=3)
        return found
    labels = list(found.values())
    return labels[0] if kind == "one" else labels


def _write(files: PredictionFiles, answer: Answer) -> None:
    files.write(answer.frame.name, answer.frame.image, answer.label)
