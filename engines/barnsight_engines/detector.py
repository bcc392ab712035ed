"""The open-vocabulary detector: features and one concept in, every animal of it out, as boxes and masks.

After SAM 3 (Carion et al. 2025): a query's score is σ(logit) σ(presence), where presence says whether the concept
is in the picture at all. Duplicates are found on masks: animals that lie side by side do not overlap although
their boxes do. Boxes are those of the box head, which places an edge within a fraction of a cell, while the mask
grid is as coarse as 16 pixels of a 1280 x 720 frame. But of an animal that another one half hides, the box head
guesses what cannot be seen: there the mask says where the box ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.encoder import Features
from barnsight_engines.errors import EngineError, ModelSetMismatchError
from barnsight_engines.manifest import Thresholds
from barnsight_engines.masks import areas, intersections, tight_boxes
from barnsight_engines.preprocess import boxes_to_image

BOX_MARGIN = 0.05  # of the box's sides
MASK_MARGIN = 0.12  # of the sides of the mask's own box, and half a cell of the grid on top


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector found on one frame; N may be 0.

    `boxes_px` is (N, 4) float32 xyxy in pixels of the frame. `scores` is (N,) float32 in 0..1, descending.
    `mask_logits` is (N, h, w) float32 on the mask grid, which covers the whole frame; above 0 is animal.
    `image_size` is the frame's (height, width) in pixels.
    """

    boxes_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, image_size: tuple[int, int], mask_size: tuple[int, int]) -> Detections:
        """A frame without animals; the mask grid is kept so that arrays still concatenate."""
        return cls(
            boxes_px=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            mask_logits=np.zeros((0, *mask_size), np.float32),
            image_size=image_size,
        )


class Detector:
    """Infer and decode. `concepts` maps a name to its embedding (1, T, C) float32."""

    def __init__(self, backend: Backend, concepts: Mapping[str, NDArray[np.float32]], thresholds: Thresholds) -> None:
        self.backend = backend
        self._concepts = concepts
        self._thresholds = thresholds

    def concept(self, name: str) -> NDArray[np.float32]:
        """The prompt embedding (1, T, C) of a concept; raises ModelSetMismatchError for one it was not made for."""
        if name not in self._concepts:
            known = ", ".join(sorted(self._concepts))
            raise ModelSetMismatchError(f"the detector knows no concept '{name}'; choose one of: {known}")
        return self._concepts[name]

    def detect(
        self,
        features: Features,
        image_size: tuple[int, int],
        concept: str,
        *,
        min_score: float | None = None,
    ) -> Detections:
        """Every animal of `concept`, best first. `image_size` is the frame's (height, width) in pixels.

        `min_score` takes the place of the model set's own threshold. Raises ModelSetMismatchError for an unknown
        concept, EngineError where the engine fails.
        """
        given = {**features, "text": self.concept(concept)}
        # an encoder that serves a tracker too has maps that the detector does not read
        outputs = self.backend.run({spec.name: given[spec.name] for spec in self.backend.spec.inputs})
        least = self._thresholds.score if min_score is None else min_score
        return decode(outputs, image_size, self._thresholds, least)


def decode(
    outputs: Mapping[str, NDArray[Any]],
    image_size: tuple[int, int],
    thresholds: Thresholds,
    min_score: float,
) -> Detections:
    """The detector's raw outputs as detections: score, cut, order, drop empty masks and duplicates.

    A mask ends at its own box, give or take `BOX_MARGIN`: what it covers beyond is another animal of the same coat.
    Then the box ends at that mask, give or take `MASK_MARGIN`.

    `outputs` are boxes (1, K, 4) xyxy in 0..1, logits (1, K), presence (1, 1) and masks (1, K, h, w) logits.
    Raises EngineError where a box or a score is not a number.
    """
    for name in ("boxes", "logits", "presence"):
        if np.isnan(outputs[name]).any():
            raise EngineError(f"engine 'detector': output '{name}' is not a number; export the model set again")
    scores = _sigmoid(outputs["logits"][0]) * _sigmoid(outputs["presence"][0])  # (K,)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score]
    boxes = outputs["boxes"][0, order]  # (K, 4) -> (N, 4)
    logits = within_boxes(outputs["masks"][0, order], boxes)  # (K, h, w) -> (N, h, w)
    masks = logits > 0
    visible = np.flatnonzero(masks.any(axis=(1, 2)))
    kept = visible[distinct(masks[visible], thresholds.nms_iou, thresholds.containment)]
    return Detections(
        boxes_px=boxes_to_image(near_masks(boxes[kept], masks[kept]), image_size),
        scores=scores[order[kept]],
        mask_logits=logits[kept],
        image_size=image_size,
    )


def within_boxes(mask_logits: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mask logits (N, h, w), made background outside each one's own box (N, 4), xyxy in 0..1, and a margin."""
    height, width = mask_logits.shape[1:]
    margin = BOX_MARGIN * (boxes[:, 2:] - boxes[:, :2])  # (N, 2)
    (x0, y0), (x1, y1) = (boxes[:, :2] - margin).T[..., None], (boxes[:, 2:] + margin).T[..., None]  # (N, 1) each
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    inside = ((y >= y0) & (y <= y1))[:, :, None] & ((x >= x0) & (x <= x1))[:, None, :]  # (N, h, w)
    return np.where(inside, mask_logits, -np.abs(mask_logits))


def near_masks(boxes: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Boxes (N, 4), xyxy in 0..1, whose edges are brought near to those of their masks (N, h, w), none of it empty."""
    height, width = masks.shape[1:]
    cells = np.array([width, height, width, height], np.float32)
    seen = tight_boxes(masks)  # (N, 4) in cells
    sides = np.tile(seen[:, 2:] - seen[:, :2], 2)
    margin = MASK_MARGIN * sides + 0.5
    return np.clip(boxes, (seen - margin) / cells, (seen + margin) / cells)


def distinct(masks: NDArray[np.bool_], iou: float, containment: float) -> list[int]:
    """Indices of the masks (N, h, w), best first, that repeat no better one.

    A mask repeats a better one where their IoU exceeds `iou`, or where the share `containment` of it lies inside
    a better and bigger one (a head found again as an animal of its own).
    """
    shared = intersections(masks, masks)  # (N, N)
    area = areas(masks)
    overlap = shared / np.maximum(area[:, None] + area[None, :] - shared, 1)
    inside = shared / np.maximum(area[None, :], 1)  # [i, j]: share of j inside i
    repeats = (overlap > iou) | ((inside >= containment) & (area[:, None] > area[None, :]))
    kept: list[int] = []
    for j in range(len(masks)):
        if not repeats[kept, j].any():
            kept.append(j)
    return kept


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    # by tanh, which does not overflow
    share: NDArray[np.float32] = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return share
