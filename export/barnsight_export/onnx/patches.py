"""What keeps an exported graph plain: small ONNX versions, and no metadata that names the machine that exported it."""

from __future__ import annotations

import onnx

OPSET = 18
IR_VERSION = 10  # newer ones do not load in the runtimes of Python 3.10 and JetPack 6


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
