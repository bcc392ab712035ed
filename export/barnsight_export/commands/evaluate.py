"""`barnsight-export evaluate`: judge what the daemon wrote, or what a model set finds, against the truth.

    barnsight-export evaluate tracking --truth gt.txt --tracks tracks.txt
    barnsight-export evaluate tracking --masks --truth masks.jsonl --tracks out/masks.jsonl --json
    barnsight-export evaluate detection --models engines/nano --pictures DIR --truth labels.json

Repeat --truth and --tracks for several sequences; the last row is then their mean.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barnsight_export.errors import DataError, ExportUsageError

if TYPE_CHECKING:
    from barnsight_engines.loader import ModelSet
    from barnsight_export.datasets.coco import LabeledPicture
    from barnsight_export.evaluate.detection import Judged
    from barnsight_export.evaluate.tracking import TrackingScores


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    evaluate = subparsers.add_parser("evaluate", help="judge tracks or detections against the truth")
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
    detection = tasks.add_parser(
        "detection",
        help="COCO's AP, recall and false positives of a model set on labeled pictures",
        description="Let a model set look at labeled pictures, each by itself. Rates are percentages.",
    )
    detection.add_argument("--models", type=Path, required=True, metavar="DIR", help="model set to judge")
    detection.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    detection.add_argument("--truth", type=Path, required=True, metavar="FILE", help="COCO instances JSON")
    detection.add_argument("--concept", default="pig", help="what is looked for (default pig)")
    detection.add_argument("--masks", action="store_true", help="compare masks instead of boxes")
    detection.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Judge what was asked for and print the figures."""
    return _run_detection(args) if args.task == "detection" else _run_tracking(args)


def _run_detection(args: argparse.Namespace) -> int:
    from barnsight_engines.loader import load_model_set
    from barnsight_export.datasets.coco import read_labels
    from barnsight_export.evaluate.detection import evaluate

    labels = read_labels(args.truth, args.pictures, masks=args.masks)
    if not any(not ignored for picture in labels for ignored in picture.ignored):
        raise DataError(f"{args.truth}: names no animal; give the file that holds the ground truth")
    with load_model_set(args.models) as models:
        judged = [_look(models, picture, args.concept, masks=args.masks) for picture in labels]
        believed = models.manifest.thresholds.score
    scores = evaluate(judged, believed)
    shapes = "masks" if args.masks else "boxes"
    if args.json:
        about = {"unit": "percent", "shapes": shapes, "score": believed, "model_set": models.hash}
        print(json.dumps({**about, **scores.as_dict()}))
        return os.EX_OK
    print(_table([(str(args.truth), scores.as_dict())]))
    print(f"on {shapes}; recall, precision and false positives at IoU 0.5, from the set's own score of {believed:g} on")
    return os.EX_OK


def _look(models: ModelSet, picture: LabeledPicture, concept: str, *, masks: bool) -> Judged:
    """What the model set finds on one picture, beside what is there."""
    import cv2
    import numpy as np
    from pycocotools import mask as coco

    from barnsight_engines.masks import to_image
    from barnsight_export.evaluate.detection import KEPT_SCORE, Judged

    image = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{picture.path}: is not a picture that can be read; replace it")
    if image.shape[:2] != picture.size:
        (height, width), (expected_height, expected_width) = image.shape[:2], picture.size
        raise DataError(f"{picture.path}: is {width}x{height}, its labels say {expected_width}x{expected_height}")
    features = models.encoder.encode(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))
    found = models.detector.detect(features, picture.size, concept, min_score=KEPT_SCORE)
    if masks:
        whole = (to_image(logits, picture.size) for logits in found.mask_logits)
        shapes = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in whole]
    else:
        corners = found.boxes_px.astype(float)
        shapes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    ignored = np.array(picture.ignored, bool)
    return Judged(picture.size, picture.shapes, ignored, shapes, found.scores.astype(np.float64))


def _run_tracking(args: argparse.Namespace) -> int:
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
    rows: list[tuple[str, Mapping[str, float | int]]]
    rows = [(str(tracks), score.as_dict()) for (_, tracks), score in zip(pairs, scores, strict=True)]
    print(_table(rows if len(rows) == 1 else [*rows, ("mean (counts: sum)", mean.as_dict())]))
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


def _table(rows: list[tuple[str, Mapping[str, float | int]]]) -> str:
    """Files down, figures across, right-aligned."""
    header = ["", *rows[0][1]]
    lines = [header] + [
        [name, *(f"{v:.1f}" if isinstance(v, float) else str(v) for v in figures.values())] for name, figures in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
