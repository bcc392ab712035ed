"""`barnsight-export quantize`: a model set at lower precision, judged before it is kept.

barnsight-export quantize engines/nano --precision fp16 --out build/nano-fp16
barnsight-export quantize build/orin --precision int8 --rest fp16 --engine encoder --engine embedder \\
    --data clips --out build/orin-int8
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from barnsight_export.commands.frames import add_frames_options, open_frames
from barnsight_export.errors import ExportUsageError

if TYPE_CHECKING:
    from barnsight_export.onnx.quantize import Sensitivity
    from barnsight_export.precision import Int8

_FRAMES_EACH = 100
_SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a model set at lower precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", type=Path, metavar="DIR", help="a model set in FP32")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new set")
    parser.add_argument("--precision", choices=("fp16", "int8"), required=True)
    parser.add_argument(
        "--rest",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what is not INT8: fp16 for TensorRT, fp32 for ONNX Runtime on a CPU (default fp32)",
    )
    parser.add_argument(
        "--engine",
        choices=("encoder", "embedder"),
        action="append",
        default=[],
        help="an engine to quantize; may be repeated (default: encoder)",
    )
    data = parser.add_argument_group("calibration, for int8")
    add_frames_options(data, required=False, frames_each=_FRAMES_EACH)
    data.add_argument(
        "--calibrate", type=int, default=300, help="frames for the ranges, that differ most (default 300)"
    )
    data.add_argument("--measure", type=int, default=16, help="frames for the sensitivity (default 16)")
    data.add_argument("--cosine", type=float, default=0.999, help="least agreement with FP32 (default 0.999)")
    data.add_argument(
        "--loss", type=float, default=0.01, help="most AP50 to lose, with --format simulated (default 0.01)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, judge, and say what was quantized; raises ExportError where data or figures do not do."""
    from barnsight_export.precision import SENSITIVITY_FILE, convert_model_set

    if args.precision == "fp16":
        if args.data is not None or args.engine:
            raise ExportUsageError("--data and --engine are for --precision int8: FP16 needs no calibration")
        convert_model_set(args.models, args.out, rest="fp16")
        return os.EX_OK
    converted = convert_model_set(args.models, args.out, rest=args.rest, int8=_int8(args), report=_report)
    for role, found in converted.quantized.items():
        count = len(found.sensitivities)
        print(f"{role}: {count - found.kept} of {count} layers in INT8, cosine {found.cosine:.5f} to FP32")
        for sensitivity in found.sensitivities[: min(found.kept, _SHOWN)]:
            print(f"  kept in {args.rest}: {sensitivity.layer.node} (alone: cosine {sensitivity.cosine:.5f})")
    if converted.ap50 is not None:
        print(f"AP50 {converted.ap50[0]:.3f} in FP32, {converted.ap50[1]:.3f} now")
    print(f"every layer: {args.out / SENSITIVITY_FILE}")
    return os.EX_OK


def _int8(args: argparse.Namespace) -> Int8:
    from barnsight_export.precision import Int8
    from barnsight_export.train.samples import Simulated

    if args.data is None:
        raise ExportUsageError("--precision int8 needs --data: frames of barns to calibrate on")
    for name in ("frames", "calibrate", "measure"):
        if getattr(args, name) < 1:
            raise ExportUsageError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if not 0 < args.cosine < 1:
        raise ExportUsageError(f"--cosine must lie between 0 and 1, got {args.cosine}")
    train, validation = open_frames(args.format, args.data, args.frames)
    return Int8(
        roles=tuple(dict.fromkeys(args.engine)) or ("encoder",),
        calibration=train,
        measurement=validation,
        pictures=Simulated(args.data / "val") if args.format == "simulated" else None,
        calibrated=args.calibrate,
        measured=args.measure,
        least_cosine=args.cosine,
        most_loss=args.loss,
    )


def _report(role: str, sensitivity: Sensitivity) -> None:
    layer = sensitivity.layer
    print(f"{role}: {layer.node} {layer.operator} {layer.weights} alone: cosine {sensitivity.cosine:.6f}", flush=True)
