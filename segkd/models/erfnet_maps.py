"""Names of weights in the code of ERFNet's author and in ERFNet-CULane, the lane detector.

Eromera/erfnet_pytorch: the whole network (``Net``), and its encoder as trained on ImageNet.
cardwing/Codes-for-Lane-Detection, ERFNet-CULane-PyTorch: the same with SCNN's existence branch,
for BGR images.
"""

import re

import torch
from torch import Tensor

from segkd.config.networks import ExistHeadConfig

# ERFNet-CULane's mean as RGB on the scale 0..1, and no division.
CULANE = ([123.68 / 255, 116.779 / 255, 103.939 / 255], [1 / 255] * 3)

_CELLS = 13 * 61  # of the pooled class map of images of 208x976
Rules = tuple[tuple[str, str], ...]
_BLOCK = (("conv3x1_1", 0), ("conv1x3_1", 2), ("bn1", 3), ("conv3x1_2", 5), ("conv1x3_2", 7))
_STAGE2, _STAGE3 = 6, 11  # layers of the encoder before these numbers
_ENCODER = (
    (r"^(?:features\.)?encoder\.initial_block\.", "encoder.stage1."),
    *((rf"^(?:features\.)?encoder\.layers\.{i}\.", f"encoder.stage2.{i}.") for i in range(_STAGE2)),
    *(
        (rf"^(?:features\.)?encoder\.layers\.{i}\.", f"encoder.stage3.{i - _STAGE2}.")
        for i in range(_STAGE2, _STAGE3)
    ),
    *(
        (rf"^(?:features\.)?encoder\.layers\.{i}\.", f"encoder.stage4.{i - _STAGE3}.")
        for i in range(_STAGE3, _STAGE3 + 4)
    ),
)
_DECODER = (
    *((rf"^decoder\.layers\.{i}\.conv\.", f"decoder.{to}.") for i, to in ((0, 0), (3, 5))),
    *((rf"^decoder\.layers\.{i}\.bn\.", f"decoder.{to}.") for i, to in ((0, 1), (3, 6))),
    *(
        (rf"^decoder\.layers\.{i}\.", f"decoder.{to}.")
        for i, to in ((1, 3), (2, 4), (4, 8), (5, 9))
    ),
    (r"^decoder\.output_conv\.", "classifier."),
)
_PARTS = (
    *((rf"\.{name}\.", f".branch.{number}.") for name, number in (*_BLOCK, ("bn2", 8))),
    (r"^(encoder\..*)\.bn\.", r"\1.norm."),
)
_EXISTENCE = (
    (r"^lane_exist\.layers\.0\.", "exist_head.branch.0."),
    (r"^lane_exist\.layers\.1\.", "exist_head.branch.1."),
    (r"^lane_exist\.layers_final\.1\.", "exist_head.branch.4."),
    (r"^lane_exist\.linear1\.", "exist_head.branch.8."),
    (r"^lane_exist\.linear2\.", "exist_head.branch.10."),
)
RULES = (*_ENCODER, *_DECODER, *_PARTS, *_EXISTENCE)

# Which axes of a tensor are channels that lie one upon another from the image to the decoder: the
# image's channels are pooled, and appended to those of the convolution in each down-sampling.
_CHANNELS: tuple[tuple[str, int, int], ...] = (
    (r"encoder\.stage1\.conv\.weight", 1, 3),
    (r"encoder\.stage1\.norm\..*", 0, 16),
    (r"encoder\.stage2\.0\.conv\.weight", 1, 16),
    (r"encoder\.stage[23]\.0\.norm\..*", 0, 0),
    (r"encoder\.stage3\.0\.conv\.weight", 1, 64),
    (r"encoder\.stage\d\.\d+\.branch\.0\.weight", 1, 0),
    (r"encoder\.stage\d\.\d+\.branch\.[78]\..*", 0, 0),
    (r"decoder\.0\.weight", 0, 128),
    (r"exist_head\.branch\.0\.weight", 1, 128),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of ERFNet's encoder by segkd's names, without those of other parts."""
    found = {}
    for key, value in state.items():
        for pattern, replacement in (*_ENCODER, *_PARTS):
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return {key: value for key, value in found.items() if key.startswith("encoder.stage")}


def as_rgb(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts weights (by segkd's names) from BGR to RGB images.

    The last three of the channels that ``_CHANNELS`` names are those of the image.
    """
    found = {}
    for key, value in state.items():
        for pattern, axis, size in _CHANNELS:
            if value.ndim > axis and re.fullmatch(pattern, key):
                count = size or value.shape[axis]
                order = [*range(count - 3), count - 1, count - 2, count - 3]
                value = value.index_select(axis, torch.tensor(order))
                break
        found[key] = value
    return found


def exist_head(found: dict[str, Tensor]) -> ExistHeadConfig | None:
    """SCNN's branch if a file (segkd's names) has that of the published size; else None."""
    hidden = found.get("exist_head.branch.8.weight")
    if hidden is None or hidden.shape[1] % _CELLS:
        return None
    return ExistHeadConfig(tap="stage4", kind="scnn", channels=len(hidden), size=(208, 976))


def options(found: dict[str, Tensor]) -> dict[str, float]:
    """Options of ``erfnet`` that follow from a file's tensors (segkd's names)."""
    lanes = any(key.startswith("exist_head.") for key in found)
    return {"dropout": 0.1, "early_dropout": 0.1} if lanes else {}
