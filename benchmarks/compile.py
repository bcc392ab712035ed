"""Does TensorRT compile every network? nano and SAM 3's size, in FP32, FP16 and INT8, by TensorRT-RTX without a GPU.

    python benchmarks/compile.py                                   # nano, orin and orin-b
    python benchmarks/compile.py --preset orin-b --role encoder
    python benchmarks/compile.py --quick --json                    # nano alone

Weights are by lot, engines are thrown away. INT8 is tried where a set may have it, in the encoder and the embedder,
with every layer quantized on ranges of noise and FP16 between them: the most that TensorRT can be asked for. An open
batch has the profile 1, 8, 20. The first network that does not compile ends it, with file, node and operator.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from export import graphs
from machine import describe_machine

from barnsight_engines.errors import EngineError
from barnsight_engines.tensorrt_builder import BuildSettings, build_engine
from barnsight_export.onnx.graph import Graph, write_graph
from barnsight_export.onnx.half import to_half
from barnsight_export.onnx.quantize import find_ranges, layers_of, with_int8
from barnsight_export.precision import QUANTIZABLE

PRESETS = ("nano", "orin", "orin-b")
SHARED = {"orin-b": ("embedder", "behavior")}  # the same networks as in `orin`
TARGET = BuildSettings(target="SM86")


def main() -> int:
    """Export, convert and compile; print a line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, action="append", help="one preset (default: all)")
    parser.add_argument("--role", action="append", help="one engine alone (default: all)")
    parser.add_argument("--quick", action="store_true", help="nano alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # PyTorch's exporter warns of its own
    engines: dict[str, dict[str, Any]] = {}
    try:
        for preset in ("nano",) if options.quick else options.preset or PRESETS:
            for graph in graphs(preset):
                if graph.role in SHARED.get(preset, ()) or (options.role and graph.role not in options.role):
                    continue
                for precision, row in compile_graph(graph):
                    engines[f"{preset}/{graph.role}/{precision}"] = row
                    print(
                        f"{preset:8} {graph.role:17} {precision:5} {row['onnx_mb']:7.1f} MB -> {row['engine_mb']:7.1f}"
                        f" MB, {row['layers']:5} layers, {row['seconds']:6.1f} s",
                        flush=True,
                    )
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{len(engines)} engines compiled on {describe_machine()}")
    if options.json:
        print(json.dumps({"benchmark": "compile", "machine": describe_machine(), "engines": engines}))
    return os.EX_OK


def compile_graph(graph: Graph) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compile one engine in each precision. Raises EngineError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / graph.file
        write_graph(graph, path)
        yield "fp32", build(path)
        model = onnx.load(path)
        yield "fp16", build(saved(to_half(model), path.with_stem(f"{graph.role}-fp16")))
        if graph.role in QUANTIZABLE:
            noise = {name: value.numpy() for name, value in graph.draw(0, 1).items()}
            quantized = with_int8(model, find_ranges(path, [noise]), layers_of(model))
            yield "int8", build(saved(to_half(quantized), path.with_stem(f"{graph.role}-int8")))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph to a file."""
    onnx.save(model, str(path))
    return path


def build(path: Path) -> dict[str, Any]:
    """Compile one file and forget the engine; its sizes and times."""
    built = build_engine(path, path.with_suffix(".engine"), TARGET, "tensorrt-rtx")
    built.file.unlink()
    return {
        "onnx_mb": round(path.stat().st_size / 1e6, 1),
        "engine_mb": round(built.size_bytes / 1e6, 1),
        "layers": built.layers,
        "seconds": round(built.seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
