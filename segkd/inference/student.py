"""Inference with a trained student in Python: label maps of images, folders and videos."""

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from segkd.config.load import require_read, stored_evaluation
from segkd.config.read_keys import limit_given_threads
from segkd.config.schema import EvalConfig, EvaluationConfig
from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import ConfigError, SegKDError
from segkd.inference.broken import early_end, raise_if_broken
from segkd.inference.foreign_student import network_and_rest
from segkd.inference.images import Image, as_array
from segkd.inference.media import Frame, Source, open_source
from segkd.inference.output_names import refuse_replacing, without_outputs
from segkd.inference.prediction_files import PredictionFiles, Wanted
from segkd.inference.predictor import READ, Predictor
from segkd.models.build import load_student, network_from_file, payload_of
from segkd.models.given import rewrapped
from segkd.models.module import wrap
from segkd.models.network import Network
from segkd.models.student_info import StudentInfo
from segkd.models.weights import load_student_file
from segkd.runtime import Runtime

Labels = np.ndarray | list[np.ndarray] | dict[str, np.ndarray]
Kind = Literal["one", "several", "named"]


class Student:
    """A trained network with its classes and configuration; ``segkd.load_student`` opens one.

    Args:
        network: on any device; it is run in eval mode.
        overrides: of the keys ``eval`` and ``data`` of the training's configuration, e.g.
            ``["eval.flip=true"]``.

    Attributes:
        network: takes uint8 RGB images (B, 3, H, W) and returns ``Outputs``.
    """

    def __init__(self, network: Network, overrides: Sequence[str] = ()) -> None:
        self.network, self._overrides = network, tuple(overrides)
        self._autocast: Callable[[], AbstractContextManager] = nullcontext

    @functools.cached_property
    def config(self) -> EvaluationConfig:
        """Options of evaluation and data, as in the training's evaluations.

        Raises:
            ConfigError: the stored configuration or an override is not valid, or prediction does
                not read the override.
        """
        require_read(self._overrides, READ, "prediction")
        return stored_evaluation(payload_of(self.network), self._overrides)

    @property
    def classes(self) -> tuple[str, ...]:
        """K names; the position is the class id."""
        return self.network.classes

    @property
    def palette(self) -> np.ndarray:
        """(K, 3) uint8 RGB: the colour of each class."""
        return self.network.palette

    def to(self, device: str | torch.device) -> Self:
        """Moves the network, e.g. to ``"cuda"``; returns the student itself."""
        self.network.to(device)
        return self

    def predict(
        self,
        images: Image | Iterable[Image],
        config: EvalConfig | None = None,
        *,
        batch_size: int = 1,
        out: str | Path | None = None,
    ) -> Labels:
        """Predicts the class of each pixel, as ``segkd predict`` does.

        Args:
            images: an image, (H, W, 3) uint8 RGB or the path of a file; several of them; or the
                path of a folder or of a video.
            config: scales, flip and sliding windows; None: as in the training's evaluations.
            batch_size: number of images of one size that are computed together.
            out: folder for overlays and label maps; None: no files are written.

        Returns:
            Class ids (H, W), uint8, or int64 for more than 256 classes: of one image an array, of
            several a list, of a folder or video a dictionary by name. Unreadable images of a
            folder or video are skipped, with a warning; so is the end of a video that is cut off.

        Raises:
            SegKDError: an image cannot be read; of a folder or video, none can.
            ConfigError: a file in ``out`` would replace one of the images.
        """
        frames, kind = _frames(images)
        files = None
        if out is not None:
            folder = Path(out).expanduser()
            frames = without_outputs(frames, folder) if isinstance(frames, Source) else frames
            files = self._files(folder, frames)
        predictor = self._predictor(config, batch_size)
        found: dict[str, np.ndarray] = {}
        for prediction in predictor.predictions(frames):
            frame = prediction.frame
            found[frame.name] = prediction.label
            if files is not None:
                files.write(frame.name, frame.image, prediction.label)
        if early := early_end(frames, len(found) + len(predictor.broken)):
            warnings.warn(early, stacklevel=2)
        return _returned(found, predictor.broken, kind)

    def predict_folder(
        self,
        folder: str | Path,
        out: str | Path | None = None,
        config: EvalConfig | None = None,
        *,
        batch_size: int = 1,
    ) -> dict[str, np.ndarray]:
        """Predicts the images of a folder, searched recursively.

        Args:
            folder: of the images.
            out, config, batch_size: as for ``predict``.

        Returns:
            Class ids (H, W) by the path of the file below ``folder``.

        Raises:
            SegKDError: no such folder, no image in it, or none that can be read.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ConfigError(f"there is no folder {folder}: give one with images")
        found = self.predict(path, config, batch_size=batch_size, out=out)
        assert isinstance(found, dict)
        return found

    def predict_scores(self, image: Image, config: EvalConfig | None = None) -> np.ndarray:
        """Class probabilities (K, H, W) of one image, float32; arguments as for ``predict``.

        Raises:
            SegKDError: the image cannot be read, or the student is an exported file that returns
                class ids only.
        """
        if getattr(self.network, "returns_labels", False):
            raise ConfigError(
                f"{self.network.title} returns class ids only: argmax is baked into it. Export it "
                "with bake='normalize'"
            )
        predictor = self._predictor(config, 1)
        predictor.scores = True
        predictions = list(predictor.predictions(_Given([image])))
        raise_if_broken(predictor.broken, len(predictions))
        scores = predictions[0].scores
        assert scores is not None  # requested from the predictor
        return scores

    def __call__(self, image: Image) -> Labels:
        """``predict``, for one image or several of any size.

        Raises:
            SegKDError: a tensor, which is for ``network``; otherwise as for ``predict``.
        """
        if isinstance(image, Tensor):
            raise ConfigError(
                "got a tensor: a student takes arrays (H, W, 3) and paths. For Outputs of images "
                "(B, 3, H, W) call student.network(images)"
            )
        return self.predict(image)

    def __repr__(self) -> str:
        return f"Student({self.network.title}, {len(self.classes)} classes)"

    def start(self) -> Self:
        """Moves to the device and sets the precision of its configuration."""
        limit_given_threads(self._overrides)
        runtime = Runtime.start(self.config.runtime.device, self.config.runtime.precision)
        self._autocast = runtime.autocast
        return self.to(runtime.device)

    def _predictor(self, config: EvalConfig | None, batch_size: int) -> Predictor:
        return Predictor(
            self.network,
            config or self.config.eval,
            self.config.data.resize,
            batch_size,
            autocast=self._autocast,
        )

    def _files(self, target: Path, frames: "Source | _Given") -> PredictionFiles:
        several = isinstance(frames, Source) or len(frames.names) > 1
        names: Sequence[str] = frames.names if several else ()
        files = PredictionFiles(target, Wanted(), self.classes, self.palette, names)
        refuse_replacing(files.outputs(frames.names), frames.originals)
        files.write_facts()
        return files


StudentSource = str | Path | nn.Module | Student


def opened(
    student: StudentSource, module: nn.Module | None = None, classes: Sequence[str] = ()
) -> Network:
    """The network of a student, with its classes and colours; from a file it is in eval mode.

    Args:
        student: a run folder, a checkpoint, an exported ``.onnx``, ``pretrained:NAME``; a Student;
            or a network: one of segkd, or any module that takes normalised images and returns
            logits.
        module: the caller's own network, if the student of the file was one; its weights are
            overwritten.
        classes: K names, for a module that is not from a file.

    Raises:
        SegKDError: no such student, or other arguments do not fit it.
    """
    if isinstance(student, Student):
        student = student.network
    if isinstance(student, nn.Module):
        if module is not None:
            raise ConfigError(
                "module: goes with the file of a student, e.g. a run folder, but the student is "
                f"already a {type(student).__name__}. Remove it"
            )
        return _own(student, classes)
    if module is None:
        return network_from_file(student)[0]
    payload = load_student_file(student)
    network = rewrapped(module, payload, student)
    load_student(network, payload, str(student))
    network.info = StudentInfo.of(payload)
    return network.eval()


def predict(
    student: StudentSource,
    images: Image | Iterable[Image],
    *,
    module: nn.Module | None = None,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    batch_size: int = 1,
    out: str | Path | None = None,
) -> Labels:
    """Predicts the class of each pixel, as ``segkd predict`` does.

    Args:
        student, module, classes: see ``opened``.
        images, batch_size, out: see ``Student.predict``.
        overrides: of the keys ``eval``, ``data`` and ``runtime``, e.g. ``["eval.flip=true"]``;
            ``student.…`` and ``data.name=…`` for a weights file of another program.

    Returns:
        Class ids as of ``Student.predict``.

    Raises:
        SegKDError: an image cannot be read; of a folder or video, none can.
    """
    if isinstance(student, str | Path) and module is None:
        student, _, overrides = network_and_rest(student, overrides, READ, "prediction")
    started = Student(opened(student, module, classes), overrides).start()
    return started.predict(images, batch_size=batch_size, out=out)


def _own(module: nn.Module, classes: Sequence[str]) -> Network:
    """A module as a network with classes."""
    if not isinstance(module, Network):
        if not classes:
            raise ConfigError(
                f"a {type(module).__name__} has no class names: give classes=['road', …], in "
                "the order of its logits"
            )
        module = wrap(module, len(classes))
    if classes:
        if len(classes) != module.num_classes:
            raise ConfigError(
                f"classes: got {len(classes)} names, but the network has {module.num_classes} "
                "classes. Name each once, in the order of its logits"
            )
        module.info = StudentInfo.of({**module.info.payload, "classes": list(classes)})
    return module


class _Given:
    """Images in memory, or files in any folders, as ``Frames``."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.images, self.count = images, len(images)

    @property
    def names(self) -> list[str]:
        """Those of files, unless several have the same; else numbers, which no file has."""
        files = [Path(i).name if isinstance(i, str | Path) else "" for i in self.images]
        once = {name for name, count in Counter(files).items() if name and count == 1}
        return [name if name in once else _number(place, once) for place, name in enumerate(files)]

    @property
    def originals(self) -> list[Path]:
        return [Path(image).expanduser() for image in self.images if isinstance(image, str | Path)]

    def frames(self) -> Iterator[Frame]:
        for number, (name, image) in enumerate(zip(self.names, self.images, strict=True)):
            yield Frame(number, name, as_array(image))


def _number(place: int, taken: Collection[str]) -> str:
    """A file name of an image by its place, with more zeros if a file has the usual one."""
    name = f"{place:05d}.png"
    while name in taken:
        name = f"0{name}"
    return name


def _frames(images: Image | Iterable[Image]) -> "tuple[Source | _Given, Kind]":
    """The images, and whether these are ``one``, ``several``, or ``named`` by files."""
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir():
            return _Given([path]), "one"
        return open_source(path), "named"
    if isinstance(images, np.ndarray) and images.ndim != 4:
        return _Given([images]), "one"
    if not isinstance(images, Iterable):
        return _Given([images]), "one"  # refused with a message when it is read
    return _Given(list(images)), "several"


def _returned(found: dict[str, np.ndarray], broken: dict[str, str], kind: Kind) -> Labels:
    if broken and (kind != "named" or not found):
        raise_if_broken(broken, len(found))
    if kind == "named":
        try:
            raise_if_broken(broken, len(found))
        except SegKDError as error:
            warnings.warn(str(error), stacklevel=4)
        return found
    labels = list(found.values())
    return labels[0] if kind == "one" else labels
