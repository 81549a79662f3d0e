"""Lanes of BDD100K as ENet-SAD scores them: accuracy (a recall) and IoU of the lane pixels.

Both are computed per image and averaged over images; one without annotated lanes counts 0.
Annotations are the centre lines between a lane's two borders, 2 px wide for testing (8 px for
training).

Source: Y. Hou et al., "Learning Lightweight Lane Detection CNNs by Self Attention Distillation",
ICCV 2019, arXiv:1908.00821, and its public evaluation code.
"""

from dataclasses import dataclass

import numpy as np

from segkd.errors import DataError

__all__ = ["Sums", "evaluate_image"]


def evaluate_image(predicted: np.ndarray, annotated: np.ndarray) -> tuple[float, float]:
    """Compares two maps of lane pixels.

    Args:
        predicted, annotated: (H, W) of one size, integer or bool; nonzero pixels are lane.

    Returns:
        Accuracy TP / (TP + FN) and IoU TP / (TP + FP + FN); 0 and 0 without annotated pixels.

    Raises:
        DataError: maps of different shapes, or not two-dimensional.
    """
    predicted, annotated = np.asarray(predicted), np.asarray(annotated)
    if predicted.shape != annotated.shape or predicted.ndim != 2:
        raise DataError(
            f"predicted {predicted.shape} and annotated {annotated.shape}: expected two (H, W) "
            "maps of one size; bring the prediction to the annotation's size"
        )
    predicted, annotated = predicted != 0, annotated != 0
    lanes = np.count_nonzero(annotated)
    if not lanes:
        return 0.0, 0.0
    hits = np.count_nonzero(predicted & annotated)
    return hits / lanes, hits / (lanes + np.count_nonzero(predicted) - hits)


@dataclass(frozen=True)
class Sums:
    """Sums over images, which can be added over parts of a dataset."""

    accuracy_sum: float = 0.0
    iou_sum: float = 0.0
    images: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.accuracy_sum + other.accuracy_sum,
            self.iou_sum + other.iou_sum,
            self.images + other.images,
        )

    def update(self, predicted: np.ndarray, annotated: np.ndarray) -> "Sums":
        """These sums plus one image.

        Args:
            predicted, annotated: (H, W), as for ``evaluate_image``.

        Raises:
            DataError: maps of different shapes, or not two-dimensional.
        """
        return self + Sums(*evaluate_image(predicted, annotated), 1)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over images; 0 without images."""
        return self.accuracy_sum / self.images if self.images else 0.0

    @property
    def iou(self) -> float:
        """Mean IoU of the lanes over images; 0 without images."""
        return self.iou_sum / self.images if self.images else 0.0
