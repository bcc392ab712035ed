"""How well a detector finds and outlines animals on pictures: mask AP (COCO's), recall and false positives.

Predictions are what the daemon would see: score = σ(logit)·σ(presence), mask NMS at IoU 0.5, masks enlarged to the
picture. AP is COCOeval's at IoU 0.5 and 0.75; recall and false positives are counted at score 0.5 and IoU 0.5.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F

from barnsight_export.networks.sam3 import Detection, Sam3
from barnsight_export.networks.student import normalize
from barnsight_export.train.samples import TARGET, Pictures, find_targets

_KEPT_SCORE = 0.02
_SURE_SCORE = 0.5
_SAME_ANIMAL_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Score:
    """What a detector reaches on a split."""

    ap50: float
    ap75: float
    recall: float
    false_positives: float  # per picture


@dataclass(frozen=True, slots=True)
class _Found:
    masks: list[Any]  # COCO RLE, best first
    scores: NDArray[np.float64]


@torch.no_grad()
def validate(model: Sam3, pictures: Pictures, size_px: int, limit: int) -> Score:
    """Score `model` on the first `limit` pictures at `size_px`, each prompted with its own species."""
    was_training = model.training
    model.eval()
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    animals = hits = false_positives = 0
    count = min(limit, len(pictures))
    for number in range(count):
        picture = pictures[number]
        image = cv2.resize(picture.image, (size_px, size_px), interpolation=cv2.INTER_AREA)
        ids = np.asarray(cv2.resize(picture.ids, (size_px, size_px), interpolation=cv2.INTER_NEAREST), np.uint8)
        targets = find_targets(ids, picture.visible_fraction)
        present = [k for k in np.unique(ids) if k]
        truth = rle.encode(np.asfortranarray((ids[..., None] == present).astype(np.uint8))) if present else []
        ignored = targets.kinds != TARGET

        detection = model(normalize(torch.from_numpy(image)[None]), torch.tensor([picture.concept or 0]))
        found = _decode(detection, size_px)
        for mask, skip in zip(truth, ignored, strict=True):
            annotations.append(_annotation(len(annotations) + 1, number, mask, iscrowd=int(skip)))
        for mask, score in zip(found.masks, found.scores, strict=True):
            predictions.append({"image_id": number, "category_id": 1, "segmentation": mask, "score": float(score)})
        hit, extra = _count(found, truth, ignored)
        animals += int((~ignored).sum())
        hits += hit
        false_positives += extra
    model.train(was_training)
    ap50, ap75 = _average_precision(annotations, predictions, count, size_px)
    return Score(ap50, ap75, hits / max(1, animals), false_positives / max(1, count))


def _decode(detection: Detection, size_px: int) -> _Found:
    """Masks at the picture's size, best first, after mask NMS."""
    scores = (detection.logits.sigmoid() * detection.presence.sigmoid())[0].double().numpy()
    kept = np.flatnonzero(scores >= _KEPT_SCORE)
    if not len(kept):
        return _Found([], np.zeros(0))
    logits = F.interpolate(detection.masks[:, kept], (size_px, size_px), mode="bilinear", align_corners=False)
    masks = rle.encode(np.asfortranarray((logits[0] > 0).permute(1, 2, 0).numpy().astype(np.uint8)))
    iou = np.asarray(rle.iou(masks, masks, [0] * len(masks)))
    chosen: list[int] = []
    for index in range(len(masks)):  # topk left them in descending order
        if all(iou[index, other] < _SAME_ANIMAL_IOU for other in chosen):
            chosen.append(index)
    return _Found([masks[i] for i in chosen], scores[kept[chosen]])


def _count(found: _Found, truth: list[Any], ignored: NDArray[np.bool_]) -> tuple[int, int]:
    """Animals found and false positives, greedily by score; what lies on an ignored animal counts as neither."""
    sure = [mask for mask, score in zip(found.masks, found.scores, strict=True) if score >= _SURE_SCORE]
    if not truth or not sure:
        return 0, len(sure)
    iou = np.asarray(rle.iou(sure, truth, ignored.astype(int).tolist()))
    hits = extra = 0
    free = ~ignored
    for row in iou:
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= _SAME_ANIMAL_IOU:
            free[best] = False
            hits += 1
        elif not (row[ignored] >= _SAME_ANIMAL_IOU).any():
            extra += 1
    return hits, extra


def _annotation(identifier: int, image: int, mask: Any, *, iscrowd: int) -> dict[str, Any]:
    return {
        "id": identifier,
        "image_id": image,
        "category_id": 1,
        "segmentation": mask,
        "area": float(rle.area(mask)),
        "bbox": rle.toBbox(mask).tolist(),
        "iscrowd": iscrowd,
    }


def _average_precision(
    annotations: list[dict[str, Any]], predictions: list[dict[str, Any]], images: int, size_px: int
) -> tuple[float, float]:
    if not annotations or not predictions:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number, "height": size_px, "width": size_px} for number in range(images)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "animal"}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.params.iouThrs = np.array([0.5, 0.75])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # (T, R)
    ap50, ap75 = (float(np.maximum(row, 0).mean()) for row in precision)
    return ap50, ap75
