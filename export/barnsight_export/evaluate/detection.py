"""How well animals were found on single pictures: COCO's average precision, recall and false positives.

Shapes are COCO run-length masks, or boxes [left, top, width, height] in pixels; what is found on an animal that the
truth ignores counts neither way. AP is COCOeval's (Lin et al. 2014), over all sizes of animals together.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MATCH_IOU = 0.5
COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
KEPT_SCORE = 0.02  # what scores less moves no AP


@dataclass(frozen=True, slots=True)
class Judged:
    """One picture of `size` (height, width) px: what is there, which of it is ignored, what was found, best first."""

    size: tuple[int, int]
    truth: list[Any]
    ignored: NDArray[np.bool_]
    found: list[Any]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """Figures over all pictures. `ap` is the mean over IoU .50 to .95, all rates are percentages.

    Recall, precision and false positives hold at IoU 0.5, from some score on.
    """

    ap: float
    ap50: float
    ap75: float
    recall: float
    precision: float
    false_positives: int
    animals: int
    pictures: int

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name, in the order of reports."""
        return asdict(self)


def evaluate(judged: Sequence[Judged], least_score: float) -> DetectionScores:
    """All figures; `least_score` is the score from which on the daemon believes a detection."""
    precisions = average_precisions(judged, COCO_IOUS)
    animals, hits, extra = count(judged, least_score)
    return DetectionScores(
        ap=100 * float(np.mean(precisions)),
        ap50=100 * precisions[COCO_IOUS.index(0.5)],
        ap75=100 * precisions[COCO_IOUS.index(0.75)],
        recall=100 * hits / max(1, animals),
        precision=100 * hits / max(1, hits + extra),
        false_positives=extra,
        animals=animals,
        pictures=len(judged),
    )


def count(judged: Sequence[Judged], least_score: float) -> tuple[int, int, int]:
    """Animals, animals found and false positives over all pictures."""
    counts = [_matches(picture, least_score) for picture in judged]
    animals = sum(int((~picture.ignored).sum()) for picture in judged)
    return animals, sum(hits for hits, _ in counts), sum(extra for _, extra in counts)


def average_precisions(judged: Sequence[Judged], ious: Sequence[float]) -> list[float]:
    """AP at each of `ious`; 0 where there is nothing to find or nothing was found."""
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for number, picture in enumerate(judged):
        for shape, ignored in zip(picture.truth, picture.ignored, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": int(ignored)}
            annotations.append(entry | _shape_fields(shape))
        for shape, score in zip(picture.found, picture.scores, strict=True):
            predictions.append({"image_id": number, "category_id": 1, "score": float(score)} | _shape_fields(shape))
    if not annotations or not predictions:
        return [0.0] * len(ious)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [
                {"id": number, "height": picture.size[0], "width": picture.size[1]}
                for number, picture in enumerate(judged)
            ],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "animal"}],
        }
        truth.createIndex()
        on_masks = "segmentation" in predictions[0]
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm" if on_masks else "bbox")
        evaluation.params.iouThrs = np.array(ious)
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # (T, R)
    return [float(np.maximum(row, 0).mean()) for row in precision]


def _shape_fields(shape: Any) -> dict[str, Any]:
    """A shape and its area in px, as COCO keeps them: masks are dictionaries."""
    if isinstance(shape, dict):
        return {"segmentation": shape, "area": float(coco.area(shape))}
    return {"bbox": shape, "area": float(shape[2] * shape[3])}


def _matches(picture: Judged, least_score: float) -> tuple[int, int]:
    """Animals found and false positives, greedily by score; what lies on an ignored animal counts as neither."""
    sure = [shape for shape, score in zip(picture.found, picture.scores, strict=True) if score >= least_score]
    if not picture.truth or not sure:
        return 0, len(sure)
    iou = np.asarray(coco.iou(sure, picture.truth, picture.ignored.astype(int).tolist()))
    hits = extra = 0
    free = ~picture.ignored
    for row in iou:
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= MATCH_IOU:
            free[best] = False
            hits += 1
        elif not (row[picture.ignored] >= MATCH_IOU).any():
            extra += 1
    return hits, extra
