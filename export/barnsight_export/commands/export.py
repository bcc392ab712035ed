"""`barnsight-export export`: networks to a model set of ONNX engines and their manifest.

barnsight-export export --preset nano --checkpoint runs/nano/checkpoint.pt --data pictures --out build/nano
barnsight-export export --preset nano --checkpoint runs/nano/checkpoint.pt --tracker runs/tracker/checkpoint.pt \\
    --data pictures --out build/nano
barnsight-export export --preset orin --student runs/a/student.safetensors --sam3 checkpoints/sam3 \\
    --dinov3 checkpoints/dinov3 --out build/orin
barnsight-export export --preset orin-b --random-weights --out build/orin-b
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barnsight_export.errors import ExportUsageError

if TYPE_CHECKING:
    from barnsight_export.networks.sam3 import Sam3
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
    parser.add_argument("--preset", "--recipe", choices=["nano", "nano-teacher", "orin", "orin-b"], default="nano")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a training run, or a model set's folder")
    weights.add_argument(
        "--random-weights",
        action="store_true",
        help="every engine of the preset, with weights by lot: for compile checks and timing, never for animals",
    )
    weights.add_argument("--student", type=Path, metavar="FILE", help="student.safetensors of a distillation")
    parser.add_argument(
        "--tracker",
        type=Path,
        metavar="CHECKPOINT|DIR",
        help="checkpoint.pt of a tracker over --checkpoint, or the model set whose tracker goes on",
    )
    parser.add_argument("--sam3", type=Path, metavar="DIR", help="facebook/sam3: tracker, and heads for --student")
    parser.add_argument("--dinov3", type=Path, metavar="DIR", help="facebook/dinov3-vits16…: the embedder")
    parser.add_argument(
        "--behavior", type=Path, metavar="FILE", help="behavior.safetensors: the classifier over --dinov3"
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
    from barnsight_export.onnx.export import TOLERANCE, export_model_set
    from barnsight_export.train.samples import Simulated
    from barnsight_export.train.validation import best_threshold, golden_image

    public = _trained_tracker(args, preset) if args.tracker is not None else _public_networks(args, preset)
    model = _detection(args, preset)
    chosen: dict[str, Any] = {}
    if args.data is not None:
        pictures = Simulated(args.data / "val")
        score = best_threshold(model, pictures, preset.image_size, _PICTURES)
        chosen = {"score": score, "golden_image": golden_image(model, pictures, preset.image_size, _PICTURES)}
        print(
            f"score threshold {score}, the lowest as good as the best F1 on "
            f"{min(_PICTURES, len(pictures))} validation pictures"
        )
    # the larger the logits, the larger what FP32 leaves open: at SAM 3's size only its share counts
    tolerance = TOLERANCE if preset.name == "nano" else math.inf
    export_model_set(
        model, preset, args.out, trained_on=args.trained_on, tolerance=tolerance, report=_report, **public, **chosen
    )


def _detection(args: argparse.Namespace, preset: Preset) -> Sam3:
    """Encoder and detector: of a training run, or a student under SAM 3's heads."""
    if args.checkpoint is not None:
        from barnsight_export.train.detector import load_trained

        return load_trained(args.checkpoint, preset)
    from barnsight_export.assemble import assemble_detection

    if args.sam3 is None:
        raise ExportUsageError("--student needs --sam3: the heads that it was distilled for")
    return assemble_detection(preset, args.student, args.sam3)


def _trained_tracker(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    """The engines of a tracker that was trained here, with its neck."""
    from barnsight_export.onnx import roles
    from barnsight_export.train.tracker import load_tracker

    if preset.tracker is None:
        raise ExportUsageError(f"--tracker: preset '{preset.name}' has no tracker; leave it out")
    if args.checkpoint is None or args.sam3 or args.dinov3 or args.behavior:
        raise ExportUsageError(
            "--tracker is of a training run, over its --checkpoint: name that, and no --sam3, --dinov3 or --behavior"
        )
    trained = load_tracker(args.tracker, preset)
    return {"more": roles.tracker_graphs(trained.tracker), "tracker": trained.tracker, "neck": trained.neck}


def _public_networks(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    """The engines besides encoder and detector, and the tracker that some of them are of."""
    if preset.name.startswith("nano") and (args.student or args.sam3 or args.dinov3 or args.behavior):
        raise ExportUsageError(
            "--student, --sam3, --dinov3 and --behavior are of SAM 3's size: choose --preset orin or orin-b"
        )
    if args.behavior is not None and args.dinov3 is None:
        raise ExportUsageError("--behavior needs --dinov3: the embedder that its windows are made of")
    if args.sam3 is None and args.dinov3 is None:
        return {}
    from barnsight_export.assemble import assemble_behavior, assemble_embedder, assemble_tracker
    from barnsight_export.onnx import roles

    tracker = assemble_tracker(args.sam3, preset.tracker) if args.sam3 and preset.tracker else None
    more = [*(roles.tracker_graphs(tracker) if tracker else ())]
    if args.dinov3 is not None:
        more.append(roles.embedder(assemble_embedder(args.dinov3)))
    if args.behavior is not None:
        more.append(roles.behavior(assemble_behavior(args.behavior)))
    return {"more": more, "tracker": tracker}


def _export_random(args: argparse.Namespace, preset: Preset) -> None:
    from barnsight_export.onnx.export import export_model_set
    from barnsight_export.onnx.random_weights import random_networks

    if any(given is not None for given in (args.tracker, args.sam3, args.dinov3, args.behavior)):
        raise ExportUsageError(
            "--random-weights takes the place of --tracker, --sam3, --dinov3 and --behavior: leave them out"
        )
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
