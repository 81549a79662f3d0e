"""An exported ONNX file as a Network, for evaluation and prediction."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, SegKDError
from segkd.models.network import Network
from segkd.models.openvino_session import OpenVinoSession, Precision
from segkd.models.payload import check_export, with_baked_rules
from segkd.models.student_info import StudentInfo
from segkd.structures import Outputs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_INPUT = "images"
_ONE_HOT = 100.0  # logits of a baked label map: softmax gives 1 and 0


class OnnxNetwork(Network):
    """A file of ``segkd export``, run by onnxruntime on the CPU, with torch's number of threads.

    A file of ``--static`` has one size and takes one image, also if its metadata do not say so:
    batches are split. A file with a baked argmax returns one-hot logits: classes are right,
    probabilities have no meaning.

    Args:
        path: the file.

    Attributes:
        exported: metadata of the file, see ``segkd.models.onnx_metadata``.

    Raises:
        CheckpointError: not an ONNX file, or not exported by segkd.
    """

    any_size = "score the student from which this file was exported, which may take other sizes"

    def __init__(self, path: Path) -> None:
        from segkd.models.onnx_metadata import from_texts

        session = open_session(path)
        facts = from_texts(session.get_modelmeta().custom_metadata_map, str(path))
        check_export(facts, path)
        facts = with_baked_rules(facts)  # files of earlier versions have the training's
        config = ModelConfig(arch="onnx", normalize=(facts["mean"], facts["std"]))
        super().__init__(config, len(facts["classes"]))
        self.path, self.exported, self.info = path, facts, StudentInfo.of(facts)
        self._batch, shape_size = _fixed_shape(session, path)
        self.divisor, self.fixed_size = facts["divisor"], shape_size or _size(facts["fixed_size"])
        self.rows = tuple(facts.get("rows", ()))
        self._session: InferenceSession | OpenVinoSession = session
        self._order: Tensor | None = None
        self.eval()

    def forward(self, images: Tensor, taps: Collection[str] = ()) -> Outputs:
        """See ``Network.forward``: images (B, 3, H, W); the only tap is ``logits``.

        Raises:
            SegKDError: the file decodes lanes itself, or images of another size or dtype.
        """
        if "points" in self.exported["outputs"]:
            raise SegKDError(
                f"{self.title} decodes lanes itself and has no map: use `segkd lane` or "
                "`segkd eval`, or export it with --bake normalize"
            )
        found = self._outputs(images)
        if "labels" in found:
            one_hot = F.one_hot(found["labels"].long(), self.num_classes).permute(0, 3, 1, 2)
            found["logits"] = _ONE_HOT * one_hot.float()
        if self._order is not None:
            found["logits"] = found["logits"][:, self._order.to(found["logits"].device)]
        return Outputs(found["logits"], exist=found.get("exist"), rows=self.rows)

    def lanes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, L, R, 2) and existence (B, L) of a file that decodes lanes itself.

        Args:
            images: (B, 3, H, W) uint8.
        """
        found = self._outputs(images)
        return found["points"], found["existence"]

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the file by name; a file of one batch size is run several times."""
        self._check(images)
        names = self.exported["outputs"]
        parts = images.split(self._batch or max(1, len(images)))
        answers = [self._session.run(names, {_INPUT: self.feed(part)}) for part in parts]
        return {
            name: torch.from_numpy(np.concatenate(arrays)).to(images.device)
            for name, arrays in zip(names, zip(*answers, strict=True), strict=True)
        }

    def use_openvino(self, precision: Precision = "f32") -> Self:
        """Has the file run by OpenVINO instead of onnxruntime; returns the network itself.

        Args:
            precision: see ``OpenVinoSession``.

        Raises:
            SegKDError: OpenVINO is not installed.
            CheckpointError: it cannot run the file.
        """
        self._session = OpenVinoSession(self.path, precision)
        return self

    def reorder_classes(self, order: list[int]) -> None:
        """Reorders the outputs: position i becomes the file's class ``order[i]``."""
        self._order = torch.tensor(order)

    def feed(self, images: Tensor) -> np.ndarray:
        """The array (B, 3, H, W) that the file takes for images (B, 3, H, W) uint8.

        Raises:
            SegKDError: images of another dtype.
        """
        if images.dtype != torch.uint8:
            raise SegKDError(f"got images of {images.dtype}; {self.title} takes uint8")
        bare = self.exported["bake"] == "none"
        return (self.normalized(images) if bare else images).cpu().numpy()

    def tap_names(self) -> list[str]:
        return ["logits"]

    @property
    def returns_labels(self) -> bool:
        """Whether argmax is baked in, so that there are no probabilities."""
        return "labels" in self.exported["outputs"]

    @property
    def title(self) -> str:
        return self.path.name


def open_session(model: Path | bytes, threads: int | None = None) -> "InferenceSession":
    """An onnxruntime session on the CPU.

    Args:
        model: a file, or its bytes.
        threads: number of threads of an operator; default: torch's.

    Raises:
        CheckpointError: not a valid ONNX model.
        SegKDError: onnxruntime is not installed.
    """
    from segkd.extras import require

    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    # Spinning threads would take the cores from PyTorch, which runs in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        what = model if isinstance(model, Path) else "the exported model"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{what} cannot be opened by onnxruntime: {reason}") from error


def _fixed_shape(
    session: "InferenceSession", path: Path
) -> tuple[int | None, tuple[int, int] | None]:
    """The only batch size and the only (H, W) of a session's images; None: any.

    Raises:
        CheckpointError: the input is no batch of images.
    """
    inputs = [one for one in session.get_inputs() if one.name == _INPUT]
    shape = inputs[0].shape if inputs else []
    if len(shape) != 4:
        raise CheckpointError(
            f"{path} has no input '{_INPUT}' of shape (B, 3, H, W). Give a file written by `segkd "
            "export`"
        )
    batch, _, height, width = (side if isinstance(side, int) else None for side in shape)
    return batch, None if height is None or width is None else (height, width)


def _size(value: list[int] | None) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])
