"""A small animated picture of a video, for a page.

    python docs/animate.py lanes.mp4 docs/images/lanes.webp --width 480 --every 4

Needs a wheel of OpenCV 4.12 or newer, or 5.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from segkd.errors import SegKDError
from segkd.inference.media import Source, open_source


def smaller(source: Source, width: int, every: int, crop: float) -> list[np.ndarray]:
    """Each n-th frame in BGR, without a share of its top, made smaller."""
    chosen = []
    for frame in source.frames():
        if frame.image is None or frame.index % every:
            continue
        image = frame.image[round(crop * len(frame.image)) :, :, ::-1]
        height = round(width * image.shape[0] / image.shape[1])
        chosen.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path, help="file .webp, .gif or .png")
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--every", type=int, default=4, help="of how many frames one is taken")
    parser.add_argument("--crop", type=float, default=0.0, help="share cut off at the top")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--quality", type=int, default=60, help="of WebP")
    arguments = parser.parse_args()
    try:
        source = open_source(arguments.video)
        chosen = smaller(source, arguments.width, arguments.every, arguments.crop)
    except SegKDError as error:
        parser.error(str(error))
    animation = cv2.Animation()
    animation.frames = chosen
    pause = round(1000 * arguments.every / (source.fps or 25) / arguments.speed)
    animation.durations = np.full(len(chosen), pause, np.int32)
    quality = [cv2.IMWRITE_WEBP_QUALITY, arguments.quality]
    if not cv2.imwriteanimation(str(arguments.out), animation, quality):
        parser.error(f"cannot write {arguments.out}")
    print(f"{len(chosen)} frames, {arguments.out.stat().st_size / 1e3:.0f} kB: {arguments.out}")


if __name__ == "__main__":
    main()
