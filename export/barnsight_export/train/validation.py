"""How well a detector finds and outlines animals on pictures: mask AP (COCO's), recall and false positives.

Predictions are what the daemon would see: score = σ(logit)·σ(presence), mask NMS at IoU 0.5, masks enlarged to the
picture. AP is COCOeval's at IoU 0.5 and 0.75; recall and false positives are counted at score 0.5 and IoU 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import nn
from torch.nn import functional as F

from barnsight_export.evaluate.detection import KEPT_SCORE, Judged, average_precisions, count
from barnsight_export.networks.sam3 import Detection, normalize
from barnsight_export.train.samples import TARGET, Pictures, find_targets, resized

_AS_GOOD = 0.015  # of F1; on validation clips tracking was best so far below the best score for single pictures
_SURE_SCORE = 0.5
_SAME_ANIMAL_IOU = 0.5
_UNDECIDED = (0.25, 0.75)


@dataclass(frozen=True, slots=True)
class Score:
    """What a detector reaches on a split."""

    ap50: float
    ap75: float
    recall: float
    false_positives: float  # per picture


def validate(model: nn.Module, pictures: Pictures, size: tuple[int, int], limit: int) -> Score:
    """Score `model` on the first `limit` pictures, each prompted with its own species.

    `size` is the (height, width) at which it sees them. `model` takes image and concept and gives a `Detection`.
    """
    judged = _judge(model, pictures, size, limit)
    animals, hits, extra = count(judged, _SURE_SCORE)
    ap50, ap75 = average_precisions(judged, (0.5, 0.75))
    return Score(ap50, ap75, hits / max(1, animals), extra / max(1, len(judged)))


def best_threshold(model: nn.Module, pictures: Pictures, size: tuple[int, int], limit: int) -> float:
    """The score from which on to trust a detection, by F1 on the first `limit` pictures.

    F1 is flat around its best value, so it is the lowest score of those that do nearly as well: a tracker soon forgets
    a false alarm, but never learns of an animal that it is not told of.
    """
    judged = _judge(model, pictures, size, limit)

    def f1(least_score: float) -> float:
        animals, hits, extra = count(judged, least_score)
        return 2 * hits / max(1, animals + hits + extra)

    scores = {least: f1(least) for least in (round(0.05 * step, 2) for step in range(2, 17))}
    best = max(scores.values())
    return min(least for least, score in scores.items() if score >= best - _AS_GOOD)


@torch.no_grad()
def golden_image(model: nn.Module, pictures: Pictures, size: tuple[int, int], limit: int) -> NDArray[np.float32]:
    """The one of the first `limit` pictures on which other runtimes are compared, normalized: (1, 3, h, w) of `size`.

    It is the one that animals fill most, of those on which `model` is decided: none of the better half of its scores,
    which a certificate judges, lies in `_UNDECIDED`, where little rounding moves them much. Where it never is, the one
    that animals fill most. Golden answers keep every fourth pixel of masks: of small animals so few are left that one
    of them is a verdict.
    """

    def filled(index: int) -> int:
        return int(np.count_nonzero(pictures[index].ids))

    def shown(index: int) -> NDArray[np.float32]:
        image, _ = resized(pictures[index].image, pictures[index].ids, size)
        return np.ascontiguousarray(normalize(torch.from_numpy(image)[None]).numpy())

    def decided(image: NDArray[np.float32]) -> bool:
        found = model(torch.from_numpy(image), torch.tensor([0]))
        scores = (found.logits.sigmoid() * found.presence.sigmoid())[0].sort(descending=True).values
        better = scores[: (len(scores) + 1) // 2]
        return not ((better > _UNDECIDED[0]) & (better < _UNDECIDED[1])).any()

    fullest = sorted(range(min(limit, len(pictures))), key=filled, reverse=True)
    for index in fullest:
        image = shown(index)
        if decided(image):
            return image
    return shown(fullest[0])


@torch.no_grad()
def _judge(model: nn.Module, pictures: Pictures, size: tuple[int, int], limit: int) -> list[Judged]:
    was_training = model.training
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    judged = []
    for number in range(min(limit, len(pictures))):
        picture = pictures[number]
        image, ids = resized(picture.image, picture.ids, size)
        present = [k for k in np.unique(ids) if k]
        truth = rle.encode(np.asfortranarray((ids[..., None] == present).astype(np.uint8))) if present else []
        ignored = find_targets(ids, picture.visible_fraction).kinds != TARGET
        given = normalize(torch.from_numpy(image)[None]), torch.tensor([picture.concept or 0])
        detection = Detection(*(value.cpu() for value in model(*(value.to(device) for value in given))))
        judged.append(Judged(size, truth, ignored, *_decode(detection, size)))
    model.train(was_training)
    return judged


def _decode(detection: Detection, size: tuple[int, int]) -> tuple[list[Any], NDArray[np.float64]]:
    """Masks at the picture's size, best first, after mask NMS, and their scores."""
    scores = (detection.logits.sigmoid() * detection.presence.sigmoid())[0].double().numpy()
    kept = np.flatnonzero(scores >= KEPT_SCORE)
    if not len(kept):
        return [], np.zeros(0)
    logits = F.interpolate(detection.masks[:, kept], size, mode="bilinear", align_corners=False)
    masks = rle.encode(np.asfortranarray((logits[0] > 0).permute(1, 2, 0).numpy().astype(np.uint8)))
    iou = np.asarray(rle.iou(masks, masks, [0] * len(masks)))
    chosen: list[int] = []
    for index in range(len(masks)):  # topk left them in descending order
        if all(iou[index, other] < _SAME_ANIMAL_IOU for other in chosen):
            chosen.append(index)
    return [masks[i] for i in chosen], scores[kept[chosen]]
