"""Runs a student over the images of a source in batches; broken images are skipped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkd.data.writing import write_image
from segkd.errors import ConfigError
from segkd.inference.broken import FAILURES, why
from segkd.inference.images import image_views
from segkd.inference.lane_view import lane_view, trained_size
from segkd.inference.media import Frame, Frames, Source
from segkd.inference.prediction_files import PredictionFiles
from segkd.inference.scores import class_probabilities, label_map
from segkd.inference.video_writer import VideoWriter

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.models.network import Network

READ = (  # keys of the configuration; the size of batches is an argument
    *(f"eval.{key}" for key in ("scales", "flip", "sliding", "overlap")),
    "data.resize",
    "runtime.device",
    "runtime.threads",
    "runtime.precision",
)
_IN_LEGEND = 40  # largest number of classes in the legend of a video


@dataclass
class Prediction:
    """What a student predicts for one image.

    Attributes:
        frame: the image.
        label: (H, W) class ids, uint8 or int64.
        scores: (K, H, W) float32 class probabilities, or None.
    """

    frame: Frame
    label: np.ndarray
    scores: np.ndarray | None = None


@dataclass
class Predictor:
    """A student and how to run it.

    Attributes:
        network: returns Outputs; on its device.
        config: scales, flip, sliding windows; None: the whole image once.
        resize: (h, w) to which images are resized first, as in training.
        batch_size: number of images of one size that are computed together.
        scores: whether to return class probabilities, too.
        autocast: of the runtime.
        broken: after a run, why images could not be read or predicted, by name.

    Raises:
        ConfigError: ``flip`` for a lane student, or no image per batch.
    """

    network: "Network"
    config: "EvalConfig | None" = None
    resize: tuple[int, int] | None = None
    batch_size: int = 1
    scores: bool = False
    autocast: Callable[[], AbstractContextManager] = nullcontext
    broken: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:  # else all images would be one batch
            raise ConfigError(f"batch_size: got {self.batch_size}, expected 1 or more")
        if self.config is not None and self.config.flip and self._lanes is not None:
            raise ConfigError("eval.flip=true would mix lanes of the left and the right: remove it")

    @property
    def _lanes(self) -> Mapping[str, Any] | None:
        """What a lane student says of its images; None of any other."""
        facts = self.network.info.payload.get("lanes")
        return facts if facts is not None and "cut_top" in facts else None

    def predictions(
        self, source: Frames, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Prediction]:
        """One Prediction per readable image, in order; the others are added to ``broken``.

        Args:
            source: the images.
            progress: called with (done, total) images.
        """
        done = 0
        for batch in self._batches(source):
            predictions = self._predict(batch)
            yield from predictions
            done += len(predictions)
            seen = done + len(self.broken)
            if progress is not None:
                progress(seen, max(seen, source.count))

    def _batches(self, source: Frames) -> Iterator[list[Frame]]:
        """Consecutive images of one size."""
        batch: list[Frame] = []
        for frame in source.frames():
            if frame.image is None:
                self.broken[frame.name] = frame.error
                continue
            if batch and (
                len(batch) == self.batch_size or batch[0].image.shape != frame.image.shape
            ):
                yield batch
                batch = []
            batch.append(frame)
        if batch:
            yield batch

    def _predict(self, batch: list[Frame]) -> list[Prediction]:
        """Predictions without images that the network refuses, e.g. because they are too small."""
        try:
            return self._predict_together(batch)
        except FAILURES as error:
            if len(batch) == 1:
                self.broken[batch[0].name] = why(error, batch[0].name)
                return []
        return [one for frame in batch for one in self._predict([frame])]

    def _predict_together(self, batch: list[Frame]) -> list[Prediction]:
        above, size = self._part(batch[0].image)
        images = [frame.image[above:] for frame in batch]
        height, width = images[0].shape[:2]
        with self.autocast():
            passes = image_views(self.network, images, self.config, size)
        labels = label_map(passes, (height, width)).cpu().numpy()
        labels = np.pad(labels, ((0, 0), (above, 0), (0, 0)))  # nothing is above the road
        if not self.scores:
            return [Prediction(*parts) for parts in zip(batch, labels, strict=True)]
        scores = class_probabilities(passes, (height, width)).float().cpu().numpy()
        scores = np.pad(scores, ((0, 0), (0, 0), (above, 0), (0, 0)))
        scores[:, 0, :above] = 1.0
        return [Prediction(*parts) for parts in zip(batch, labels, scores, strict=True)]

    def _part(self, image: np.ndarray) -> tuple[int, tuple[int, int] | None]:
        """Rows at the top that the student does not see, and to what the rest is resized.

        Lane students see a camera's images as `segkd lane` shows them: the road, at the size of
        their training.
        """
        facts = self._lanes
        if facts is None:
            return 0, self.resize
        view, (height, width) = lane_view(facts, image.shape[:2]), trained_size(facts)
        size = self.network.fixed_size or self.resize or (height - facts["cut_top"], width)
        return view.top + view.cut, size


def predict_files(
    predictor: Predictor,
    source: Source,
    files: PredictionFiles,
    *,
    picture: Path | None = None,
    video: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[int, Path | None]:
    """Writes the predictions of a student for a source.

    Args:
        predictor: the student.
        source: the images.
        files: gets overlays, label maps and probabilities.
        picture: file for the overlay of a single image, which then is not written to ``files``.
        video: file for the overlays of a video.
        progress: called with (done, total) images.
        stop: asked after each image whether to end; what is written until then is complete.

    Returns:
        The number of predicted images, and the video if one was written.
    """
    count, writer = 0, VideoWriter(video, fps=source.fps) if video else None
    shown = range(len(files.classes)) if len(files.classes) <= _IN_LEGEND else []
    with writer or nullcontext():
        for prediction in predictor.predictions(source, progress):
            image = prediction.frame.image
            if writer is not None:
                writer.write(files.overlay(image, prediction.label, shown))
            if picture is not None:
                write_image(picture, files.overlay(image, prediction.label))
            else:
                files.write(prediction.frame.name, image, prediction.label, prediction.scores)
            count += 1
            if stop():
                break
    return count, writer.path if writer else None
