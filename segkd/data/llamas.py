"""LLAMAS: highways with automatic labels, 58 269 training, 20 844 validation images of 717x1276.

Behrendt, Soussan: Unsupervised Labeled Lane Markers Using Maps, ICCV workshops 2019;
https://unsupervised-llamas.com.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles
from segkd.data.lane_masks import Slots
from segkd.data.llamas_markers import lanes_of_markers
from segkd.data.paired import images_below
from segkd.data.reading import SampleError
from segkd.metrics.llamas import FIRST_ROW
from segkd.texts import parse_json, read_text

_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_ENDINGS = ("_color_rect.png", "_gray_rect.png")


class LLAMASConfig(LaneDataConfig):
    """Keys of ``data:`` for LLAMAS."""

    num_lanes: int = Field(4, ge=4, le=4, description="slots: l1, l0, r0, r1, as in the score")
    images: str = Field("color_images", description="folder of the images; or grayscale_images")


class LLAMAS(LaneFiles):
    """LLAMAS; splits ``train``, ``val``, and ``test`` without annotations.

    Markers become a point per row as in the benchmark's program, see ``data.llamas_markers``. The
    score has those from row 300 on.
    """

    name = "llamas"
    metric = "llamas"
    curved = False
    Config = LLAMASConfig
    config: LLAMASConfig
    expected_tree = """\
llamas/
  color_images/train/images-2014-12-22-12-35-10_mapping_280S_ramps/1419280547_0144_color_rect.png
  labels/train/images-2014-12-22-12-35-10_mapping_280S_ramps/1419280547_0144.json
  color_images/valid/…, labels/valid/…
  color_images/test/…           optional: split test"""

    def annotation(self, index: int) -> LaneAnnotation:
        """The lanes from row 300 on. Raises SampleError for a missing or malformed file."""
        lanes = [lane[lane[:, 1] >= FIRST_ROW] for lane in self._lanes(index) if lane is not None]
        return LaneAnnotation([one for one in lanes if len(one) > 1], self.image_size(index))

    def prediction_entry(self, index: int) -> Path:
        """``RUN/IMAGE``, after which the benchmark expects prediction files."""
        image = self.pairs[index][0]
        return Path(image.parent.name) / f"{_stem(image)}.png"

    def _find(self) -> list[tuple[Path, Path | None]]:
        part = _FOLDERS.get(self.split, self.split)
        folder = self.root / self.config.images / part
        images = images_below(folder, (".png", ".jpg")) if folder.is_dir() else []
        if not images:
            raise self._missing(folder)
        if part == "test":
            return [(image, None) for image in images]
        labels = self.root / "labels" / part
        return [
            (image, labels / image.relative_to(folder).parent / f"{_stem(image)}.json")
            for image in images
        ]

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        return tuple(None if one is None else one.astype(np.float32) for one in self._lanes(index))

    def _lanes(self, index: int) -> list[np.ndarray | None]:
        """l1, l0, r0, r1 as points (n, 2), None where there is none."""
        path = self.annotation_file(index)
        item = parse_json(read_text(path), str(path))
        lanes = item.get("lanes") if isinstance(item, dict) else None
        try:
            if not isinstance(lanes, list):
                raise TypeError("lanes")
            return lanes_of_markers(lanes)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            text = f"its lanes are not those of LLAMAS ({type(error).__name__}: {error})"
            raise SampleError(path, text, "Fetch the labels again.") from None


def _stem(image: Path) -> str:
    """The name of an image's label, without its ending."""
    ending = next((one for one in _ENDINGS if image.name.endswith(one)), image.suffix)
    return image.name.removesuffix(ending)
