"""ONNX Runtime: runs every `*.onnx` of a model set on the CPU.

The provider is named, so that a GPU build of the library does not choose another one. Threads sleep between runs
(no spinning): video decoding shares the same cores. Everything is planned when the engine opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from barnsight_engines.backend import check_inputs
from barnsight_engines.errors import EngineError, ModelSetDataError, ModelSetMismatchError
from barnsight_engines.spec import EngineSpec, TensorSpec, difference

PROVIDERS = ("CPUExecutionProvider",)
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
# The library's failures share no base of their own.
FAILURES = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NoModel,
    failures.NoSuchFile,
    failures.NotImplemented,
    failures.RuntimeException,
    RuntimeError,
)
ONLY_ERRORS = 3


class OnnxBackend:
    """One ONNX file, opened and compared with its specification.

    `threads` bounds the cores one run may use; None leaves it to the library (all of them). Raises
    ModelSetDataError where the file is not a model, ModelSetMismatchError where it is another one.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, spec: EngineSpec, threads: int | None = None) -> None:
        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = ONLY_ERRORS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # INT8 as exact as TensorRT's: the CPU's own INT8 kernels differ by version and processor, and some saturate
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            session = ort.InferenceSession(str(path), options, providers=list(PROVIDERS))
        except FAILURES as error:
            raise ModelSetDataError(
                f"{path}: ONNX Runtime cannot open it ({_one_line(error)}); copy or export the model set again"
            ) from error
        for kind, wanted, found in (
            ("input", spec.inputs, session.get_inputs()),
            ("output", spec.outputs, session.get_outputs()),
        ):
            if wrong := difference(wanted, [_tensor_spec(node) for node in found]):
                raise ModelSetMismatchError(f"{path}: {kind} {wrong}; export the model set again")
        self._session: ort.InferenceSession | None = session
        self._outputs = [output.name for output in spec.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once, in the calling thread; raises EngineError."""
        check_inputs(self.spec, inputs)
        if self._session is None:
            raise EngineError(f"engine '{self.spec.role}' is closed; load the model set again")
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except FAILURES as error:
            raise EngineError(
                f"engine '{self.spec.role}': ONNX Runtime failed ({_one_line(error)}); check the free memory"
            ) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Drop the session, and with it the engine's memory."""
        self._session = None


def _tensor_spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, DTYPES.get(node.type, node.type), shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
