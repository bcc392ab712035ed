"""Who is who from one frame to the next: one-to-one assignment in rounds, the surest evidence first.

The rounds follow BYTE (Zhang et al., ECCV 2022): strong detections are given out before weak ones, and weak ones
only continue tracks that exist. Within a round the Hungarian method maximizes the total affinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from barnsightd.tracking.motion import Motion, center_of, size_of

SMALLEST_REACH_SIZES = 0.75
LARGEST_REACH_SIZES = 2.0
LARGEST_AREA_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Round:
    """One round of an assignment: who takes part, how well they fit, and how well they must.

    `tracks` is (T,) bool, `detections` is (D,) bool, `affinity` is (T, D) with 0 for "never".
    """

    tracks: NDArray[np.bool_]
    detections: NDArray[np.bool_]
    affinity: NDArray[np.float64]
    minimum: float


def assign(rounds: Sequence[Round]) -> dict[int, int]:
    """Which detection each track gets, by index; what one round leaves free goes into the next."""
    matches: dict[int, int] = {}
    for round_ in rounds:
        tracks = [t for t in np.flatnonzero(round_.tracks).tolist() if t not in matches]
        taken = set(matches.values())
        detections = [d for d in np.flatnonzero(round_.detections).tolist() if d not in taken]
        fit = round_.affinity[np.ix_(tracks, detections)]
        fit = np.where(fit >= round_.minimum, fit, 0.0)
        for row, column in zip(*linear_sum_assignment(fit, maximize=True), strict=True):
            if fit[row, column] > 0:
                matches[tracks[row]] = detections[column]
    return matches


def box_iou(a_px: NDArray[np.float32], b_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of xyxy boxes: (N, 4), (M, 4) -> (N, M)."""
    a, b = a_px.astype(np.float64)[:, None], b_px.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (N, M, 2)
    common = np.clip(sides, 0, None).prod(axis=-1)
    area_a = np.clip(a[..., 2:] - a[..., :2], 0, None).prod(axis=-1)  # (N, 1)
    area_b = np.clip(b[..., 2:] - b[..., :2], 0, None).prod(axis=-1)  # (1, M)
    return np.asarray(common / np.maximum(area_a + area_b - common, 1e-9))


def motion_affinity(motions: Sequence[Motion], boxes_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """How well boxes (D, 4) fit where T >= 1 tracks may be by now: (T, D) in 0..1, by distance and size.

    1 is the predicted center at the same size; 0 is farther than three standard deviations, or more than
    `LARGEST_AREA_RATIO` times larger or smaller.
    """
    sizes_px = np.array([motion.size_px for motion in motions])
    reach_sizes = np.array([3 * motion.spread_sizes for motion in motions])
    reach_px = np.clip(reach_sizes, SMALLEST_REACH_SIZES, LARGEST_REACH_SIZES) * sizes_px  # (T,)
    offsets_px = center_of(boxes_px)[None] - np.stack([motion.center_px for motion in motions])[:, None]
    nearness = 1 - np.hypot(offsets_px[..., 0], offsets_px[..., 1]) / reach_px[:, None]  # (T, D)
    ratio = (size_of(boxes_px)[None] / sizes_px[:, None]) ** 2
    likeness = np.minimum(ratio, 1 / ratio)
    return np.where(likeness >= 1 / LARGEST_AREA_RATIO, np.maximum(nearness, 0) * likeness, 0.0)
