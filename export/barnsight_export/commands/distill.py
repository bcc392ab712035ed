"""`barnsight-export distill`: let a preset's student learn its teacher's feature maps from unlabeled barn video.

    barnsight-export distill --data clips --format videos --student orin-b --teacher sam3 --trunk tinyvit.safetensors \\
        --out runs/orin-b
    barnsight-export distill --data clips --format videos --student orin-b --teacher sam3 --labels pig --out pictures
    barnsight-export distill --data pictures --format simulated --student nano --teacher-preset nano-teacher \\
        --teacher runs/teacher/checkpoint.pt --epochs 4 --batch 64 --cache-gb 0 --out runs/student
    torchrun --nproc-per-node 2 -m barnsight_export distill ...

With --labels it writes the teacher's detections as pictures for `barnsight-export train detector`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barnsight_export.commands.frames import add_frames_options, open_frames
from barnsight_export.errors import ExportUsageError

if TYPE_CHECKING:
    from barnsight_export.distill.teacher import Tap
    from barnsight_export.distill.train import Recipe
    from barnsight_export.presets import Preset

GB = 10**9


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "distill",
        help="teach a student its teacher's features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_frames_options(parser.add_argument_group("data"), required=True, frames_each=600)
    networks = parser.add_argument_group("networks")
    networks.add_argument("--student", default="nano", metavar="PRESET", help="preset of the student (default nano)")
    networks.add_argument(
        "--teacher", type=Path, required=True, metavar="FILE", help="facebook/sam3, or a detector's checkpoint.pt"
    )
    networks.add_argument("--teacher-preset", metavar="PRESET", help="preset of the teacher (default: the student's)")
    networks.add_argument("--trunk", type=Path, metavar="FILE", help="public TinyViT weights to begin with")
    networks.add_argument(
        "--init", type=Path, metavar="FILE", help="student.safetensors of an earlier run to begin with"
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument("--schedule", choices=("fixed", "direction-then-scale"), default="fixed")
    loss.add_argument(
        "--without",
        choices=("direction", "cosine", "scale", "magnitude"),
        action="append",
        default=[],
        help="leave a term out; may be repeated",
    )
    loss.add_argument("--attention", type=float, default=0.0, metavar="W", help="weight of attention transfer (0: off)")
    loss.add_argument("--intermediate", type=float, default=0.0, metavar="W", help="weight of inner maps (0: off)")
    loss.add_argument(
        "--match",
        action="append",
        default=[],
        metavar="LAYER=LAYER",
        help="student's and teacher's layers whose maps are matched; ':last' after one says that channels come last",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run, or of the pictures")
    run.add_argument("--epochs", type=int, default=100, help="at most (default 100)")
    run.add_argument("--patience", type=int, default=15, help="epochs without a better validation (default 15)")
    run.add_argument("--batch", type=int, default=4, help="frames a step, over all processes (default 4)")
    run.add_argument("--rate", type=float, default=3e-4, help="learning rate of what is new (default 3e-4)")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--cache", type=Path, metavar="DIR", help="where teacher features are kept (default OUT/features)")
    run.add_argument("--cache-gb", type=float, default=20.0, help="at most so much of them; 0 keeps none (default 20)")
    run.add_argument("--workers", type=int, default=1, help="processes that decode, for each that trains (default 1)")
    run.add_argument("--threads", type=int, help="cores for the networks (default: all)")
    run.add_argument("--resume", action="store_true", help="go on with the run that stands in --out")
    run.add_argument("--labels", metavar="CONCEPT", help="write the teacher's detections as pictures instead")


def run(args: argparse.Namespace) -> int:
    """Distill, or label; raises ExportError where data, networks or options do not fit."""
    from barnsight_export.presets import PRESETS

    taught_by = args.teacher_preset or args.student
    for option, name in (("student", args.student), ("teacher-preset", taught_by)):
        if name not in PRESETS:
            raise ExportUsageError(f"--{option}: no preset '{name}'; choose one of {', '.join(PRESETS)}")
    for name in ("frames", "epochs", "patience", "batch"):
        if getattr(args, name) < 1:
            raise ExportUsageError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if not args.rate > 0:
        raise ExportUsageError(f"--rate must be positive, got {args.rate}")
    if args.labels:
        return _label(args, PRESETS[taught_by])
    return _distill(args, PRESETS[args.student], PRESETS[taught_by])


def _distill(args: argparse.Namespace, preset: Preset, taught_by: Preset) -> int:
    import torch
    from torch import distributed

    from barnsight_export.distill.build import build_student, build_teacher, compared_maps
    from barnsight_export.distill.cache import FeatureCache
    from barnsight_export.distill.train import Distillation, Match, distill
    from barnsight_export.train.device import join_processes, process_device
    from barnsight_export.train.trainer import CHECKPOINT

    pairs = [_pair(text) for text in args.match]
    recipe = _recipe(args)
    if (args.out / CHECKPOINT).exists() and not args.resume:
        raise ExportUsageError(f"{args.out} holds a run already: add --resume, or choose another folder")
    train, validation = open_frames(args.format, args.data, args.frames)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = process_device()
    several = join_processes(device)
    try:
        taps = {name: tap for (name, tap), _ in pairs}
        student = build_student(preset, args.trunk, args.init, taps, taught_by=taught_by)
        teacher = build_teacher(taught_by, args.teacher, {name: tap for _, (name, tap) in pairs}, device)
        processes = distributed.get_world_size() if several else 1
        budget_bytes = int(args.cache_gb * GB)
        cache = FeatureCache(args.cache or args.out / "features", budget_bytes, processes) if budget_bytes else None
        match = Match(dict.fromkeys(compared_maps(preset), 1.0), {ours: theirs for (ours, _), (theirs, _) in pairs})
        distillation = Distillation(
            student, teacher, match, recipe, args.out, size_px=max(taught_by.image_size), device=device, cache=cache
        )
        if args.resume:
            distillation.resume()
        distill(distillation, train, validation, workers=args.workers)
    finally:
        if several:
            distributed.destroy_process_group()
    return os.EX_OK


def _label(args: argparse.Namespace, preset: Preset) -> int:
    import torch

    from barnsight_export.distill.build import build_labeler
    from barnsight_export.distill.pseudo import LABELED_PX, write_pictures

    train, validation = open_frames(args.format, args.data, args.frames)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    labeler = build_labeler(preset, args.teacher, args.labels)
    concept, size_px = preset.concepts.index(args.labels), max(LABELED_PX, *preset.image_size)
    for split, frames in (("train", train), ("val", validation)):
        write_pictures(frames, labeler, args.out / split, concept=concept, size_px=size_px)
    return os.EX_OK


def _recipe(args: argparse.Namespace) -> Recipe:
    from barnsight_export.distill.losses import FOUR_TERMS, Weights
    from barnsight_export.distill.schedule import weights_at
    from barnsight_export.distill.train import Recipe

    if args.match and not (args.attention or args.intermediate):
        raise ExportUsageError("--match alone changes nothing: give --attention or --intermediate a weight")
    weights = Weights(attention=args.attention, intermediate=args.intermediate)
    weights = replace(weights, **dict.fromkeys(args.without, 0.0))
    if not any(getattr(weights, term) for term in FOUR_TERMS):
        raise ExportUsageError("--without leaves no term to validate by: keep one")
    if not any(asdict(weights_at(args.schedule, weights, 0.0)).values()):
        raise ExportUsageError(f"--schedule {args.schedule} begins with direction and cosine: keep one of them")
    usual = Recipe()
    return Recipe(
        batch=args.batch,
        epochs=args.epochs,
        patience=args.patience,
        new_rate=args.rate,
        first_cycle_epochs=min(usual.first_cycle_epochs, args.epochs),  # a short run ends at a low rate too
        weights=weights,
        schedule=args.schedule,
        seed=args.seed,
    )


def _pair(text: str) -> tuple[tuple[str, Tap], tuple[str, Tap]]:
    """`trunk.stages.2=backbone.layers.20:last` as two taps, each named like its layer."""
    from barnsight_export.distill.teacher import Tap

    sides = text.split("=")
    if len(sides) != 2 or not all(sides):
        raise ExportUsageError(f"--match must be STUDENT_LAYER=TEACHER_LAYER, got '{text}'")
    student, teacher = (
        (layer, Tap(layer, "channels-last" if last else "channels-first"))
        for layer, last in ((side.removesuffix(":last"), side.endswith(":last")) for side in sides)
    )
    return student, teacher
