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
    contested = np.count_nonzero(mask_logits > 0, axis=0) > 1  # (h, w)
    claims = mask_logits[:, contested]  # (N, K): few pixels are claimed twice
    if claims.size == 0:
        return mask_logits
    rank = np.where(detected[:, None], claims, claims - claims.max() - 1)
    winner = np.where(claims > 0, rank, -np.inf).argmax(axis=0)  # (K,)
    won = winner == np.arange(len(claims))[:, None]
    claimed: NDArray[np.float32] = mask_logits.copy()
    claimed[:, contested] = np.where(won, claims, -np.abs(claims))
    return claimed
