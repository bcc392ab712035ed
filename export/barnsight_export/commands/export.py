"""`barnsight-export export`: a trained checkpoint to a model set of ONNX engines and their manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

_PICTURES = 200  # enough to choose a threshold on


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("export", help="write a checkpoint as a model set", description=__doc__)
    parser.add_argument("--recipe", choices=["nano"], default="nano")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of a training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model set")
    parser.add_argument("--data", type=Path, help="folder with val/, to choose the score threshold and golden input on")
    parser.add_argument("--trained-on", default="simulated barns only", help="what the manifest says of the data")


def run(args: argparse.Namespace) -> int:
    """Export, compare ONNX Runtime with PyTorch, and say how large the difference is."""
    import cv2
    import torch

    from barnsight_export.networks.student import normalize
    from barnsight_export.onnx.export import export_model_set
    from barnsight_export.presets import PRESETS
    from barnsight_export.train.detector import load_trained
    from barnsight_export.train.samples import Simulated
    from barnsight_export.train.validation import best_threshold

    preset = PRESETS[args.recipe]
    model = load_trained(args.checkpoint, preset)
    score, golden = 0.5, None
    if args.data is not None:
        pictures = Simulated(args.data / "val")
        score = best_threshold(model, pictures, preset.image_size, _PICTURES)
        image = cv2.resize(pictures[0].image, (preset.image_size,) * 2, interpolation=cv2.INTER_AREA)
        golden = normalize(torch.from_numpy(image)[None]).contiguous().numpy()
        print(f"score threshold {score}, where F1 is best on {min(_PICTURES, len(pictures))} validation pictures")
    exported = export_model_set(model, preset, args.out, trained_on=args.trained_on, score=score, golden_image=golden)
    for role, difference in exported.differences.items():
        print(f"{exported.folder / role}.onnx: within {difference:.1e} of PyTorch")
    return 0
