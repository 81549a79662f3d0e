"""Names of weights and normalisation in the code of the authors of ESPNet and ESPNetv2."""

import re

import torch
from torch import Tensor

# The mean and std of ESPNet's authors in RGB order; they divide by 255 once more afterwards.
STATISTICS = (
    [73.15840149 / 255, 82.90893555 / 255, 72.3923111 / 255],
    [44.91483307, 46.15289307, 45.3192215],
)


Rules = tuple[tuple[str, str], ...]


def as_rgb(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts ESPNet's weights from BGR to RGB images, also those joined to features.

    Args:
        state: tensors by segkd's names, (C', C, h, w) for convolutions.
    """
    joins = re.compile(r"encoder\.(join[12]\..*|down[23]\.reduce\.weight)|decoder\.score2\.weight")
    found = {}
    for key, value in state.items():
        if key == "encoder.stage1.0.weight":
            found[key] = value.flip(1)
        elif joins.fullmatch(key) and value.ndim:
            channels = 1 if value.ndim == 4 else 0
            size = value.shape[channels]
            order = [*range(size - 3), size - 1, size - 2, size - 3]
            found[key] = value.index_select(channels, torch.tensor(order))
        else:
            found[key] = value
    return found


def options(arch: str, found: dict[str, Tensor]) -> dict[str, float]:
    """Options of ``espnet`` and ``espnetv2`` that follow from a file's tensors (segkd's names)."""
    if arch == "espnetv2" and "encoder.stage4.0.expand.0.weight" in found:
        return {"scale": len(found["encoder.stage4.0.expand.0.weight"]) / 256}
    if arch == "espnet":
        return {name: _blocks(found, stage) for name, stage in (("p", "stage2"), ("q", "stage3"))}
    return {}


def _blocks(found: dict[str, Tensor], stage: str) -> int:
    marks = (re.match(rf"encoder\.{stage}\.(\d+)\.", key) for key in found)
    return len({mark[1] for mark in marks if mark})


def _sequence(pattern: str, replacement: str, names: tuple[str, ...]) -> Rules:
    """Rules for parts that have names in their code and numbers in segkd's."""
    return tuple(
        (pattern.format(name), replacement.format(number)) for number, name in enumerate(names)
    )


_UNIT = ("conv", "bn", "act")
ESPNET = (
    *_sequence(r"^encoder\.level1\.{}\.", "encoder.stage1.{}.", _UNIT),
    *_sequence(r"^encoder\.b(\d)\.{}\.", r"encoder.join\1.{}.", _UNIT[1:]),
    (r"^encoder\.classifier\.conv\.", "decoder.score3.0."),
    (r"^encoder\.level(\d)_0\.", r"encoder.down\1."),
    (r"^encoder\.level(\d)\.", r"encoder.stage\1."),
    *_sequence(r"^combine_l2_l3\.0\.{}\.", "decoder.join.{}.", _UNIT[1:]),
    (r"^combine_l2_l3\.1\.", "decoder.block."),
    (r"\.c1\.conv\.", ".reduce."),
    *_sequence(r"\.{}\.conv\.", ".branches.{}.", ("d1", "d2", "d4", "d8", "d16")),
    # A block's norm and activation are wrapped as one part, those of a down-sampling are not.
    (r"(\.(?:stage[23]\.\d+|down\d|block))\.(?:bn\.)?act\.", r"\1.activation."),
    (r"(\.(?:stage[23]\.\d+|down\d|block))\.(?:bn\.)?bn\.", r"\1.norm."),
    (r"^level3_C\.conv\.", "decoder.score2."),
    (r"^br\.", "decoder.score3.1."),
    (r"^up_l3\.0\.", "decoder.up3."),
    (r"^up_l2\.0\.", "decoder.up2.0."),
    *_sequence(r"^up_l2\.1\.{}\.", "decoder.up2.{}.", ("conv", "bn", "act")),
    *_sequence(r"^conv\.{}\.", "decoder.merge.{}.", _UNIT),
)
ESPNETV2 = (
    *_sequence(r"^base_net\.level1\.{}\.", "encoder.stage1.{}.", _UNIT),
    (r"^base_net\.level2_0\.", "encoder.stage2."),
    (r"^base_net\.level([34])_0\.", r"encoder.down\1."),
    (r"^base_net\.level([34])\.", r"encoder.stage\1."),
    (r"\.eesp\.", ".block."),
    *_sequence(r"\.inp_reinf\.0\.{}\.", ".image.0.{}.", _UNIT),
    (r"\.inp_reinf\.1\.conv\.", ".image.1."),
    (r"\.inp_reinf\.1\.bn\.", ".image.2."),
    *_sequence(r"\.proj_1x1\.{}\.", ".reduce.{}.", _UNIT),
    (r"\.spp_dw\.(\d)\.conv\.", r".branches.\1."),
    *_sequence(r"\.conv_1x1_exp\.{}\.", ".expand.{}.", _UNIT[:2]),
    *_sequence(r"\.br_after_cat\.{}\.", ".joined.{}.", _UNIT[1:]),
    (r"\.(?:module_)?act\.", ".activation."),
    (r"^bu_dec_l4\.merge_layer\.3\.", "classifier."),
    *_sequence(r"^bu_dec_l{}\.merge_layer\.3\.", "decoder.widen.{}.0.", ("1", "2", "3")),
    *_sequence(r"^bu_dec_l{}\.br\.br\.0\.", "decoder.widen.{}.1.", ("1", "2", "3")),
    *_sequence(r"^bu_dec_l{}\.br\.br\.1\.", "decoder.widen.{}.2.", ("1", "2", "3")),
    *_sequence(r"^bu_dec_l{}\.", "decoder.pyramids.{}.", ("1", "2", "3", "4")),
    (r"\.projection_layer\.cbr\.", ".project."),
    (r"\.stages\.", ".convs."),
    (r"\.merge_layer\.0\.br\.", ".joined."),
    (r"\.merge_layer\.2\.cbr\.", ".merge."),
    *_sequence(r"^merge_enc_dec_l{}\.wt_layer\.", "decoder.lateral.{}.gate.", ("2", "3", "4")),
    *_sequence(
        r"^merge_enc_dec_l{}\.expansion_layer\.cbr\.", "decoder.lateral.{}.expand.", ("2", "3", "4")
    ),
    *_sequence(r"^bu_br_l{}\.", "decoder.merged.{}.", ("2", "3", "4")),
)
