"""COCO-Stuff 164K: 80 things and 91 stuff classes, 118,287 and 5,000 images.

Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018,
arXiv 1612.03716; https://github.com/nightrome/cocostuff. It consists of COCO's train2017.zip and
val2017.zip, and stuffthingmaps_trainval2017.zip.

Ids are 1 to 182: things, then 91 kinds of stuff. Eleven ids of things are not used in any image.
"""

from pathlib import Path

import numpy as np

from segkd.data.paired import PairedDataset
from segkd.data.palette import bit_palette
from segkd.data.reading import SampleError, listed, read_ids

_THINGS = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush
"""
_STUFF = """
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
    ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff,
    dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
    fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves,
    light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
    plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
    salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
    wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
    waterdrops, window-blind, window-other, wood
"""
# street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush
_NEVER_USED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
CLASSES = tuple(name.strip() for part in (_THINGS, _STUFF) for name in part.split(","))
LABEL_IDS = np.array([number for number in range(1, 183) if number not in _NEVER_USED])

_VOID, _UNKNOWN = 255, 254
_FOLDERS = {"train": "train2017", "val": "val2017"}
_TO_CLASS = np.full(256, _UNKNOWN, np.uint8)
_TO_CLASS[LABEL_IDS - 1] = np.arange(len(CLASSES))  # the maps store the id minus 1
_TO_CLASS[_VOID] = _VOID


class COCOStuff(PairedDataset):
    """COCO-Stuff 164K with its 171 classes: the 182 ids without the 11 unused ones."""

    name = "coco_stuff"
    classes = CLASSES
    palette = bit_palette(len(CLASSES) + 1)[1:]  # without black
    expected_tree = """\
coco_stuff/
  images/{train2017,val2017}/000000000139.jpg
  stuffthingmaps/{train2017,val2017}/000000000139.png"""

    def _find(self) -> list[tuple[Path, Path | None]]:
        return self._find_by_folder("images", "stuffthingmaps", _FOLDERS)

    def _read_label(self, path: Path) -> np.ndarray:
        import cv2

        ids = read_ids(path)
        repair = "Use the unchanged maps of stuffthingmaps_trainval2017.zip."
        if ids.ndim != 2:
            raise SampleError(path, "the mask has colours, expected ids 0 to 181 and 255", repair)
        # As bytes, the larger ids of a file of 16 bits would become others.
        known = ids if ids.dtype == np.uint8 else np.where(ids > _VOID, _UNKNOWN, ids)
        label = cv2.LUT(known.astype(np.uint8, copy=False), _TO_CLASS)
        if (label == _UNKNOWN).any():
            found = np.unique(ids[label == _UNKNOWN]).tolist()
            raise SampleError(path, f"values {listed(found)} are not classes", repair)
        return label
