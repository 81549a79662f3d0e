"""The picture of an image with its lanes: names, scores, numbers, maps, the road from above."""

import numpy as np

from segkd.data.lane_base import left_of_car
from segkd.inference.bird import BirdView, RoadFacts
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.lane_types import Detection, Lane
from segkd.viz.bird_panel import bird_panel
from segkd.viz.lane_overlay import draw_lanes, heat, side_panels, write_line

_STRAIGHT = 5000.0  # metres; larger radii cannot be told from a straight road


def overlay(
    detector: LaneDetector,
    image: np.ndarray,
    found: Detection,
    rate: float | None = None,
    *,
    bird: BirdView | None = None,
    facts: RoadFacts | None = None,
) -> np.ndarray:
    """An image with its lanes, their names and scores; attention maps and the road at its right.

    Args:
        detector: that detected the lanes.
        image: (H, W, 3) uint8 RGB.
        found: the lanes.
        rate: frames per second to write into the image, or None.
        bird: adds the road from above, or None.
        facts: of ``bird`` about these lanes.

    Returns:
        (H, width, 3) uint8 RGB.
    """
    # A lane that is seen takes the place of one that is held in the same slot
    by_slot = {lane.slot: lane for lane in sorted(found.lanes, key=lambda lane: lane.seen)}
    slots = range(len(detector.names))
    drawn_as_pixels = found.pixels is not None  # lanes without identity have no name and no score
    lanes = [
        by_slot[slot].points if slot in by_slot and not drawn_as_pixels else None for slot in slots
    ]
    names = [_text(lane) if (lane := by_slot.get(slot)) else "" for slot in slots]
    left = left_of_car(detector.names)
    drawn = draw_lanes(image, lanes, detector.palette, names, left=left, pixels=found.pixels)
    texts = ([] if rate is None else [f"{rate:.1f} fps"]) + road_texts(facts)
    for row, text in enumerate(texts):
        write_line(drawn, text, row=row)
    seen = image[found.top :]
    panels = {stage: heat(seen, attention) for stage, attention in found.attention.items()}
    drawn = side_panels(drawn, panels)
    if bird is None:
        return drawn
    panel = bird_panel(
        image,
        bird.matrix(image.shape),
        [bird.to_road(lane.points, image.shape) for lane in found.lanes],
        [detector.palette[lane.slot].tolist() for lane in found.lanes],
        reach=bird.reach,
    )
    return np.hstack([drawn, panel])


def road_texts(facts: RoadFacts | None) -> list[str]:
    """Place in the lane and bend of the road, in words; nothing where they are not known."""
    if facts is None:
        return []
    texts = []
    if facts.offset is not None and facts.width is not None:
        side = "right" if facts.offset >= 0 else "left"
        texts.append(f"{abs(facts.offset):.2f} m {side} of centre, lane {facts.width:.1f} m")
    if facts.radius is not None:
        way = "right" if facts.radius > 0 else "left"
        radius = abs(facts.radius)
        texts.append("straight" if radius > _STRAIGHT else f"radius {radius:.0f} m {way}")
    return texts


def _text(lane: Lane) -> str:
    if lane.track is None:
        return f"{lane.name} {lane.score:.2f}"
    return f"{lane.name} #{lane.track} " + (f"{lane.score:.2f}" if lane.seen else "held")
