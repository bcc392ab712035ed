"""`barnsight-export train`: train the nano networks on pictures of simulated barns, and plot how a run went."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from barnsight_export.errors import ExportUsageError

if TYPE_CHECKING:
    import torch

    from barnsight_export.train.trainer import Budget

_TAKEN = "{} holds a run already: add --resume, or choose another folder"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("train", help="train a network", description=__doc__)
    networks = parser.add_subparsers(dest="network", required=True)
    detector = networks.add_parser("detector", help="the encoder and SAM 3's detector, together, from nothing")
    detector.add_argument("--preset", choices=["nano", "nano-teacher", "orin", "orin-b"], default="nano")
    recipes = ["nano", "nano-crowds", "nano-full-size", "nano-large-batch", "nano-teacher", "heads"]
    detector.add_argument("--recipe", choices=recipes, default="nano")
    detector.add_argument("--batch", type=int, help="views a step, over all processes (default: the recipe's)")
    detector.add_argument("--seed", type=int, help="of fresh weights and of the order of views (default: the recipe's)")
    _add_run(detector)
    start = detector.add_mutually_exclusive_group()
    start.add_argument(
        "--init", type=Path, metavar="CHECKPOINT|DIR", help="start from another run's networks, or a model set's"
    )
    start.add_argument(
        "--heads", type=Path, metavar="CHECKPOINT", help="start from all but the encoder of another run's networks"
    )
    start.add_argument("--resume", action="store_true", help="go on with the run that stands in --out")
    detector.add_argument("--student", type=Path, metavar="FILE", help="student.safetensors to put under the heads")
    detector.add_argument("--sam3", type=Path, metavar="DIR", help="facebook/sam3: start with its heads over --student")
    detector.add_argument("--freeze", choices=["encoder", "detector"], help="a part that keeps its weights")
    tracker = networks.add_parser("tracker", help="SAM 3's tracker over a trained student, on sequences")
    tracker.add_argument("--preset", choices=["nano"], default="nano")
    tracker.add_argument("--recipe", choices=["nano", "nano-large-batch"], default="nano")
    tracker.add_argument("--student", type=Path, required=True, metavar="CHECKPOINT|DIR", help="encoder to build on")
    _add_run(tracker)
    start = tracker.add_mutually_exclusive_group()
    start.add_argument(
        "--init", type=Path, metavar="CHECKPOINT|DIR", help="start from another run's tracker, or a model set's"
    )
    start.add_argument("--resume", action="store_true", help="go on with the run that stands in --out")
    average = networks.add_parser("average", help="the mean of the networks of several runs, each begun with --init")
    average.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT|DIR", help="checkpoint.pt of a run, or a model set"
    )
    average.add_argument("--preset", choices=["nano"], default="nano", help="of the model sets (default nano)")
    average.add_argument("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    plot = networks.add_parser("plot", help="draw the log of a run, or of several in a row")
    plot.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="log.csv of a run")
    plot.add_argument("--out", type=Path, required=True, help="picture to write, .png or .svg")


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What every run needs to know."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt and log.csv")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="train for so many minutes, resumed ones counted together")
    budget.add_argument("--images", type=int, help="train on so many views, or sequences")
    parser.add_argument("--threads", type=int, default=None, help="cores for the network (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples, for each that trains")


def run(args: argparse.Namespace) -> int:
    """Train until the budget is spent, or draw; raises ExportError where data, run or budget are missing."""
    if args.network == "average":
        from barnsight_export.presets import PRESETS
        from barnsight_export.train.trainer import average_checkpoints

        average_checkpoints(args.checkpoints, args.out, PRESETS[args.preset])
        return 0
    if args.network == "plot":
        from barnsight_export.train.plot import plot_log

        plot_log(args.logs, args.out)
        return 0
    return _train_tracker(args) if args.network == "tracker" else _train_detector(args)


def _train_detector(args: argparse.Namespace) -> int:
    from barnsight_export.assemble import assemble_detection
    from barnsight_export.distill.pseudo import freeze, place_student
    from barnsight_export.errors import DataMissingError
    from barnsight_export.presets import PRESETS
    from barnsight_export.train.detector import RECIPES, DetectorTrainer, train_detector
    from barnsight_export.train.samples import Pictures, Simulated
    from barnsight_export.train.trainer import CHECKPOINT

    recipe = RECIPES[args.recipe]
    if args.batch is not None:
        if args.batch < 1:
            raise ExportUsageError(f"--batch must be 1 or more, got {args.batch}")
        recipe = replace(recipe, batch=args.batch)
    if args.seed is not None:
        recipe = replace(recipe, seed=args.seed)

    def open_pictures(split: str) -> Pictures:
        try:
            return Simulated(args.data / split, recipe.most_animals if split == "train" else None)
        except FileNotFoundError as error:
            raise DataMissingError(f"{error} (barnsight-export simulate --pictures does)") from error

    budget = _budget(args)
    if args.resume and (args.student or args.sam3):
        raise ExportUsageError("--student and --sam3 start a run: leave them out with --resume")
    if args.sam3 and (args.student is None or args.init is not None or args.heads is not None):
        raise ExportUsageError("--sam3 gives the heads over --student: name it, and leave --init and --heads out")
    device = _join(args)
    preset = PRESETS[args.preset]
    trainer = DetectorTrainer(preset, recipe, args.out, device)
    if args.freeze:
        freeze(trainer, (f"{args.freeze}.",))
    if args.resume:
        trainer.resume()
    elif (args.out / CHECKPOINT).exists():
        raise ExportUsageError(_TAKEN.format(args.out))
    elif args.init is not None:
        trainer.start_from(args.init)
    elif args.heads is not None:
        trainer.start_heads(args.heads)
    elif args.sam3 is not None:
        trainer.start_with(assemble_detection(preset, args.student, args.sam3).state_dict())
    if args.student and not args.sam3:
        place_student(trainer, args.student)
    train_detector(trainer, budget, open_pictures, workers=args.workers)
    return 0


def _train_tracker(args: argparse.Namespace) -> int:
    from barnsight_export.presets import PRESETS
    from barnsight_export.train.detector import load_trained
    from barnsight_export.train.sequences import Sequences
    from barnsight_export.train.tracker import RECIPES, TrackerTrainer, load_tracker, train_tracker
    from barnsight_export.train.trainer import CHECKPOINT

    recipe, preset, budget, device = RECIPES[args.recipe], PRESETS[args.preset], _budget(args), _join(args)
    encoder = load_trained(args.student, preset).encoder
    trainer = TrackerTrainer(preset, recipe, encoder, args.out, device)
    if args.resume:
        trainer.resume()
    elif (args.out / CHECKPOINT).exists():
        raise ExportUsageError(_TAKEN.format(args.out))
    elif args.init is not None:
        trainer.start_with(load_tracker(args.init, preset).state_dict())

    def open_sequences(split: str, size: tuple[int, int]) -> Sequences:
        return Sequences(
            args.data / split, size=size, animals=recipe.animals, seed=recipe.seed,
            augmented=split == "train",
        )  # fmt: skip

    train_tracker(trainer, budget, open_sequences, workers=args.workers)
    return 0


def _budget(args: argparse.Namespace) -> Budget:
    from barnsight_export.train.trainer import Budget

    amount = args.minutes if args.minutes is not None else args.images
    if amount <= 0:
        raise ExportUsageError(f"the budget must be positive, got {amount}")
    return Budget("minutes", amount) if args.minutes is not None else Budget("images", amount)


def _join(args: argparse.Namespace) -> torch.device:
    """Take this process's cores and device, and its place among several where torchrun started it."""
    import torch

    from barnsight_export.train.device import join_processes, process_device

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = process_device()
    join_processes(device)
    return device
