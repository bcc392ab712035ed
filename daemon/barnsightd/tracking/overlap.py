"""One pixel, one animal: which of two overlapping tracks to believe (SAM 3, steps 6 and 7 of its video loop)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def doubles(iou: NDArray[np.float32], occluded_ns: NDArray[np.int64], *, minimum: float) -> NDArray[np.bool_]:
    """Which tracks stand on another's place: of a pair at IoU `minimum`, the more recently occluded one.

    `iou` is (N, N) between the tracks' masks, `occluded_ns` (N,) when each was last hidden. Tracks come in the
    order of their birth; between equals the younger one yields. Returns (N,) bool.
    """
    suppressed = np.zeros(len(iou), np.bool_)
    for older, younger in np.argwhere(np.triu(iou >= minimum, k=1)):
        if not (suppressed[older] or suppressed[younger]):
            suppressed[older if occluded_ns[older] > occluded_ns[younger] else younger] = True
    return suppressed


def claim_pixels(mask_logits: NDArray[np.float32], detected: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give each pixel to the track that claims it most strongly.

    `mask_logits` is (N, h, w); `detected` is (N,): what is seen outranks what is merely expected. Returns the
    logits (N, h, w), negative where another track won.
    """
    if len(mask_logits) == 0:
        return mask_logits
    claims = np.where(detected[:, None, None], mask_logits, mask_logits - mask_logits.max() - 1)
    claims = np.where(mask_logits > 0, claims, -np.inf)
    winner = claims.argmax(axis=0)  # (N, h, w) -> (h, w)
    won = winner == np.arange(len(mask_logits))[:, None, None]
    return np.where(won, mask_logits, -np.abs(mask_logits))
