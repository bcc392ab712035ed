"""INT8 by explicit quantization (QDQ): which layers of a graph bear it, measured layer by layer.

Weights per channel, activations per tensor, symmetric, 8 bits signed: what TensorRT runs. Ranges are the smallest and
largest values that calibration saw. Only products with weights are quantized; attention's own products, softmax and
norms are not. Harm is measured in arithmetic as exact as TensorRT's: some CPUs' own INT8 products saturate.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

OPERATORS = ("Conv", "Gemm", "MatMul")
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
    "MatMulConstBOnly": True,
}
_ONLY_ERRORS = 3

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Layer:
    """A product with weights: its node, its operator, and the shape of its weights."""

    node: str
    operator: str
    weights: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return int(np.prod(self.weights))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much it hurts to quantize one layer alone: the cosine to the FP32 answers of the output that suffers most."""

    layer: Layer
    cosine: float


@dataclass(frozen=True, slots=True)
class Quantization:
    """A graph with those layers in INT8 that bear it.

    `cosine` is that of the output that suffers most; `sensitivities` are of all layers, the most harmful first, of
    which the first `kept` stay as they were.
    """

    model: onnx.ModelProto
    cosine: float
    sensitivities: tuple[Sensitivity, ...]
    kept: int


def layers_of(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The products with weights, in the order in which they run."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return tuple(
        Layer(node.name, node.op_type, weights[node.input[1]])
        for node in model.graph.node
        if node.op_type in OPERATORS and node.input[1] in weights
    )


def quantize(
    path: Path,
    calibration: Iterable[Arrays],
    measured: Sequence[Arrays],
    least_cosine: float,
    report: Callable[[Sensitivity], None] = lambda _: None,
) -> Quantization:
    """Quantize as many layers of the graph at `path` as bear it together.

    `calibration` and `measured` are inputs of the graph and should have nothing in common. Layers are measured one by
    one (`report` hears of each); of the least harmful ones so many are quantized, found by bisection, that every
    output's cosine to the FP32 answers stays at `least_cosine` or above.
    """
    model = onnx.load(path)
    ranges = find_ranges(path, calibration)
    wanted = list(_answers(model, measured))

    def cosine_of(layers: Sequence[Layer]) -> float:
        return least_agreement(wanted, _answers(with_int8(model, ranges, layers), measured)) if layers else 1.0

    found = []
    for layer in layers_of(model):
        found.append(Sensitivity(layer, cosine_of([layer])))
        report(found[-1])
    found.sort(key=lambda sensitivity: sensitivity.cosine)
    kept, cosine = fewest_kept(lambda kept: cosine_of([s.layer for s in found[kept:]]), len(found), least_cosine)
    return Quantization(with_int8(model, ranges, [s.layer for s in found[kept:]]), cosine, tuple(found), kept)


def fewest_kept(cosine_of: Callable[[int], float], count: int, least_cosine: float) -> tuple[int, float]:
    """The smallest number in 0..`count` whose cosine is at least `least_cosine`, and that cosine, by bisection.

    The cosine is taken to rise with the number; with all `count` kept it is 1.
    """
    low, high, cosine = 0, count, 1.0
    while low < high:
        middle = (low + high) // 2
        reached = cosine_of(middle)
        if reached >= least_cosine:
            high, cosine = middle, reached
        else:
            low = middle + 1
    return high, cosine


def find_ranges(path: Path, inputs: Iterable[Arrays]) -> Any:
    """Smallest and largest value of each tensor that a product reads or writes, over all `inputs`."""
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path,
            list(OPERATORS),
            str(Path(folder) / "augmented.onnx"),
            CalibrationMethod.MinMax,
            extra_options={"symmetric": True},
        )
        calibrator.collect_data(_Reader(inputs))
        return calibrator.compute_data()


def with_int8(model: onnx.ModelProto, ranges: Any, layers: Sequence[Layer]) -> onnx.ModelProto:
    """`model`, which stays as it is, with `layers` in INT8."""
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[layer.node for layer in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options=dict(_OPTIONS),
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    quantized.ir_version = model.ir_version
    return quantized


def rounds_halves() -> bool:
    """Whether this ONNX Runtime rounds FP16 to INT8 as the standard says.

    Those before September 2026 cut toward zero on CPUs (microsoft/onnxruntime#32452): on them, graphs that are in INT8
    and FP16 answer worse than in TensorRT.
    """
    given = [
        numpy_helper.from_array(value, name)
        for name, value in (("step", np.ones((), np.float16)), ("zero", np.zeros((), np.int8)))
    ]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["y"])],
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [1])],
        given,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    (answer,) = _answers(model, [{"x": np.array([0.75], np.float16)}])
    return bool(answer["y"][0] == 1)


def least_agreement(wanted: Iterable[Arrays], answers: Iterable[Arrays]) -> float:
    """The cosine between two runs' answers, over all frames together, of the output where it is lowest."""
    sums: dict[str, NDArray[np.float64]] = {}
    for want, got in zip(wanted, answers, strict=True):
        for name in want:
            a, b = want[name].astype(np.float64).ravel(), got[name].astype(np.float64).ravel()
            sums[name] = sums.get(name, np.zeros(3)) + np.array([a @ b, a @ a, b @ b])
    tiny = np.finfo(np.float64).tiny
    cosines = [(ab + tiny) / (np.sqrt(aa * bb) + tiny) for ab, aa, bb in sums.values()]
    return min(float(cosine) if np.isfinite(cosine) else -1.0 for cosine in cosines)


def _answers(model: onnx.ModelProto, inputs: Iterable[Arrays]) -> Iterator[dict[str, NDArray[Any]]]:
    options = ort.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # no INT8 kernels of this CPU
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for given in inputs:
        yield dict(zip(names, session.run(names, dict(given)), strict=True))


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, inputs: Iterable[Arrays]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        given = next(self._inputs, None)
        return None if given is None else dict(given)
