"""`barnsight-export export`: a trained checkpoint to a model set of ONNX engines and their manifest."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("export", help="write a checkpoint as a model set", description=__doc__)
    parser.add_argument("--recipe", choices=["nano"], default="nano")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of a training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model set")
    parser.add_argument("--trained-on", default="simulated barns only", help="what the manifest says of the data")


def run(args: argparse.Namespace) -> int:
    """Export, compare ONNX Runtime with PyTorch, and say how large the difference is."""
    from barnsight_export.onnx.export import export_model_set
    from barnsight_export.presets import PRESETS
    from barnsight_export.train.detector import load_trained

    preset = PRESETS[args.recipe]
    model = load_trained(args.checkpoint, preset)
    exported = export_model_set(model, preset, args.out, trained_on=args.trained_on)
    for role, difference in exported.differences.items():
        print(f"{exported.folder / role}.onnx: within {difference:.1e} of PyTorch")
    return 0
