"""What a track's mask is expected to be on this frame, before the detections are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from barnsightd.tracking.lifecycle import Target

OUTSIDE_LOGIT = -10.0

Features = Mapping[str, NDArray[np.float32]]


class Propagator(Protocol):
    """Carries masks from the last frame to this one."""

    def propagate(
        self, targets: Sequence[Target], features: Features | None, image_size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Mask logits (N, h, w) of N >= 1 targets, whose motion has been predicted, on this frame.

        `features` are the encoder's of this frame; a propagator that does not look at the picture needs none.
        """
        ...


class MotionPropagator:
    """The last mask that was seen, moved by whole grid cells to where the motion filter expects the animal."""

    def propagate(
        self,
        targets: Sequence[Target],
        features: Features | None,  # noqa: ARG002 - motion does not look at the picture
        image_size: tuple[int, int],
    ) -> NDArray[np.float32]:
        """See `Propagator.propagate`."""
        return np.stack([self._moved(target, image_size) for target in targets])

    @staticmethod
    def _moved(target: Target, image_size: tuple[int, int]) -> NDArray[np.float32]:
        mask_size = target.seen_mask_logits.shape
        right, down = target.moved_px
        return shifted(
            target.seen_mask_logits,
            rows=round(down * mask_size[0] / image_size[0]),
            columns=round(right * mask_size[1] / image_size[1]),
        )


def shifted(logits: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """(h, w) logits moved down by `rows` and right by `columns`; what comes in from outside is background."""
    moved = np.full_like(logits, OUTSIDE_LOGIT)
    h, w = logits.shape
    if abs(rows) < h and abs(columns) < w:
        moved[max(rows, 0) : h + min(rows, 0), max(columns, 0) : w + min(columns, 0)] = logits[
            max(-rows, 0) : h + min(-rows, 0), max(-columns, 0) : w + min(-columns, 0)
        ]
    return moved
