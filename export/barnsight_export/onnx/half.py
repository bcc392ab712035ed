"""A graph in FP16, with islands of FP32 where half precision breaks: norms, softmax, logarithms, sines, exponentials.

What feeds a logarithm or a sine is an island too, back to the last matrix product: a clamp at 1e-5 or the phase of a
position lose their meaning in half precision, and no island behind them brings it back. Inputs and outputs keep their
type. The conversion itself is ONNX Runtime's.
"""

from __future__ import annotations

import copy

import onnx
from onnx import version_converter
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

ISLANDS = (
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "Pow",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "Sqrt",
)
_SENSITIVE = ("Cos", "Log", "Sin")  # whose arguments must be exact
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
HALF_SCALES_OPSET = 19  # the first one in which a quantized tensor's scale may be FP16


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, which stays as it is, computing in FP16 where that is safe.

    A graph with quantized layers moves to opset 19, in which what lies between them can be FP16.
    """
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    source = version_converter.convert_version(model, HALF_SCALES_OPSET) if quantized else copy.deepcopy(model)
    source.ir_version = model.ir_version
    half = convert_float_to_float16(
        source,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *ISLANDS],
        node_block_list=sorted(exact_nodes(source.graph)),
    )
    OnnxModel(half).topological_sort()
    onnx.checker.check_model(half)
    return half


def exact_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the sensitive nodes and of all that lies between them and the last matrix products before."""
    producers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    reached = [node for node in graph.node if node.op_type in _SENSITIVE]
    while reached:
        node = reached.pop()
        if node.name not in found:
            found.add(node.name)
            before = (producers[name] for name in node.input if name in producers)
            reached.extend(producer for producer in before if producer.op_type not in _PRODUCTS)
    return found
