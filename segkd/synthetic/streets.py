"""Streets: endless synthetic street scenes with the 19 classes of Cityscapes, drawn on the fly.

No files are read or written: an image is a pure function of (seed, split, index).
"""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from segkd.data.base import DataConfig, Dataset, Sample, Size
from segkd.data.cityscapes import CLASSES, PALETTE
from segkd.errors import DataError
from segkd.synthetic.drawn import NoFolder

_SPLITS = ("train", "val", "teacher", "teacher_val", "unlabeled")


class Streets(Dataset):
    """Scenes of a seeded world, in splits without common scenes.

    "train" and "val" are for students; "teacher" and "teacher_val" are other scenes of the same
    world: the teacher that ships with the package has not seen the scenes that students are
    trained and scored on. "unlabeled" are further scenes, for ``data.unlabeled``.

    Raises:
        DataError: unknown split.
    """

    name = "streets"
    classes = CLASSES
    palette = PALETTE

    class Config(DataConfig):
        """Sizes and numbers of scenes; the same scene looks the same at any size."""

        name: str = "streets"
        root: NoFolder = Field(None, description="refused: images are drawn, not read")
        size: Size = Field((128, 256), description="height and width of the images")
        train_images: PositiveInt = Field(1000, description="of the split train")
        val_images: PositiveInt = Field(100, description="of the splits val and teacher_val")
        teacher_images: PositiveInt = Field(4000, description="of the split teacher")
        unlabeled_images: PositiveInt = Field(400, description="of the split unlabeled")
        seed: NonNegativeInt = Field(0, description="of the world: another seed, other scenes")
        weather: list[Literal["sun", "overcast", "dusk", "night", "fog", "rain"]] = Field(
            [], description="the only kinds of weather in all splits; default: every kind"
        )

    config: Config

    def __init__(self, config: DataConfig, split: str) -> None:
        super().__init__(config, split)
        if split not in _SPLITS:
            raise DataError(f"streets has no split '{split}': use one of {', '.join(_SPLITS)}")

    @property
    def facts(self) -> dict[str, Any]:
        """On what the scenes depend, as plain data."""
        config = self.config
        return {"size": list(config.size), "seed": config.seed, "weather": list(config.weather)}

    def __len__(self) -> int:
        return getattr(self.config, self._length_key)

    @property
    def _length_key(self) -> str:
        return f"{'val' if self.split.endswith('val') else self.split}_images"

    def read(self, index: int) -> Sample:
        """Draws scene ``index``. Raises DataError for an index beyond the split."""
        from segkd.synthetic.scenes.scene import draw_scene

        if not 0 <= index < len(self):
            raise DataError(
                f"streets: '{self.split}' has scenes 0 to {len(self) - 1}, got {index}; "
                f"data.{self._length_key} sets their number"
            )
        key = (self.config.seed, _SPLITS.index(self.split), index)
        image, label = draw_scene(key, self.config.size, self.config.weather)
        return Sample(image, label, f"{self.split}_{index:06d}")
