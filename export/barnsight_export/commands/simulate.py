"""`barnsight-export simulate`: a clip of the simulated barn with exact truth, or a sheet of its pictures.

    barnsight-export simulate --seed 7 --species pig --animals 8 --seconds 20 --fps 6 --out DIR
    barnsight-export simulate --seed 7 --day 14 --split test --light night --crowding huddle --out DIR
    barnsight-export simulate --pictures train --count 16000 --seed 1 --workers 2 --out DIR
    barnsight-export simulate --sequences train --count 800 --seed 1 --workers 2 --out DIR
    barnsight-export simulate --contact-sheet docs/images/simulated-pens.jpg

The same seed gives the same pen, herd and truth; --herd-seed keeps a herd over pens, --day lets it grow.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from barnsight_export.errors import ExportUsageError, OutputError

LIMITS = {"animals": (0, 255), "fps": (1, 60), "workers": (1, 256), "count": (1, 10_000_000), "day": (0, 36_500)}
CLIP = {  # what a clip is where no option says otherwise
    "split": "test", "species": "pig", "view": "overhead", "day": 0, "animals": 8, "seconds": 20.0, "fps": 6,
    "width": 1280, "height": 720,
}  # fmt: skip
SHEET_COLUMNS, SHEET_ROWS, SHEET_TILE_PX = 6, 4, 240


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("simulate", help="render the simulated barn with exact truth")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the clip and its truth, or the pictures")
    parser.add_argument("--seed", type=int, default=1, help="draws pen, camera and life (default 1)")
    parser.add_argument("--herd-seed", type=int, help="draws the herd's coats and builds (default: --seed)")
    parser.add_argument("--day", type=int, help="the herd's age in days since the start (default 0)")
    parser.add_argument("--split", choices=("train", "val", "test"), help="family of floors and layouts (default test)")
    parser.add_argument("--species", choices=("pig", "cow"), help="(default pig)")
    parser.add_argument("--animals", type=int, help="(default 8)")
    parser.add_argument("--seconds", type=float, help="(default 20)")
    parser.add_argument("--fps", type=int, help="(default 6)")
    parser.add_argument("--width", type=int, help="in pixels (default 1280)")
    parser.add_argument("--height", type=int, help="in pixels (default 720)")
    parser.add_argument("--light", choices=("day", "dusk", "night"))
    parser.add_argument("--crowding", choices=("scatter", "pile", "huddle", "feeding"), help="how the herd is found")
    parser.add_argument(
        "--view",
        choices=("overhead", "close", "aisle"),
        help="the pen from above (default), a part of it from close above, or down the barn",
    )
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--pictures", choices=("train", "val", "test"), help="still pictures for training instead")
    other.add_argument("--sequences", choices=("train", "val", "test"), help="short sequences for training instead")
    other.add_argument("--contact-sheet", type=Path, metavar="FILE", help="a sheet of pictures with outlines instead")
    parser.add_argument("--count", type=int, default=1000, help="number of pictures or sequences (default 1000)")


def run(args: argparse.Namespace) -> int:
    """Render what was asked for."""
    if args.contact_sheet or args.pictures or args.sequences:
        _refuse_what_is_drawn(args)
    for name, value in CLIP.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("seed", "herd_seed"):
        if (getattr(args, name) or 0) < 0:
            raise ExportUsageError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(args, name)}")
    for name, (low, high) in LIMITS.items():
        if not low <= getattr(args, name) <= high:
            raise ExportUsageError(f"--{name} must be {low} to {high}, got {getattr(args, name)}")
    if not 0 < args.seconds <= 86_400:
        raise ExportUsageError(f"--seconds must be over 0 and at most 86400, got {args.seconds:g}")
    if not all(64 <= side <= 4096 and side % 2 == 0 for side in (args.width, args.height)):
        raise ExportUsageError(f"--width and --height must be even, 64 to 4096, got {args.width}x{args.height}")
    if args.contact_sheet:
        _write_sheet(args.contact_sheet, args.seed)
        return os.EX_OK
    if args.out is None:
        raise ExportUsageError("name a folder with --out")
    if args.pictures:
        from barnsight_export.datasets.simulated import write_pictures

        write_pictures(args.out, args.pictures, args.count, args.seed, args.workers)
        return os.EX_OK
    if args.sequences:
        from barnsight_export.datasets.simulated import write_sequences

        write_sequences(args.out, args.sequences, args.count, args.seed, args.workers)
        return os.EX_OK
    return _write_clip(args)


def _refuse_what_is_drawn(args: argparse.Namespace) -> None:
    """Pens of many pictures are drawn by lot: an option that fixes one would be ignored."""
    for option in (*CLIP, "light", "crowding", "herd_seed"):
        if getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise ExportUsageError(
                f"--{name} is of a clip; in pictures, sequences and sheets a lot decides: leave it out"
            )


def _write_clip(args: argparse.Namespace) -> int:
    from barnsight_export.simbarn.clip import clip_scene, write_clip

    scene = clip_scene(
        args.seed, species=args.species, animals=args.animals, split=args.split, width=args.width, height=args.height,
        light=args.light, crowding=args.crowding, view=args.view, herd_seed=args.herd_seed, day=args.day,
    )  # fmt: skip
    frames = write_clip(scene, args.out, seconds=args.seconds, fps=args.fps, seed=args.seed, workers=args.workers)
    print(f"{args.out}: {frames} frames, {args.animals} animals, {scene.layout} pen on {scene.floor_family}")
    return os.EX_OK


def _write_sheet(path: Path, seed: int) -> None:
    """Pictures of all splits; every second one with the outlines of its masks."""
    import cv2
    import numpy as np

    from barnsight_export.datasets.simulated import pictures
    from barnsight_export.simbarn.clip import contact_sheet

    tiles = []
    for split in ("train", "val", "test"):
        for shard in range(SHEET_ROWS * SHEET_COLUMNS // 3):
            image, ids, _, _ = next(pictures(split, seed, shard, 1, 2 * SHEET_TILE_PX, {"pig": 0.7, "cow": 0.3}))
            if shard % 2:
                rim = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
                image[rim] = (60, 255, 90)
            tile = cv2.resize(image, (SHEET_TILE_PX, SHEET_TILE_PX), interpolation=cv2.INTER_AREA)
            tiles.append(np.asarray(tile, np.uint8))
    sheet = contact_sheet(tiles, SHEET_COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85]):
        raise OutputError(f"{path}: the picture cannot be written; name a .jpg or .png file")
