"""`barnsight-export certify`: how near ONNX Runtime comes to a model set's golden answers, per engine and output."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from barnsight_engines.errors import ModelSetDataError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("certify", help="compare a model set with its golden answers", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="model set")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every figure; an output that is too far off ends it with 65."""
    from barnsight_export.certify import certify_set

    certificate = certify_set(args.models)
    if args.json:
        print(certificate.model_dump_json())
    else:
        print(f"{args.models}: {certificate.verdict} on {certificate.machine}, against {certificate.reference}")
        for record in certificate.engines:
            for parity in record.outputs:
                print(f"  {record.role} {parity.output}: {parity}")
    if certificate.failure is not None:
        raise ModelSetDataError(f"{args.models}: {certificate.failure} is too far off; export the model set again")
    return os.EX_OK
