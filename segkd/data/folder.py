"""Your own images and masks, declared in a YAML file or in the config itself."""

import colorsys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from segkd.data.base import DataConfig, data_root
from segkd.data.files import by_stem, same_name
from segkd.data.lists import ENDING, choose, find_list, image_lines
from segkd.data.paired import IMAGE_ENDINGS, PairedDataset, images_below
from segkd.data.reading import GREY, SampleError, listed, packed_colors, read_ids, read_mask
from segkd.errors import ConfigError, DataError, did_you_mean
from segkd.texts import read_lines, read_text
from segkd.yaml_tree import parse

_UNDECLARED = 254
_MOST_CLASSES = 254
_MANY_COLORS = 20

Byte = Annotated[int, Field(ge=0, le=255)]
Id = Annotated[int, Field(ge=0, le=65535)]
Color = tuple[Byte, Byte, Byte]


def _unique(values: list[Any]) -> list[Any]:
    doubles = sorted({value for value in values if values.count(value) > 1})
    if doubles:
        raise ValueError(f"declared twice: {listed(doubles)}")
    return values


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSpec(_Part):
    """One class, with one or more ids or colours."""

    name: str
    ids: list[Id] | None = Field(None, description="default: the position in the list")
    colors: list[Color] = Field([], description="RGB in the masks, needed for `masks: colors`")
    color: Color | None = Field(None, description="RGB for drawing; default: the first of colors")


def _named(entry: object) -> object:
    return {"name": entry} if isinstance(entry, str) else entry


Class = Annotated[ClassSpec, BeforeValidator(_named)]  # `[road, car]` is valid, too


class SplitSpec(_Part):
    """Folders of one split, below the root."""

    images: Path
    masks: Path | None = Field(None, description="None: images without annotation")
    list: Path | None = Field(
        None,
        description="text file: one image per line, below `images`; after a tab its mask, below "
        "`masks`, where names do not tell",
    )


class FolderSpec(_Part):
    """Declaration of classes and splits; the keys of the YAML."""

    classes: Annotated[list[Class], Field(min_length=2, max_length=_MOST_CLASSES)]
    splits: dict[str, SplitSpec] = Field(min_length=1)
    masks: Literal["ids", "colors"] = "ids"
    ignore: list[Id] = Field([255], description="ids that are void")
    ignore_colors: list[Color] = Field([], description="colours that are void")
    undeclared: Literal["error", "ignore"] = Field("error", description="all other ids or colours")
    image_ending: str = Field("", description="of image names; default: any image file")
    mask_ending: str = Field(".png", description="of mask names, in its place")

    @model_validator(mode="after")
    def _consistent(self) -> "FolderSpec":
        _unique([entry.name for entry in self.classes])
        if self.masks == "colors":
            bare = [entry.name for entry in self.classes if not entry.colors]
            if bare:
                raise ValueError(f"masks are colors, but these classes have none: {listed(bare)}")
        self._no_class_is_void()
        _unique([value for value, _ in self.values()])
        return self

    def _no_class_is_void(self) -> None:
        values = self.values()
        void = {value for value, position in values if position == 255}
        for value, position in values:
            if position != 255 and value in void:
                key = "ignore" if self.masks == "ids" else "ignore_colors"
                shown = value if self.masks == "ids" else list(_unpack(value))
                others = sorted(void - {value})
                rest = others if self.masks == "ids" else [list(_unpack(v)) for v in others]
                default = ", the default of which is [255]" if key == "ignore" else ""
                raise ValueError(
                    f"{shown} belongs to class '{self.classes[position].name}' and to `{key}`"
                    f"{default}: set `{key}: {rest}`, or remove it from the class"
                )

    def values(self) -> list[tuple[int, int]]:
        """Declared pairs of an id, or packed colour, and a class id, or 255 for void."""
        void = self.ignore if self.masks == "ids" else [_pack(c) for c in self.ignore_colors]
        table = [(value, 255) for value in void]
        for position, entry in enumerate(self.classes):
            ids = [position] if entry.ids is None else entry.ids
            own = ids if self.masks == "ids" else [_pack(color) for color in entry.colors]
            table += [(value, position) for value in own]
        return table

    def palette(self) -> np.ndarray:
        """(K, 3) uint8 RGB: declared colours, otherwise evenly spread hues."""
        rows = []
        for position, entry in enumerate(self.classes):
            hue = colorsys.hsv_to_rgb(position * 0.618034 % 1, 0.65, 0.9)
            made = tuple(round(255 * part) for part in hue)
            rows.append(entry.color or (entry.colors[0] if entry.colors else made))
        return np.array(rows, np.uint8)


def _kind_of(spec: object) -> str:
    return "file" if isinstance(spec, (str, Path)) else "keys"


class FolderConfig(DataConfig):
    """Keys of ``data:`` for folders."""

    spec: Annotated[
        Annotated[FolderSpec, Tag("keys")] | Annotated[Path, Tag("file")], Discriminator(_kind_of)
    ] = Field(description="YAML file (as given, or below root), or its keys")


