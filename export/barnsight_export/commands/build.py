"""`barnsight-export build`: compile ONNX engines with TensorRT, as a check that they can be built.

    barnsight-export build --models engines/nano                          no GPU needed, nothing is kept
    barnsight-export build --models build/orin --target SM89 --out build/orin-sm89

What a device runs is built and certified there: `barnsight engine build`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from barnsight_engines.manifest import BUILT

RTX = "tensorrt-rtx"
MB = 1_000_000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("build", help="compile ONNX engines with TensorRT", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="model set or folder of *.onnx")
    parser.add_argument("--runtime", choices=BUILT, default=RTX, help="default: %(default)s")
    parser.add_argument("--target", help="compute capability, tensorrt-rtx alone (default: SM86)")
    parser.add_argument("--batches", type=_batches, metavar="MIN,USUAL,MAX", help="of an open batch (default: 1,8,20)")
    parser.add_argument("--workspace-mb", type=int, help="most memory that a layer may use (default: all)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="makes the next build with tensorrt faster")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the engines there, all or none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Build each engine and say how large it is and how long it took."""
    from barnsight_engines.tensorrt_backend import import_tensorrt
    from barnsight_engines.tensorrt_builder import BATCHES, BuildSettings
    from barnsight_export.build_tensorrt import build_folder
    from barnsight_export.files import written_aside

    settings = BuildSettings(
        batches=args.batches or BATCHES,
        workspace_bytes=args.workspace_mb and args.workspace_mb * MB,
        timing_cache=args.timing_cache,
        target=args.target or ("SM86" if args.runtime == RTX else None),
    )
    version = import_tensorrt(args.runtime).__version__
    engines = []
    with written_aside(args.out) if args.out else tempfile.TemporaryDirectory() as out:
        for built in build_folder(args.models, Path(out), settings, args.runtime):
            mb, seconds = round(built.size_bytes / MB, 1), round(built.seconds, 1)
            engines.append({"engine": built.file.stem, "layers": built.layers, "mb": mb, "seconds": seconds})
            if not args.json:
                print(f"{built.file.stem}: {built.layers} layers, {mb} MB, {seconds} s", flush=True)
    if args.json:
        print(json.dumps({"runtime": args.runtime, "version": version, "target": settings.target, "engines": engines}))
    return os.EX_OK


def _batches(text: str) -> tuple[int, int, int]:
    from barnsight_engines.tensorrt_builder import parse_batches

    try:
        return parse_batches(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
