"""Where `segkd lane` writes: a folder, or a file for one overlay."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segkd.errors import ConfigError
from segkd.inference.endings import ENDINGS, WHAT, Kind, is_file_name, unknown_ending
from segkd.inference.media import Frames, Source, video_path


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
        endings = ENDINGS[source.kind]
        is_folder = str(out).endswith("/") or Path(out).is_dir()
        out = Path(out)
        if out.suffix.lower() in endings and not is_folder:
            return cls(out.parent, out)
        if (is_file_name(out) and not is_folder) or out.is_file():
            wanted = f"a folder or a file {endings[0]}" if endings else "a folder"
            raise ConfigError(
                f"--out {out}: {source.name} is {WHAT[source.kind]}. Give {wanted}"
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

    def overlays(self, source: LaneSource) -> list[Path]:
        """The overlays of the source that it was made for.

        Raises:
            ConfigError: see ``video_path``.
        """
        if self.overlay is None:
            names = source.names if isinstance(source, Source) else ()
            return [self.folder / name for name in names]
        if source.kind in ("video", "stream"):
            return [video_path(self.overlay, source.fps)]
        return [self.overlay]

    def json(self) -> Path:
        """The file of lane points."""
        return self.folder / (f"{self.overlay.stem}.lanes.json" if self.overlay else "lanes.json")
