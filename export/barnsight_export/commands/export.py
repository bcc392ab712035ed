"""`barnsight-export export`: networks to a model set of ONNX engines and their manifest.

barnsight-export export --preset nano --checkpoint runs/nano/checkpoint.pt --data pictures --out engines/nano
barnsight-export export --preset orin-b --random-weights --out build/orin-b
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from barnsight_export.onnx.graph import Differences
    from barnsight_export.presets import Preset

_PICTURES = 200  # enough to choose a threshold on
_SEED = 0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="write networks as a model set",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", "--recipe", choices=["nano", "orin", "orin-b"], default="nano")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a training run: encoder and detector")
    weights.add_argument(
        "--random-weights",
        action="store_true",
        help="every engine of the preset, with weights by lot: for compile checks and timing, never for animals",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the model set")
    parser.add_argument("--data", type=Path, help="folder with val/, to choose the score threshold and golden input on")
    parser.add_argument("--trained-on", default="simulated barns only", help="what the manifest says of the data")


def run(args: argparse.Namespace) -> int:
    """Export, compare ONNX Runtime with PyTorch, and say how large the difference is."""
    from barnsight_export.presets import PRESETS

    preset = PRESETS[args.preset]
    export = _export_random if args.random_weights else _export_trained
    export(args, preset)
    return os.EX_OK


def _export_trained(args: argparse.Namespace, preset: Preset) -> None:
    import cv2
    import torch

    from barnsight_export.networks.sam3 import normalize
    from barnsight_export.onnx.export import export_model_set
    from barnsight_export.train.detector import load_trained
    from barnsight_export.train.samples import Simulated
    from barnsight_export.train.validation import best_threshold

    model = load_trained(args.checkpoint, preset)
    chosen: dict[str, Any] = {}
    if args.data is not None:
        pictures = Simulated(args.data / "val")
        score = best_threshold(model, pictures, preset.image_size, _PICTURES)
        image = cv2.resize(pictures[0].image, (preset.image_size,) * 2, interpolation=cv2.INTER_AREA)
        chosen = {"score": score, "golden_image": normalize(torch.from_numpy(image)[None]).contiguous().numpy()}
        print(f"score threshold {score}, where F1 is best on {min(_PICTURES, len(pictures))} validation pictures")
    export_model_set(model, preset, args.out, trained_on=args.trained_on, report=_report, **chosen)


def _export_random(args: argparse.Namespace, preset: Preset) -> None:
    from barnsight_export.errors import ExportUsageError
    from barnsight_export.onnx.export import export_model_set
    from barnsight_export.onnx.random_weights import random_networks

    if args.data is not None:
        raise ExportUsageError("--data chooses a threshold for trained weights; leave it out with --random-weights")
    networks = random_networks(preset, _SEED)
    export_model_set(
        networks.detection,
        preset,
        args.out,
        trained_on="nothing: weights by lot",
        more=networks.more,
        tracker=networks.tracker,
        tolerance=math.inf,  # what weights by lot answer may be large: only its share counts
        seeds=(1,),
        report=_report,
    )


def _report(role: str, differences: Differences) -> None:
    for output, difference in differences.items():
        figures = f"{difference.absolute:.1e}, {difference.relative:.1e} of its largest value"
        print(f"{role + '.onnx':<22} {output:<9} within {figures} of PyTorch", flush=True)
