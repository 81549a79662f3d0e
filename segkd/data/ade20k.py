"""ADE20K as the scene parsing benchmark has it: 150 classes, 20,210 and 2,000 images.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017 (IJCV 2019, arXiv 1608.05442);
http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip).

Class names are the first ones of ``objectInfo150``, colours those of ``color150``.
"""

from pathlib import Path

import numpy as np

from segkd.data.paired import PairedDataset
from segkd.data.reading import SampleError, listed, read_ids, wrong_values

_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))
# RRGGBB
_COLORS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846
08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc
ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14
ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff
ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014
ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900
00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff
ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
PALETTE = np.array([list(bytes.fromhex(color)) for color in _COLORS.split()], np.uint8)

_RELEASE = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}
# Stored values are 0 for void and 1 to 150 for the classes.
_TO_CLASS = np.concatenate([[255], np.arange(len(CLASSES)), np.full(105, 255)]).astype(np.uint8)


class ADE20K(PairedDataset):
    """ADE20K with the 150 classes of the scene parsing benchmark; 0 in the masks is void."""

    name = "ade20k"
    classes = CLASSES
    palette = PALETTE
    expected_tree = """\
ade20k/                        or ADEChallengeData2016 in it
  images/training/ADE_train_00000001.jpg
  images/validation/ADE_val_00000001.jpg
  annotations/training/ADE_train_00000001.png
  annotations/validation/ADE_val_00000001.png"""

    def _find(self) -> list[tuple[Path, Path | None]]:
        self.root = self.root / _RELEASE if (self.root / _RELEASE).is_dir() else self.root
        return self._find_by_folder("images", "annotations", _FOLDERS)

    def _read_label(self, path: Path) -> np.ndarray:
        import cv2

        ids = read_ids(path)
        if ids.ndim != 2:
            text = "the mask has colours, expected ids 0 to 150"
            raise SampleError(path, text, f"Use the annotations of {_RELEASE}.zip.")
        wrong = wrong_values(ids, len(CLASSES) + 1, 0)
        if wrong:
            text = f"values {listed(wrong)} are not ids of the 150 classes"
            raise SampleError(path, text, f"Use the annotations of {_RELEASE}.zip.")
        return cv2.LUT(ids.astype(np.uint8), _TO_CLASS)
