"""What keeps an exported graph plain: small ONNX versions, weights in the order in which they are used, and no metadata
that names the machine that exported it."""

from __future__ import annotations

import onnx
import onnxscript.optimizer
from onnxscript import ir

OPSET = 18
IR_VERSION = 10  # newer ones do not load in the runtimes of Python 3.10 and JetPack 6

# In numbers: a projection of SAM 3's width.
_FOLDED_INPUT = 256 * 256
_FOLDED_OUTPUT = 256 * 256


def fold(model: ir.Model) -> None:
    """Compute in place what depends on small weights alone, such as rows that are reordered."""
    onnxscript.optimizer.fold_constants(model, input_size_limit=_FOLDED_INPUT, output_size_limit=_FOLDED_OUTPUT)
    onnxscript.optimizer.remove_unused_nodes(model)


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph at IR 10, without the exporter's per-node metadata and documentation."""
    model.ir_version = IR_VERSION
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.doc_string = ""
        if hasattr(entry, "metadata_props"):
            del entry.metadata_props[:]
    return model


def check_versions(model: onnx.ModelProto) -> None:
    """Raise ValueError where a graph needs a newer runtime than the oldest one supported."""
    opset = max(imported.version for imported in model.opset_import if imported.domain in ("", "ai.onnx"))
    if opset > OPSET or model.ir_version > IR_VERSION:
        raise ValueError(
            f"the graph has opset {opset} and IR {model.ir_version}, supported are at most {OPSET} and {IR_VERSION}:"
            " export it again with this project's exporter"
        )
