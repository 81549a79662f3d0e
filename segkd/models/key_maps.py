"""Names of weights in other code bases, and rules that rename them to segkd's.

A Layout is recognised by its keys, renames them to smp's names (``encoder.…``, ``decoder.…``,
``segmentation_head.0.…``), and marks tensors used in training only. ``foreign`` compares the
result with a network.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segkd.models import erfnet_maps, espnet_maps
from segkd.models.normalization import IMAGENET, UNIT

# Caffe's mean, as RGB on the scale 0..1, and no division.
CAFFE = ([122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255], [1 / 255] * 3)

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """How one code base names the weights of its networks.

    Attributes:
        name: used in messages.
        marks: patterns; a file has this layout if each of them matches the start of a key.
        rules: (pattern, replacement), applied one after the other.
        unused: patterns of tensors that are not needed: auxiliary heads and the like.
        convert: changes tensors after renaming, e.g. splits a projection.
        resnet: the first block of a dilated stage keeps the dilation of the previous stage, as in
            timm; smp's own ResNets dilate it as well.
        normalize: (mean, std) of the training images, RGB on the scale 0..1; None: unknown.
        fed: the input in words, if it is unusual.
        as_rgb: converts weights for BGR to RGB images, after renaming; None: they are for RGB.
        outputs: names (segkd's) of tensors with one entry per class, and the dimension.
        void: the last class is void, and dropped for data with one class less.
    """

    name: str
    marks: tuple[str, ...] = ()
    rules: Rules = ()
    unused: tuple[str, ...] = ()
    convert: Callable[[State], State] = dict
    resnet: bool = False
    normalize: tuple[list[float], list[float]] | None = None
    fed: str = ""
    as_rgb: Callable[[State], State] | None = None
    outputs: tuple[tuple[str, int], ...] = (
        ("segmentation_head.0.weight", 0),
        ("segmentation_head.0.bias", 0),
    )
    void: bool = False

    def matches(self, keys: list[str]) -> bool:
        """Whether the keys of a file have this layout."""
        return all(any(re.match(mark, key) for key in keys) for mark in self.marks)

    def renamed(self, state: State) -> tuple[State, list[str]]:
        """The weights by segkd's names, and the unused keys."""
        found, left = {}, []
        for key, value in state.items():
            if any(re.match(pattern, key) for pattern in self.unused):
                left.append(key)
            else:
                found[self._name(key)] = value
        return self.convert(found), left

    def _name(self, key: str) -> str:
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key


def layout_of(state: State) -> Layout:
    """The first matching layout of ``LAYOUTS``; the last one matches any file."""
    keys = list(state)
    return next(layout for layout in LAYOUTS if layout.matches(keys))


def _split_projection(state: State) -> State:
    """Splits a joint projection into q and kv; 1x1 convolutions become linear layers."""
    found = {}
    for key, value in state.items():
        joint = re.fullmatch(r"(.*\.attn)\.in_proj_(weight|bias)", key)
        if joint:
            size = len(value) // 3
            found[f"{joint[1]}.q.{joint[2]}"] = value[:size]
            found[f"{joint[1]}.kv.{joint[2]}"] = value[size:]
        else:
            linear = re.search(r"\.mlp\.fc[12]\.weight$", key)
            found[key] = value.flatten(1) if linear else value
    return found


def _join_projections(state: State) -> State:
    """Joins the keys and values of an attention into one layer."""
    found = {}
    for key, value in state.items():
        part = re.fullmatch(r"(.*\.attn)\.(key|value)\.(weight|bias)", key)
        if part is None:
            found[key] = value
        elif part[2] == "key" and f"{part[1]}.value.{part[3]}" in state:
            both = [value, state[f"{part[1]}.value.{part[3]}"]]
            found[f"{part[1]}.kv.{part[3]}"] = torch.cat(both)
    return found


def _bias_into_mean(state: State) -> State:
    """Moves a bias before a batch norm into its mean: norm(x + b) has the mean m - b."""
    bias, mean = "decoder.fuse_stage.0.bias", "decoder.fuse_stage.1.running_mean"
    if bias not in state or mean not in state:
        return state
    found = state | {mean: state[mean] - state[bias]}
    del found[bias]
    return found


def _deep_stem(state: State) -> State:
    """Renames CIRKD's stem of three convolutions and norms to timm's nesting."""
    if "encoder.conv3.weight" not in state:
        return state
    names = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4"}
    names |= {"conv3": "conv1.6", "bn3": "bn1"}
    found = {}
    for key, value in state.items():
        part = re.fullmatch(r"encoder\.((?:conv|bn)[123])\.(\w+)", key)
        found[f"encoder.{names[part[1]]}.{part[2]}" if part else key] = value
    return found


def _first_as_rgb(state: State) -> State:
    """Converts the first convolution from BGR to RGB images."""
    first = re.compile(r"encoder\.(conv1|conv1\.0|patch_embed1\.proj)\.weight")
    return {k: v.flip(1) if first.fullmatch(k) and v.ndim == 4 else v for k, v in state.items()}


def _per_stage(pattern: str, replacement: str) -> Rules:
    """Rules for four stages, which the other code counts from 0 and segkd from 1."""
    return tuple((pattern.format(i), replacement.format(i + 1)) for i in range(4))


def _projections(pattern: str, first: int) -> Rules:
    """Rules for SegFormer's four projections, which smp counts from the deepest stage."""
    return tuple(
        (pattern.format(first + i), f"decoder.mlp_stage.{3 - i}.linear.") for i in range(4)
    )


_DEEPLAB_OF_TORCHVISION = (
    (r"^backbone\.", "encoder."),
    (r"^classifier\.0\.", "decoder.aspp."),
    (r"^classifier\.1\.", "decoder.conv."),
    (r"^classifier\.2\.", "decoder.bn."),
    (r"^classifier\.4\.", "segmentation_head.0."),
)
_FCN_OF_TORCHVISION = (
    (r"^backbone\.", "encoder."),
    (r"^classifier\.0\.", "decoder.0.conv."),
    (r"^classifier\.1\.", "decoder.0.bn."),
    (r"^classifier\.4\.", "segmentation_head.0."),
)
_MMSEG = (
    (r"^backbone\.stem\.7\.", "encoder.bn1."),
    (r"^backbone\.stem\.", "encoder.conv1."),
    *_per_stage(r"^backbone\.layers\.{}\.0\.projection\.", "encoder.patch_embed{}.proj."),
    *_per_stage(r"^backbone\.layers\.{}\.0\.norm\.", "encoder.patch_embed{}.norm."),
    *_per_stage(r"^backbone\.layers\.{}\.1\.", "encoder.block{}."),
    *_per_stage(r"^backbone\.layers\.{}\.2\.", "encoder.norm{}."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.attn\.attn\.", ".attn."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
    (r"^backbone\.", "encoder."),
    (r"^decode_head\.conv_seg\.", "segmentation_head.0."),
    (r"^decode_head\.", "decoder."),
)
_SEGFORMER = (
    *_projections(r"^decode_head\.linear_c{}\.proj\.", 1),
    (r"^decode_head\.linear_fuse\.conv\.", "decoder.fuse_stage.0."),
    (r"^decode_head\.linear_fuse\.bn\.", "decoder.fuse_stage.1."),
    (r"^decode_head\.linear_pred\.", "segmentation_head.0."),
    (r"^backbone\.", "encoder."),
)
_HUGGING_FACE = (
    *_per_stage(r"^segformer\.encoder\.patch_embeddings\.{}\.", "encoder.patch_embed{}."),
    (r"^(encoder\.patch_embed\d)\.layer_norm\.", r"\1.norm."),
    *_per_stage(r"^segformer\.encoder\.block\.{}\.", "encoder.block{}."),
    *_per_stage(r"^segformer\.encoder\.layer_norm\.{}\.", "encoder.norm{}."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
    *_projections(r"^decode_head\.linear_c\.{}\.proj\.", 0),
    (r"^decode_head\.linear_fuse\.", "decoder.fuse_stage.0."),
    (r"^decode_head\.batch_norm\.", "decoder.fuse_stage.1."),
    (r"^decode_head\.classifier\.", "segmentation_head.0."),
)
_DEEPLAB_OF_CIRKD = (
    (r"^pretrained\.", "encoder."),
    (r"^head\.aspp\.b0\.", "decoder.aspp.convs.0."),
    (r"^head\.aspp\.b([123])\.block\.", r"decoder.aspp.convs.\1."),
    (r"^head\.aspp\.b4\.gap\.", "decoder.aspp.convs.4."),
    (r"^head\.aspp\.", "decoder.aspp."),
    (r"^head\.block\.0\.", "decoder.conv."),
    (r"^head\.block\.1\.", "decoder.bn."),
    (r"^head\.block\.4\.", "segmentation_head.0."),
)
_PSPNET_OF_CIRKD = (
    (r"^pretrained\.", "encoder."),
    *((rf"^head\.psp\.conv{i + 1}\.0\.", f"decoder.psp_modules.{i}.1.conv.") for i in range(4)),
    *((rf"^head\.psp\.conv{i + 1}\.1\.", f"decoder.psp_modules.{i}.1.bn.") for i in range(4)),
    (r"^head\.block\.0\.", "decoder.bottleneck.conv."),
    (r"^head\.block\.1\.", "decoder.bottleneck.bn."),
    (r"^head\.classifier\.", "segmentation_head.0."),
)
_SEGFORMER_OF_CIRKD = (
    (r"^(patch_embed|block|norm)(\d)\.", r"encoder.\1\2."),
    *_projections(r"^linear_c{}\.proj\.", 1),
    (r"^linear_fuse\.", "decoder.fuse_stage."),
    (r"^linear_pred\.", "segmentation_head.0."),
)

PSPNET_OF_CIRKD = Layout(
    "CIRKD PSPNet",
    (r"pretrained\.layer1\.", r"head\.psp\."),
    _PSPNET_OF_CIRKD,
    (r"auxlayer\.",),
    _deep_stem,
    resnet=True,
    normalize=CAFFE,
    fed="BGR minus Caffe's mean",
    as_rgb=_first_as_rgb,
)
LAYOUTS = (
    Layout(
        "torchvision DeepLabV3",
        (r"backbone\.layer1\.", r"classifier\.0\.convs\."),
        _DEEPLAB_OF_TORCHVISION,
        (r"aux_classifier\.",),
        normalize=IMAGENET,
        resnet=True,
    ),
    Layout(
        "torchvision FCN",
        (r"backbone\.layer1\.", r"classifier\.0\.weight$"),
        _FCN_OF_TORCHVISION,
        (r"aux_classifier\.",),
        normalize=IMAGENET,
        resnet=True,
    ),
    Layout(
        "SegFormer of its authors",
        (r"backbone\.patch_embed1\.", r"decode_head\.linear_c1\."),
        _SEGFORMER,
        (r"decode_head\.conv_seg\.", r"backbone\.head\."),
        normalize=IMAGENET,
    ),
    Layout(
        "MMSegmentation",
        (r"backbone\.", r"decode_head\.conv_seg\."),
        _MMSEG,
        (r"auxiliary_head\.", r"backbone\.fc\."),
        _split_projection,
        resnet=True,
    ),
    Layout(
        "Hugging Face SegFormer",
        (r"segformer\.encoder\.", r"decode_head\.linear_c\."),
        _HUGGING_FACE,
        convert=_join_projections,
        normalize=IMAGENET,
    ),
    Layout(
        "CIRKD DeepLabV3",
        (r"pretrained\.layer1\.", r"head\.aspp\."),
        _DEEPLAB_OF_CIRKD,
        (r"auxlayer\.",),
        _deep_stem,
        resnet=True,
        normalize=CAFFE,
        fed="BGR minus Caffe's mean",
        as_rgb=_first_as_rgb,
    ),
    PSPNET_OF_CIRKD,
    Layout(
        "CIRKD SegFormer",
        (r"patch_embed1\.", r"linear_c1\.", r"linear_fuse\."),
        _SEGFORMER_OF_CIRKD,
        convert=_bias_into_mean,
        normalize=CAFFE,
        fed="BGR minus Caffe's mean",
        as_rgb=_first_as_rgb,
    ),
    Layout(
        "ESPNet",
        (r"encoder\.level2_0\.", r"level3_C\."),
        espnet_maps.ESPNET,
        normalize=espnet_maps.STATISTICS,
        fed="BGR with the statistics of ESPNet's authors",
        as_rgb=espnet_maps.as_rgb,
        outputs=(("classifier.weight", 1),),
        void=True,
    ),
    Layout(
        "EdgeNets ESPNetv2",
        (r"base_net\.level2_0\.eesp\.", r"bu_dec_l1\."),
        espnet_maps.ESPNETV2,
        # Activations of down-sampling blocks, which they have and never run.
        (r"base_net\.level\d_0\.eesp\.module_act\.",),
        normalize=IMAGENET,
        outputs=(("classifier.weight", 0), ("classifier.bias", 0)),
        void=True,
    ),
    Layout(
        "ERFNet-CULane",
        (r"encoder\.initial_block\.", r"decoder\.output_conv\.", r"lane_exist\."),
        erfnet_maps.RULES,
        (r"encoder\.output_conv\.",),
        normalize=erfnet_maps.CULANE,
        fed="BGR minus Caffe's mean",
        as_rgb=erfnet_maps.as_rgb,
        outputs=(("classifier.weight", 1), ("classifier.bias", 0)),
    ),
    Layout(
        "Eromera's ERFNet",
        (r"encoder\.initial_block\.", r"decoder\.output_conv\."),
        erfnet_maps.RULES,
        (r"encoder\.output_conv\.",),
        normalize=UNIT,
        outputs=(("classifier.weight", 1), ("classifier.bias", 0)),
        void=True,
    ),
    Layout("plain", unused=(r"aux_heads\.", r"classification_head\.")),
)
