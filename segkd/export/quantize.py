"""Static int8 quantisation of an exported ONNX file with onnxruntime (QDQ format).

Weights become int8 per output channel, activations uint8. Their ranges are from the mean of the
smallest to the mean of the largest values of the calibration images: the extremes of all images
would give every image the coarse steps of the rarest one (benchmarks/calibration.py).
The last up-sampling and the argmax stay in floating point.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from segkd.errors import SegKDError
from segkd.export.quiet import quiet
from segkd.export.trained_grid import TrainedGrid, trained_grid
from segkd.extras import require
from segkd.files import write_atomic
from segkd.inference.lane_output import ABSENT, as_batch, is_whole_image, lane_output, view_of
from segkd.inference.lane_view import LaneView, lane_view, trained_size
from segkd.models.network import Network
from segkd.models.onnx_network import OnnxNetwork
from segkd.ops.resize import good_size

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime.quantization import CalibrationDataReader

# Convolutions and operators between them: one in floating point costs two conversions.
_OPERATORS = (
    "Add",
    "AveragePool",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "MatMul",
    "MaxPool",
    "Mul",
    "ReduceMean",
    "Relu",
    "Resize",
    "Sigmoid",
)
_COMPARED = 8  # images


@dataclass(frozen=True)
class Quantized:
    """A quantised file.

    Attributes:
        path: path of the file.
        images: number of calibration images.
        agreement: share of pixels of (some of) them that keep their class; of a file that decodes
            lanes, share of rows that keep their point to within a hundredth of the width.
        trained: number of layers with the grid that their weights were trained on.
        again: number of layers whose weights were trained on a grid that could not be kept.
        lanes: whether the file decodes lanes.
    """

    path: Path
    images: int
    agreement: float
    trained: int = 0
    again: int = 0
    lanes: bool = False

    def __str__(self) -> str:
        layers = f"; {self.trained} layers on the grid of their training" if self.trained else ""
        if self.again:
            layers += f"; WARNING: {self.again} layers were trained on another grid: rounded again"
        kept = "rows keep their point" if self.lanes else "pixels keep their class"
        return (
            f"{self.path}: {self.path.stat().st_size / 1e6:.2f} MB, calibrated on {self.images} "
            f"images, {100 * self.agreement:.2f} % of their {kept}{layers}"
        )


def int8_path(path: Path) -> Path:
    """The quantised file beside a float one: ``student.int8.onnx`` beside ``student.onnx``."""
    return path.with_name(f"{path.stem}.int8{path.suffix}")


def check_calibration(
    network: Network, images: Sequence[object], source: object, *, symmetric: bool = False
) -> None:
    """Refuses what cannot become an int8 file, which shall be told before a float file is written.

    Args:
        network: the student, or its float file.
        images: of the calibration.
        source: where the student is from, for messages.
        symmetric: as of ``to_int8``.

    Raises:
        SegKDError: no images, or a student that was trained with other activations.
    """
    if not images:
        raise SegKDError(
            "int8 needs calibration images, and there are none. Give a folder of images similar to "
            "those of the application: --calibration FOLDER"
        )
    trained = network.info.quantization
    if symmetric and trained and trained.settings.activations:
        raise SegKDError(
            f"{source} was trained with quantised activations, which have zero points. Leave "
            "--symmetric out, or train with quantize.activations=null"
        )
    if trained and (trained.settings.activations or 8) < 8:
        raise SegKDError(
            f"{source} was trained with activations of {trained.settings.activations} bits, which "
            "an int8 file cannot hold. Train with quantize.activations=8, or null"
        )


def to_int8(
    source: str | Path,
    path: str | Path,
    images: Iterable[np.ndarray],
    *,
    symmetric: bool = False,
    as_trained: bool = False,
) -> Quantized:
    """Quantises a float file of ``to_onnx``; metadata is kept.

    A student that was quantised in training keeps the scales of its weights, and of its activations
    if they were quantised as well; layers that were float stay float.

    Args:
        source: the float file.
        path: path of the quantised file.
        images: calibration images (H, W, 3) uint8 RGB, similar to those of the application; some
            tens are enough.
        symmetric: int8 activations whose zero point is 0, and float biases, as TensorRT takes them;
            else uint8 with any zero point, which is more exact.
        as_trained: images of lane students are those of a dataset, which have no rows above
            ``data.cut_top``; else whole frames of a camera, of which the student sees a part.

    Raises:
        SegKDError: no images, a package is missing, ``source`` is quantised already, or was
            trained with activations of fewer than 8 bits.
    """
    require("onnx", "onnxruntime")
    network, path = OnnxNetwork(Path(source)), Path(path)
    if "quantized" in network.exported:
        raise SegKDError(f"{source} is quantised already. Give the float file")
    inputs = [_input(network, image, as_trained=as_trained) for image in images]
    check_calibration(network, inputs, source, symmetric=symmetric)
    with tempfile.TemporaryDirectory() as folder, quiet():
        data, grid = _quantize(network, Path(folder), inputs, symmetric=symmetric)
    write_atomic(path, lambda file: file.write(data))
    agreement = _agreement(network, OnnxNetwork(path), inputs[:_COMPARED])
    lanes = lane_output(network) is not None
    return Quantized(path, len(inputs), agreement, len(grid.layers), len(grid.again), lanes)


def _quantize(
    network: OnnxNetwork, folder: Path, images: Sequence[torch.Tensor], *, symmetric: bool
) -> tuple[bytes, TrainedGrid]:
    """The bytes of the quantised model, and its trained grid; scratch files go to ``folder``."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, written = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(network.path), str(prepared), skip_symbolic_shape=True)
    float_model = onnx.load(prepared)
    grid = trained_grid(network, float_model)
    quantize_static(
        str(prepared),
        str(written),
        _reader(network, images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS),
        nodes_to_exclude=[*_kept_float(float_model), *grid.kept],
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "TensorQuantOverrides": grid.overrides,
            "ActivationSymmetric": symmetric,
            "CalibMovingAverage": True,  # the mean over images
            "QuantizeBias": not symmetric,
        },
    )
    model = onnx.load(written)
    texts = {entry.key: entry.value for entry in onnx.load(network.path).metadata_props}
    facts = {
        "weights": "int8 per channel",
        "activations": "int8" if symmetric else "uint8",
        "pictures": len(images),
    }
    facts |= {"trained_layers": len(grid.layers)} if grid.layers else {}
    onnx.helper.set_model_props(model, texts | {"segkd.quantized": json.dumps(facts)})
    return model.SerializeToString(), grid


