"""`barnsight-export evaluate`: judge what the daemon wrote against the truth.

    barnsight-export evaluate tracking --truth gt.txt --tracks tracks.txt
    barnsight-export evaluate tracking --masks --truth masks.jsonl --tracks out/masks.jsonl --json

Repeat --truth and --tracks for several sequences; the last row is then their mean.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barnsight_export.errors import DataError, ExportUsageError

if TYPE_CHECKING:
    from barnsight_export.evaluate.tracking import TrackingScores


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    evaluate = subparsers.add_parser("evaluate", help="judge tracks against the truth")
    tasks = evaluate.add_subparsers(dest="task", required=True, metavar="TASK")
    tracking = tasks.add_parser(
        "tracking",
        help="MOTA, IDF1 and HOTA of tracks, on boxes or masks",
        description="Compare tracks with the truth. Rates are percentages; counts of several pairs are summed.",
    )
    tracking.add_argument("--truth", type=Path, action="append", required=True, metavar="FILE")
    tracking.add_argument("--tracks", type=Path, action="append", required=True, metavar="FILE")
    tracking.add_argument("--masks", action="store_true", help="files are masks.jsonl; IoU is that of masks")
    tracking.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Evaluate each pair of files and print the figures."""
    from barnsight_export.evaluate.tracking import summarize

    if len(args.truth) != len(args.tracks):
        raise ExportUsageError(f"got {len(args.truth)} --truth and {len(args.tracks)} --tracks; give them in pairs")
    pairs = list(zip(args.truth, args.tracks, strict=True))
    scores = [_judge(truth, tracks, masks=args.masks) for truth, tracks in pairs]
    mean = summarize(scores)
    if args.json:
        sequences = [
            {"truth_file": str(truth), "tracks_file": str(tracks), **score.as_dict()}
            for (truth, tracks), score in zip(pairs, scores, strict=True)
        ]
        print(json.dumps({"unit": "percent", **mean.as_dict(), "sequences": sequences}))
        return os.EX_OK
    rows = [(str(tracks), score) for (_, tracks), score in zip(pairs, scores, strict=True)]
    print(_table(rows if len(rows) == 1 else [*rows, ("mean (counts: sum)", mean)]))
    return os.EX_OK


def _judge(truth: Path, tracks: Path, *, masks: bool) -> TrackingScores:
    from barnsight_export.datasets.mot import read_boxes, read_masks
    from barnsight_export.evaluate.tracking import evaluate

    read = read_masks if masks else read_boxes
    expected, found = read(truth), read(tracks)
    try:
        return evaluate(expected, found)
    except DataError as error:
        raise DataError(f"{truth}: {error}") from None


def _table(rows: list[tuple[str, TrackingScores]]) -> str:
    """Sequences down, figures across, right-aligned."""
    header = ["", *rows[0][1].as_dict()]
    lines = [header] + [
        [name, *(f"{v:.1f}" if isinstance(v, float) else str(v) for v in score.as_dict().values())]
        for name, score in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
