"""The options `--data`, `--format` and `--frames`: where a command takes unlabeled frames from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from barnsight_export.errors import DataMissingError

if TYPE_CHECKING:
    from barnsight_export.datasets.frames import Frames


def add_frames_options(group: argparse._ArgumentGroup, *, required: bool, frames_each: int) -> None:
    """Register the options; `frames_each` is how many frames a video gives by default."""
    group.add_argument(
        "--data", type=Path, required=required, metavar="DIR", help="folder of videos, clips or pictures"
    )
    group.add_argument(
        "--format",
        choices=("videos", "edinburgh", "simulated"),
        default="videos",
        help="any videos; the Edinburgh pig clips by the authors' split; pictures of `simulate --pictures`",
    )
    group.add_argument(
        "--frames",
        type=int,
        default=frames_each,
        help=f"frames taken from each video, evenly (default {frames_each})",
    )


def open_frames(kind: str, folder: Path, frames_each: int) -> tuple[Frames, Frames]:
    """Frames to train on and frames to validate with; says on stderr which videos it leaves out.

    Raises DataMissingError where there is nothing, DataError where nothing can be read.
    """
    from barnsight_export.datasets.edinburgh import SPLIT, find_clips, labeled_frames
    from barnsight_export.datasets.videos import find_videos, split_videos

    if kind == "edinburgh":
        train, validation = (
            labeled_frames(find_clips(folder, SPLIT[split]), frames_each) for split in ("train", "val")
        )
        return train, validation
    if kind == "simulated":
        return _pictures(folder / "train"), _pictures(folder / "val")
    found = find_videos(folder, frames_each)
    if found.broken:
        names = ", ".join(str(path.relative_to(folder)) for path in found.broken)
        total = len(found.videos) + len(found.broken)
        print(f"{folder}: left out {len(found.broken)} of {total} videos, broken: {names}", file=sys.stderr)
    return split_videos(found.videos)


def _pictures(folder: Path) -> Frames:
    from barnsight_export.datasets.frames import Images
    from barnsight_export.datasets.simulated import Pictures

    try:
        return Images(Pictures(folder))
    except FileNotFoundError as error:
        raise DataMissingError(f"{error} (barnsight-export simulate --pictures does)") from None