def _kept_float(model: "ModelProto") -> list[str]:
    """Nodes before the first and after the last convolution, and poolings whose indices are used.

    These are normalisation, up-sampling, and poolings whose indices rounding would change.
    """
    nodes = list(model.graph.node)
    layers = [n for n, node in enumerate(nodes) if node.op_type.startswith("Conv")] or [0]
    indexed = [node for node in nodes if node.op_type == "MaxPool" and len(node.output) > 1]
    outside = (*nodes[: layers[0]], *nodes[layers[-1] + 1 :])
    return [node.name for node in (*outside, *indexed)]


def _reader(network: OnnxNetwork, images: Sequence[torch.Tensor]) -> "CalibrationDataReader":
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            feeds = ({"images": network.feed(image)} for image in images)
            self._feeds: Iterator[dict[str, np.ndarray]] = feeds

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    return Reader()


def _input(network: OnnxNetwork, image: np.ndarray, *, as_trained: bool) -> torch.Tensor:
    """The network's input (1, 3, H, W) uint8 of an image, at a valid size."""
    from segkd.data.transforms import resize_image

    lanes = network.info.payload.get("lanes")
    if lanes is not None and not as_trained:
        view = lane_view(lanes, (image.shape[0], image.shape[1]))
        image = image[view.top + view.cut :]
    output = lane_output(network)
    if output is not None and is_whole_image(output):
        return as_batch(_below_the_sky(image, view_of(output)))
    height, width = image.shape[:2]
    if network.info.resize is not None:
        height, width = network.info.resize
    elif lanes is not None and network.exported.get("resize") is None:  # as `segkd lane` shows them
        height, width = trained_size(lanes)[0] - lanes["cut_top"], trained_size(lanes)[1]
    size = network.fixed_size or good_size((height, width), network.divisor)
    return as_batch(resize_image(image, size))


def _below_the_sky(seen: np.ndarray, view: LaneView) -> np.ndarray:
    """A whole image of a camera: the part that a student sees, and black rows above it."""
    from segkd.data.transforms import resize_image

    whole = np.zeros((*view.camera, 3), np.uint8)
    whole[view.top + view.cut :] = resize_image(seen, view.seen)
    return whole


def _agreement(one: OnnxNetwork, other: OnnxNetwork, images: Sequence[torch.Tensor]) -> float:
    facts = lane_output(one)
    if facts is not None:
        within = facts["camera"][1] / 100
        across = [[net.lanes(image)[0][..., 0] for net in (one, other)] for image in images]
        same = [
            ((a - b).abs() <= within) & ((a == ABSENT) == (b == ABSENT))  # or both without a point
            for a, b in across
        ]
        return float(torch.cat([part.flatten() for part in same]).double().mean())
    same = [(one(image).logits.argmax(1) == other(image).logits.argmax(1)) for image in images]
    return float(torch.cat([part.flatten() for part in same]).double().mean())
