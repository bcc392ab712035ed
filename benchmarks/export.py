"""How near each exported engine comes to PyTorch in ONNX Runtime, how large it is, and how long its export takes.

    python benchmarks/export.py                                  # orin and orin-b at full size, weights by lot
    python benchmarks/export.py --preset orin-b --role mask_decoder
    python benchmarks/export.py --quick --json                   # nano and a small tracker

Inputs are fresh random ones. A difference is the largest one of an output as a share of the output's largest value.
Full size takes 3.4 GB and, for both presets, seven minutes of an idle core. The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from machine import describe_machine

from barnsight_export.errors import ExportError
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import detection_graphs
from barnsight_export.onnx.graph import RELATIVE_TOLERANCE, Graph, compare, write_graph
from barnsight_export.onnx.random_weights import random_networks, random_tracker
from barnsight_export.presets import NANO, PRESETS

FULL = ("orin", "orin-b")
SEED = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=FULL, action="append", help="one of the full-size presets (default: both)")
    parser.add_argument("--role", action="append", help="one engine alone (default: all)")
    parser.add_argument("--quick", action="store_true", help="nano's size instead of the full one")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # PyTorch's exporter warns of its own
    presets = ("nano",) if options.quick else tuple(options.preset or FULL)
    engines: dict[str, dict[str, Any]] = {}
    try:
        for preset in presets:
            for graph in graphs(preset):
                if not options.role or graph.role in options.role:
                    engines[f"{preset}/{graph.role}"] = row = measure(graph)
                    print(
                        f"{preset:8} {graph.role:17} {row['mb']:7.1f} MB {row['nodes']:5} nodes "
                        f"{row['export_s']:6.1f} s   within {row['relative']:.1e}",
                        flush=True,
                    )
    except ExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    worst = max((row["relative"] for row in engines.values()), default=0.0)
    print(f"worst {worst:.1e}, allowed {RELATIVE_TOLERANCE:.0e}, on {describe_machine()}")
    if options.json:
        print(json.dumps({"benchmark": "export", "worst": worst, "engines": engines, "machine": describe_machine()}))
    near = all(row["relative"] <= RELATIVE_TOLERANCE for row in engines.values())  # also false for what is no number
    return os.EX_OK if near else os.EX_SOFTWARE


def graphs(preset: str) -> Iterator[Graph]:
    """The engines of a preset with weights by lot; the quick one has a tracker of its own size."""
    networks = random_networks(PRESETS[preset])
    yield from detection_graphs(networks.detection, PRESETS[preset])
    if preset == NANO.name and NANO.tracker is not None:
        tracker = random_tracker(NANO.tracker)
        yield from roles.tracker_graphs(tracker)
    yield from networks.more


def measure(graph: Graph) -> dict[str, Any]:
    """Export one engine and compare it with PyTorch once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / graph.file
        started_ns = time.monotonic_ns()
        write_graph(graph, path)
        export_s = (time.monotonic_ns() - started_ns) / 1e9
        outputs = {name: difference.relative for name, difference in compare(graph, path, seeds=(SEED,)).items()}
        return {
            "mb": round(path.stat().st_size / 1e6, 2),
            "nodes": len(onnx.load(path).graph.node),
            "export_s": round(export_s, 1),
            "relative": max(outputs.values()),
            "outputs": outputs,
        }


if __name__ == "__main__":
    sys.exit(main())
