"""`barnsight-export params`: how large a preset's networks are, part by part, beside the paper's figures.

barnsight-export params --preset orin
barnsight-export params --preset orin-b --json
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "params",
        help="count a preset's parameters",
        description="Count the parameters of a full-scale preset and of its teacher, beside the paper's figures.",
    )
    parser.add_argument("--preset", choices=["orin", "orin-b"], default="orin", help="point A (orin) or B (orin-b)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, in parameters")


def run(args: argparse.Namespace) -> int:
    """Count, and print a table or one JSON object."""
    from barnsight_export.networks.parameters import PAPER, count_parameters
    from barnsight_export.networks.sam3 import PyramidConfig
    from barnsight_export.presets import PRESETS

    preset = PRESETS[args.preset]
    assert not isinstance(preset.student, PyramidConfig)
    counted = count_parameters(preset.student, preset.detector).as_dict()
    if args.json:
        print(json.dumps({"preset": preset.name, **counted, "paper": PAPER}))
        return os.EX_OK
    rows = [(name, _figure(name, value), _figure(name, PAPER.get(name))) for name, value in counted.items()]
    for name, ours, paper in [(preset.name, "million", "paper, A"), *rows]:
        print(f"{name:<18}{ours:>10}{paper:>10}")
    return os.EX_OK


def _figure(name: str, value: float | None) -> str:
    """Parameters in millions; a ratio as it is."""
    if value is None:
        return ""
    return f"{value:.2f}" if name == "ratio" else f"{value / 1e6:.2f}"
