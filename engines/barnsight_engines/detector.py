"""The open-vocabulary detector: one concept in, every animal of it out, as boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
