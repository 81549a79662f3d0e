"""Grids of a student that was quantised in training, for onnxruntime's quantisation.

A normalisation is folded into the convolution before it: each output channel is multiplied by a
number. Its weights are k times a scale before and after, with the same integers k, so the scale of
a folded channel is its largest weight over its largest k, which the float file names (``levels``).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segkd.export.bundle import digest
from segkd.models.onnx_network import OnnxNetwork
from segkd.ops.quantize import activation_grid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_PREFIX = "network."  # of a bundle
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ROUNDING = 0.02  # of a step; folding rounds in float32


@dataclass
class TrainedGrid:
    """What onnxruntime is told of a network.

    Attributes:
        overrides: scale and zero point by tensor, ``TensorQuantOverrides`` of onnxruntime.
        layers: paths of the layers whose weights are on their trained grid.
        again: paths of layers that are rounded again, because their grid was not recognised.
        kept: names of the nodes that stay float, as in training.
    """

    overrides: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def trained_grid(network: OnnxNetwork, model: "ModelProto") -> TrainedGrid:
    """The grids of a float file; empty for a student that was not quantised in training.

    Args:
        network: the float file.
        model: the same after onnxruntime's preparation, with folded normalisation.
    """
    from onnx import numpy_helper

    found, facts = TrainedGrid(), network.info.quantization
    if facts is None:
        return found
    if not facts.fits_int8:
        found.again = list(facts.layers)
        return found
    levels = network.exported["levels"]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    transposed = network.exported["transposed"]
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in tensors:
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        path = _path(node.input[1]) or transposed.get(digest(weight))
        if path is None:
            continue
        if path not in levels:
            found.kept.append(node.name)
            continue
        axis = _axis(node)
        scale = _scales(weight, np.array(levels[path]), axis)
        if scale is None:
            continue
        found.layers.append(path)
        found.overrides[node.input[1]] = [
            {"axis": axis, **_grid(one, np.zeros((), np.int8))} for one in scale
        ]
        if facts.settings.activations:
            low, high = torch.tensor(facts.ranges[path])
            step, zero = activation_grid(low, high, facts.settings.activations)
            found.overrides[node.input[0]] = [_grid(step.numpy(), zero.numpy().astype(np.uint8))]
    found.again = [path for path in facts.layers if path not in found.layers]
    return found


def _path(name: str) -> str | None:
    """The path of the layer whose weight has this name; None if it is no name of a layer."""
    known = name.startswith(_PREFIX) and name.endswith(".weight")
    return name.removeprefix(_PREFIX).removesuffix(".weight") if known else None


def _axis(node: "NodeProto") -> int:
    """The axis of the output channels in a node's weight."""
    if node.op_type == "Gemm":
        return 0 if any(one.name == "transB" and one.i for one in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _scales(weight: np.ndarray, largest: np.ndarray, axis: int) -> np.ndarray | None:
    """The scale of each output channel (C,); None if the weight is not on such a grid.

    Args:
        weight: any shape, C indices along ``axis``.
        largest: (C,) largest integer of each channel.
        axis: that of the output channels.
    """
    if weight.ndim < 2 or weight.shape[axis] != len(largest):
        return None
    rows = np.moveaxis(weight, axis, 0).reshape(len(largest), -1)
    scale = np.abs(rows).max(1) / np.maximum(largest, 1)
    # A channel of zeros has any scale. That of its bias is derived from it, so it is a usual one.
    usual = np.median(scale[scale > 0]) if (scale > 0).any() else 1.0
    scale = np.where(scale > 0, scale, usual).astype(np.float32)
    steps = rows / scale[:, None]
    if np.abs(steps - steps.round()).max() > _ROUNDING:
        return None
    return scale


def _grid(scale: np.ndarray, zero: np.ndarray) -> dict[str, Any]:
    return {"scale": np.asarray(scale, np.float32), "zero_point": zero}