class Folder(PairedDataset):
    """Any images with masks: ``data: {name: folder, root: DIR, spec: mydata.yaml}``.

    The YAML (or the same keys under ``data.spec``)::

        classes:                       # the position is the class id
          - {name: road, ids: [7, 9]}  # default ids: the position
          - {name: car, ids: [26], color: [0, 0, 142]}    # colour for drawing
        ignore: [0, 255]               # ids that are void; default [255]
        undeclared: error              # or: ignore (all other ids are void)
        splits:                        # folders below root, searched recursively
          train: {images: leftImg8bit/train, masks: gtFine/train}
          val: {images: leftImg8bit/val, masks: gtFine/val, list: val.txt}
        image_ending: _leftImg8bit.png           # default: any image file, ending replaced
        mask_ending: _gtFine_labelIds.png        # default .png

    With ``masks: colors`` the masks are RGB, each class has ``colors: [[128, 64, 128]]`` and
    void colours are in ``ignore_colors``. A mask has the same path below ``masks`` as its image
    below ``images``. A list file has one image per line, as a path below ``images`` with or
    without ending; or the image, a tab, and its mask below ``masks``. A split may also be a list
    file itself (``train_split: some.txt``) of paths below the root, which selects images of any
    declared split.
    """

    name = "folder"
    Config = FolderConfig
    config: FolderConfig
    expected_tree = """\
<data.root>/
  <splits.train.images>/**/<name><image_ending>
  <splits.train.masks>/**/<name><mask_ending>
  and the same for every other split of data.spec"""

    def __init__(self, config: FolderConfig, split: str) -> None:
        self.spec = load_spec(config)
        self.classes = tuple(entry.name for entry in self.spec.classes)
        self.palette = self.spec.palette()
        self.mask_ending = self.spec.mask_ending
        self._table: np.ndarray | None = None
        super().__init__(config, split)

    def _find(self) -> list[tuple[Path, Path | None]]:
        if self.split.endswith(ENDING) and self.split not in self.spec.splits:
            return self._in_list()
        if self.split not in self.spec.splits:
            raise ConfigError(
                f"data.spec has no split '{self.split}'."
                f"{did_you_mean(self.split, self.spec.splits)} Declare it under `splits`, or set "
                f"data.train_split and data.val_split."
            )
        where = self.spec.splits[self.split]
        self.shared_folders = where.list is not None
        pairs = self._listed_pairs(where)
        if pairs:
            return pairs
        images = self._images_of(where)
        if not images:
            raise self._missing(self.root / where.images / "**" / f"*{self.spec.image_ending}")
        if where.list is not None:
            images = self._listed(self.root / where.list, images)
        self._by_stem(images, where)
        return [self._pair(image, where) for image in images]

    def _listed_pairs(self, where: SplitSpec) -> list[tuple[Path, Path | None]]:
        """The pairs of a list with lines `image<tab>mask`; empty for any other list."""
        path = self.root / where.list if where.list is not None else None
        if path is None or where.masks is None or not path.is_file():
            return []
        lines = [(number, line.split("\t")) for number, line in read_lines(path)]
        if not any(len(columns) > 1 for _, columns in lines):
            return []
        pairs: list[tuple[Path, Path | None]] = []
        for number, columns in lines:
            if len(columns) != 2:
                raise DataError(
                    f"{path}, line {number}: got {len(columns)} columns, expected an image and its "
                    "mask, with a tab in between, as in other lines of this list"
                )
            image, mask = (column.strip() for column in columns)
            pairs.append((self.root / where.images / image, self.root / where.masks / mask))
        return pairs

    def _images_of(self, where: SplitSpec) -> list[Path]:
        """All images of a split's folder; masks in it, or in a folder below it, are none."""
        folder, ending = self.root / where.images, self.spec.image_ending
        images = images_below(folder, (ending.lower(),) if ending else IMAGE_ENDINGS)
        own = where.masks is not None and self.root / where.masks == folder
        masks = {folder} if own else set()
        if where.list is None:  # which says what is an image
            every = (self.root / one.masks for one in self.spec.splits.values() if one.masks)
            masks |= {path for path in every if folder in path.parents}
        return [
            path
            for path in images
            if masks.isdisjoint(path.parents) or not path.name.endswith(self.mask_ending)
        ]

    def _pair(self, image: Path, where: SplitSpec) -> tuple[Path, Path | None]:
        if where.masks is None:
            return image, None
        stem = self._stem(image, self.root / where.images)
        return image, self.root / where.masks / (stem + self.mask_ending)

    def _by_stem(self, images: list[Path], where: SplitSpec) -> dict[str, Path]:
        """Images by path below the folder of the split, without ending; no two may share a mask."""
        return by_stem(images, lambda path: self._stem(path, self.root / where.images))

    def _in_list(self) -> list[tuple[Path, Path | None]]:
        """The pairs of a split that is a list file: images of any declared split."""
        self.shared_folders = True
        path = find_list(self.split, self.root, "data: a split of dataset 'folder'")
        pairs: dict[str, tuple[Path, Path | None]] = {}
        for where in self.spec.splits.values():
            for stem, image in self._by_stem(self._images_of(where), where).items():
                for key in (where.images / stem, image.relative_to(self.root)):
                    pairs.setdefault(key.as_posix(), self._pair(image, where))
        return choose(path, image_lines(path), pairs, str(self.root))

    def _stem(self, path: Path, folder: Path) -> str:
        """Path of an image below ``folder``, without ending."""
        name = path.relative_to(folder).as_posix()
        ending = self.spec.image_ending
        return name[: -len(ending)] if ending else name.removesuffix(path.suffix)

    def _listed(self, path: Path, images: list[Path]) -> list[Path]:
        if not path.is_file():
            raise DataError(f"{path}: there is no such list file (`list` in data.spec).")
        lines = [line for _, line in read_lines(path)]
        if not lines:
            raise DataError(
                f"{path}: the list is empty. Write one image per line, or remove `list` of split "
                f"'{self.split}' in data.spec to use all images."
            )
        folder = self.root / self.spec.splits[self.split].images
        by_name = {same_name(image.relative_to(folder).as_posix()): image for image in images}
        lines = [same_name(line) for line in lines]
        if any(line not in by_name for line in lines):  # names without endings
            by_name |= self._by_stem(images, self.spec.splits[self.split])
        missing = [line for line in lines if line not in by_name]
        if missing:
            raise DataError(
                f"{path}: no image for {listed(missing, 3)}. Lines are paths below "
                f"{self.spec.splits[self.split].images}."
            )
        return [by_name[line] for line in lines]

    def _read_label(self, path: Path) -> np.ndarray:
        colors = self.spec.masks == "colors"
        mask = read_mask(path) if colors else read_ids(path)
        if mask.ndim == 3 and not colors:
            text = "the mask holds RGB colours, but data.spec says `masks: ids`"
            raise SampleError(path, text, "Set `masks: colors`.")
        if mask.ndim == 2 and colors:
            self._require_greys(path, mask)
        values = packed_colors(mask) if colors else mask
        label = self._lookup()[values]
        if self.spec.undeclared == "error" and (label == _UNDECLARED).any():
            found = np.unique(values[label == _UNDECLARED]).tolist()
            shown = [_unpack(value) for value in found] if colors else found
            raise SampleError(
                path,
                f"undeclared {self.spec.masks} {listed(shown)}",
                _advice(colors, len(found)),
            )
        return label

    def _require_greys(self, path: Path, mask: np.ndarray) -> None:
        """Among colours, a mask of one channel may be black, or of other greys that are declared.

        All others hold ids, also where `undeclared: ignore` would make these void.
        """
        greys = [value & 255 for value, _ in self.spec.values() if value == (value & 255) * GREY]
        ids = np.setdiff1d(mask, greys).tolist()
        if ids:
            raise SampleError(
                path,
                f"the mask holds ids ({listed(ids)}), but data.spec says `masks: colors`",
                "Convert it to RGB; or if all masks hold ids, set `masks: ids`.",
            )

    def _lookup(self) -> np.ndarray:
        """Class id by value of a mask; 64 KiB, or 16 MiB for colours, created on first use."""
        if self._table is None:
            size = 1 << (24 if self.spec.masks == "colors" else 16)
            rest = _UNDECLARED if self.spec.undeclared == "error" else 255
            self._table = np.full(size, rest, np.uint8)
            values, classes = zip(*self.spec.values(), strict=True)
            self._table[list(values)] = classes
        return self._table


