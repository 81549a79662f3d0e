"""ONNX files run by OpenVINO, with the interface of an onnxruntime session."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from segkd.errors import CheckpointError, ConfigError, SegKDError

Precision = Literal["f32", "bf16"]
ENGINES = ("onnxruntime", "openvino", "openvino-bf16")


def has_openvino() -> bool:
    """Whether the package of the extra ``openvino`` is installed."""
    return find_spec("openvino") is not None


def run_by(network: object, engine: str | None, source: object) -> None:
    """Has an exported file run by the engine of ``--engine``.

    Args:
        network: of the file.
        engine: ``onnxruntime`` (default), ``openvino``, or ``openvino-bf16``.
        source: the file, for messages.

    Raises:
        ConfigError: another engine, or ``network`` is not an exported file.
        SegKDError: OpenVINO is not installed.
    """
    if engine is None:
        return
    if engine not in ENGINES:
        raise ConfigError(f"--engine: got '{engine}'. Known: {', '.join(ENGINES)}")
    use = getattr(network, "use_openvino", None)
    if use is None:
        raise ConfigError(
            f"--engine runs exported files, and {source} is none. Write one with `segkd export`"
        )
    if engine != "onnxruntime":
        use("bf16" if engine.endswith("bf16") else "f32")


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def computes_bf16() -> bool:
    """Whether this CPU computes in bfloat16, as OpenVINO sees it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession:
    """An ONNX file compiled for this CPU.

    Args:
        model: a file, or its bytes.
        precision: in which floating-point layers are computed. ``bf16`` is a hint that OpenVINO
            follows on CPUs with such instructions; int8 layers of a quantised file stay int8.
        threads: default: torch's number.

    Raises:
        SegKDError: OpenVINO is not installed.
        CheckpointError: not a model that it can run.
    """

    def __init__(
        self, model: Path | bytes, precision: Precision = "f32", threads: int | None = None
    ) -> None:
        from segkd.extras import require

        require("openvino", extra="openvino")
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            read = _core().read_model(str(model) if isinstance(model, Path) else model)
            self._request = _core().compile_model(read, "CPU", hints).create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError for all
            what = model if isinstance(model, Path) else "the exported model"
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise CheckpointError(f"{what} cannot be run by OpenVINO: {reason}") from error

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, all of them for None, in the shapes of the model.

        Raises:
            SegKDError: the model does not run on these inputs.
        """
        try:
            found = self._request.infer(dict(feed), share_inputs=True)
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise SegKDError(f"OpenVINO does not run on these images: {reason}") from error
        if names is None:
            return [np.array(value) for value in found.values()]
        return [np.array(found[name]) for name in names]
