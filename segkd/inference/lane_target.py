"""Where `segkd lane` writes: a folder, or a file for one overlay."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from segkd.errors import ConfigError, DataError
from segkd.inference.endings import ENDINGS, WHAT, Kind, is_file_name, unknown_ending
from segkd.inference.media import Frames, Source
from segkd.inference.video_writer import video_path
from segkd.texts import parse_json, read_text


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

    def without_earlier(self, source: LaneSource) -> LaneSource:
        """A folder's images without the overlays that an earlier run wrote into a folder below.

        These are named in its file of lane points. All others stay, and none of them is replaced.
        """
        if not isinstance(source, Source) or source.kind != "folder":
            return source
        written, images = self.folder.resolve(), source.path.resolve()
        if written == images or not written.is_relative_to(images):
            return source
        earlier = {written / name for name in self._earlier_names()}
        files = tuple(file for file in source.files if file.resolve() not in earlier)
        return replace(source, files=files, count=len(files))

    def _earlier_names(self) -> list[str]:
        """Names of the images whose overlays are in the folder, if that is known."""
        try:
            found = parse_json(read_text(self.json()), str(self.json()))
        except DataError:
            return []
        frames = found.get("frames") if isinstance(found, dict) else None
        items = frames if isinstance(frames, list) else []
        return [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]

    def json(self) -> Path:
        """The file of lane points."""
        return self.folder / (f"{self.overlay.stem}.lanes.json" if self.overlay else "lanes.json")
