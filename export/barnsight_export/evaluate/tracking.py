"""How well animals were found and kept apart: CLEAR MOT, identity F1 and HOTA, on boxes or masks.

MOTA and MOTP (Bernardin and Stiefelhagen, 2008) and IDF1 (Ristani et al., 2016) at IoU 0.5, HOTA with its
detection and association parts (Luiten et al., 2021) averaged over IoU 0.05 to 0.95. TrackEval computes them all;
`docs/adr/0002-tracking-metrics.md` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from barnsight_export.datasets.mot import Mark, overlaps
from barnsight_export.errors import DataError, RequirementMissingError

MATCH_IOU = 0.5
# The names that papers and other tools use, in the order of reports.
FIGURES = {
    **{name: name.lower() for name in ("MOTA", "IDF1", "HOTA", "DetA", "AssA", "MOTP")},
    **{name: name for name in ("recall", "precision")},
    **{name: name.lower() for name in ("FP", "FN", "IDSW")},
    **{name: name for name in ("frames", "animals", "tracks", "objects", "predictions")},
}


@dataclass(frozen=True, slots=True)
class TrackingScores:
    """Figures of one sequence or of several: rates in percent, the rest counts.

    `objects` are the truth's boxes or masks, `predictions` the tracker's, both without ignored ones; MOTP is the
    mean IoU of matches.
    """

    mota: float
    idf1: float
    hota: float
    deta: float
    assa: float
    motp: float
    recall: float
    precision: float
    fp: int
    fn: int
    idsw: int
    frames: int
    animals: int
    tracks: int
    objects: int
    predictions: int

    def as_dict(self) -> dict[str, float | int]:
        """The figures under their published names, in the order of `FIGURES`."""
        return {name: getattr(self, field) for name, field in FIGURES.items()}


def evaluate(truth: Sequence[Mark], tracks: Sequence[Mark]) -> TrackingScores:
    """Compare one sequence's tracks with its truth; DataError where there is nothing to compare with."""
    if not any(not mark.ignored for mark in truth):
        raise DataError("the truth names no animal; give the file that holds the ground truth")
    return _scores(_sequence(truth, tracks))


def summarize(scores: Sequence[TrackingScores]) -> TrackingScores:
    """Several sequences in one row: rates are plain means over sequences, counts are sums."""
    columns = {field: [getattr(score, field) for score in scores] for field in FIGURES.values()}
    row = {
        field: sum(values) if isinstance(values[0], int) else sum(values) / len(values)
        for field, values in columns.items()
    }
    return TrackingScores(**row)


def _sequence(truth: Sequence[Mark], tracks: Sequence[Mark]) -> dict[str, Any]:
    """One sequence as TrackEval's metrics take it: ids from 0, and a similarity matrix per frame."""
    frames = sorted({mark.frame for mark in (*truth, *tracks)})
    truth_at, tracks_at = _by_frame(truth), _by_frame(tracks)
    truth_ids: list[list[int]] = []
    track_ids: list[list[int]] = []
    similarities: list[NDArray[np.float64]] = []
    for frame in frames:
        expected, found = truth_at.get(frame, []), tracks_at.get(frame, [])
        iou = overlaps(expected, found)
        rows = [row for row, mark in enumerate(expected) if not mark.ignored]
        excused = _excused(iou, expected)
        columns = [column for column in range(len(found)) if column not in excused]
        truth_ids.append([expected[row].track for row in rows])
        track_ids.append([found[column].track for column in columns])
        similarities.append(iou[np.ix_(rows, columns)])

    truth_number, track_number = _numbering(truth_ids), _numbering(track_ids)
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": len(truth_number),
        "num_tracker_ids": len(track_number),
        "num_gt_dets": sum(map(len, truth_ids)),
        "num_tracker_dets": sum(map(len, track_ids)),
        "gt_ids": [np.array([truth_number[i] for i in ids], np.int64) for ids in truth_ids],
        "tracker_ids": [np.array([track_number[i] for i in ids], np.int64) for ids in track_ids],
        "similarity_scores": similarities,
    }


def _excused(iou: NDArray[np.float64], expected: Sequence[Mark]) -> set[int]:
    """Predictions that are matched to an ignored animal, as MOT Challenge does: one-to-one, at IoU 0.5."""
    rows, columns = linear_sum_assignment(np.where(iou >= MATCH_IOU, iou, 0.0), maximize=True)
    return {
        column
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if expected[row].ignored and iou[row, column] >= MATCH_IOU
    }


def _scores(sequence: dict[str, Any]) -> TrackingScores:
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ModuleNotFoundError as error:
        raise RequirementMissingError(
            f"{error.name} is not installed; run: pip install tabulate && pip install --no-deps trackeval==1.3.0"
        ) from None
    options = {"THRESHOLD": MATCH_IOU, "PRINT_CONFIG": False}
    clear = CLEAR(options).eval_sequence(sequence)
    identity = Identity(options).eval_sequence(sequence)
    hota = HOTA().eval_sequence(sequence)
    return TrackingScores(
        mota=_percent(clear["MOTA"]),
        idf1=_percent(identity["IDF1"]),
        hota=_percent(hota["HOTA"]),
        deta=_percent(hota["DetA"]),
        assa=_percent(hota["AssA"]),
        motp=_percent(clear["MOTP"]),
        recall=_percent(clear["CLR_Re"]),
        precision=_percent(clear["CLR_Pr"]),
        fp=int(clear["CLR_FP"]),
        fn=int(clear["CLR_FN"]),
        idsw=int(clear["IDSW"]),
        frames=sequence["num_timesteps"],
        animals=sequence["num_gt_ids"],
        tracks=sequence["num_tracker_ids"],
        objects=sequence["num_gt_dets"],
        predictions=sequence["num_tracker_dets"],
    )


def _percent(rate: float | NDArray[np.float64]) -> float:
    """A rate in percent; HOTA's come as one per IoU threshold and are averaged."""
    return 100 * float(np.mean(rate))


def _by_frame(marks: Sequence[Mark]) -> dict[int, list[Mark]]:
    frames: dict[int, list[Mark]] = {}
    for mark in marks:
        frames.setdefault(mark.frame, []).append(mark)
    return frames


def _numbering(ids: Sequence[Sequence[int]]) -> dict[int, int]:
    return {track: number for number, track in enumerate(sorted({i for frame in ids for i in frame}))}
