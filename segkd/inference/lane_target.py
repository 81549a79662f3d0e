"""Where `segkd lane` writes: a folder, or a file for one overlay."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import ConfigError
from segkd.inference.media import VIDEO_ENDINGS, Frames

Kind = Literal["image", "folder", "video", "stream"]

_WHAT = {
    "image": "an image",
    "folder": "a folder of images",
    "video": "a video",
    "stream": "a camera or stream",
}
_ENDINGS = {
    "image": IMAGE_ENDINGS,
    "folder": (),
    "video": VIDEO_ENDINGS,
    "stream": VIDEO_ENDINGS,
}
_LONGEST_ENDING = 5  # letters; what is longer is part of a folder's name


class LaneSource(Frames, Protocol):
    """Images to detect lanes in: a ``Source`` or a ``Stream``."""

    @property
    def kind(self) -> Kind:
        """What the images come from."""
        ...

    @property
    def name(self) -> str:
        """For messages and files."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder; of a stream a file name for its results."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second of a video or stream."""
        ...


@dataclass(frozen=True)
class Target:
    """Where to write results.

    Attributes:
        folder: of all files except an overlay with its own name.
        overlay: the file for the overlay of an image or video; None for a folder of images.
    """

    folder: Path
    overlay: Path | None

    @classmethod
    def of(cls, out: str | Path, source: LaneSource) -> "Target":
        """The target for an ``out`` that is a folder, or a file for one overlay.

        Raises:
            ConfigError: a file whose ending does not fit the source, or that nothing can write.
        """
        endings = _ENDINGS[source.kind]
        is_folder = str(out).endswith("/") or Path(out).is_dir()
        out = Path(out)
        if out.suffix.lower() in endings and not is_folder:
            return cls(out.parent, out)
        if (is_file_name(out) and not is_folder) or out.is_file():
            wanted = f"a folder or a file {endings[0]}" if endings else "a folder"
            raise ConfigError(
                f"--out {out}: {source.name} is {_WHAT[source.kind]}. Give {wanted}"
                + unknown_ending(out, endings)
            )
        if source.kind == "folder":
            return cls(out, None)
        is_video = source.kind in ("video", "stream")
        name = f"{source.path.stem}.mp4" if is_video else source.path.name
        return cls(out, out / name)

    def lines(self, source: LaneSource) -> Path:
        """The folder of ``.lines.txt`` files; a video has its own."""
        if source.kind not in ("video", "stream") or self.overlay is None:
            return self.folder
        return self.folder / f"{self.overlay.stem}_lines"

    def json(self) -> Path:
        """The file of lane points."""
        return self.folder / (f"{self.overlay.stem}.lanes.json" if self.overlay else "lanes.json")


def is_file_name(out: Path) -> bool:
    """Whether a path looks like that of a file: it ends as ``.gif`` does, not as ``v1.2``."""
    ending = out.suffix[1:]
    return 2 <= len(ending) <= _LONGEST_ENDING and ending[0].isalpha() and ending.isalnum()


def unknown_ending(out: Path, endings: tuple[str, ...]) -> str:
    """What works instead of an ending that is neither of an image nor of a video, or ""."""
    if out.suffix.lower() in (*IMAGE_ENDINGS, *VIDEO_ENDINGS) or not is_file_name(out):
        return ""
    known = f". Files can be {', '.join(endings)}" if endings else ""
    return f"{known}. If {out.name} is to be a folder, end it with a slash: {out}/"
