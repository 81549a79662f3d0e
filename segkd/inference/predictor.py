"""Runs a student over an image, a folder or a video, in batches; broken ones are noted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segkd.inference.broken import FAILURES, why
from segkd.inference.images import image_views, probabilities
from segkd.inference.media import Frame, Source, VideoWriter
from segkd.inference.prediction_files import PredictionFiles, write_picture
from segkd.inference.scores import label_map

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.models.network import Network

_IN_LEGEND = 40  # classes in the legend of a video


@dataclass
class Prediction:
    """What a student predicts of one frame: ``label`` (H, W), ``scores`` (K, H, W) if wanted."""

    frame: Frame
    label: np.ndarray
    scores: np.ndarray | None = None


@dataclass
class Predictor:
    """A student and how it is run.

    Attributes:
        network: returns Outputs; on its device.
        config: scales, flip, sliding windows.
        resize: (h, w) to which images are brought first, as in training.
        batch_size: images of one size are computed together.
        scores: whether probabilities are wanted, too.
        autocast: of the runtime.
        broken: what could not be read or predicted, by name, after a run.
    """

    network: "Network"
    config: "EvalConfig | None" = None
    resize: tuple[int, int] | None = None
    batch_size: int = 1
    scores: bool = False
    autocast: Callable[[], AbstractContextManager] = nullcontext
    broken: dict[str, str] = field(default_factory=dict)

    def predictions(
        self, source: Source, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Prediction]:
        """One Prediction per readable frame, in order; the others end up in ``broken``."""
        done = 0
        for batch in self._batches(source):
            predictions = self._predict(batch)
            yield from predictions
            done += len(predictions)
            seen = done + len(self.broken)
            if progress is not None:
                progress(seen, max(seen, source.count))

    def _batches(self, source: Source) -> Iterator[list[Frame]]:
        """Neighbouring frames of one size."""
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
        """Their predictions; images that the network refuses, e.g. as too small, are noted."""
        try:
            return self._predict_together(batch)
        except FAILURES as error:
            if len(batch) == 1:
                self.broken[batch[0].name] = why(error, batch[0].name)
                return []
        return [one for frame in batch for one in self._predict([frame])]

    def _predict_together(self, batch: list[Frame]) -> list[Prediction]:
        images = [frame.image for frame in batch]
        size = images[0].shape[:2]
        with self.autocast():
            passes = image_views(self.network, images, self.config, self.resize)
        labels = label_map(passes, size).cpu().numpy()
        found = probabilities(passes, size) if self.scores else [None] * len(batch)
        return [Prediction(*parts) for parts in zip(batch, labels, found, strict=True)]


def predict_files(
    predictor: Predictor,
    source: Source,
    files: PredictionFiles,
    *,
    picture: Path | None = None,
    video: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, Path | None]:
    """Writes what a student predicts of a source.

    Args:
        picture: where the overlay of a single image goes, instead of into ``files``.
        video: where the overlays of a video go, as a video.
        progress: called as ``progress(done, total)``.

    Returns:
        The number of frames that were predicted, and the video that was written.
    """
    count, writer = 0, VideoWriter(video, fps=source.fps) if video else None
    shown = range(len(files.classes)) if len(files.classes) <= _IN_LEGEND else []
    with writer or nullcontext():
        for prediction in predictor.predictions(source, progress):
            image = prediction.frame.image
            if writer is not None:
                writer.write(files.overlay(image, prediction.label, shown))
            if picture is not None:
                write_picture(picture, files.overlay(image, prediction.label))
            else:
                files.write(prediction.frame.name, image, prediction.label, prediction.scores)
            count += 1
    return count, writer.path if writer else None