def load_spec(config: FolderConfig) -> FolderSpec:
    """The declared spec.

    Raises:
        ConfigError: the file is missing, or has an invalid key, which is named.
    """
    if isinstance(config.spec, FolderSpec):
        return config.spec
    path = config.spec.expanduser()
    if not path.is_file():
        path = data_root("folder", config) / config.spec
    if not path.is_file():
        raise ConfigError(
            f"data.spec: there is no file {config.spec}, neither here nor at {path}. It declares "
            f"classes and splits: see datasets/README.md."
        )
    try:
        return FolderSpec.model_validate(parse(read_text(path), str(path)).plain())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {key + ': ' if key else ''}{first['msg']}. See datasets/README.md."
        ) from None


def _advice(colors: bool, count: int) -> str:
    """How to declare values; many colours arise from interpolation at borders of classes."""
    key = "ignore_colors" if colors else "ignore"
    mixed = (
        " Many colours are usually interpolated ones, from scaling or anti-aliasing: "
        "`undeclared: ignore` makes those pixels void."
        if colors and count > _MANY_COLORS
        else ""
    )
    text = f"Add them to a class or to `{key}` in data.spec, or set `undeclared: ignore`."
    return text + mixed


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _unpack(value: int) -> Color:
    return value >> 16, value >> 8 & 255, value & 255
