"""How a track's mask comes to this frame without a detection: by its motion, or by what is remembered of the animal.

Motion costs next to nothing and does not look at the picture. Memory is SAM 3's tracker (Carion et al. 2025,
arXiv:2511.16719): the frame's features meet each animal's memories, and a mask comes out, or the animal is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.encoder import Features
from barnsight_engines.masks import box_px, without_specks
from barnsight_engines.propagator import MemoryTracker, certain
from barnsightd.tracking.lifecycle import Target, TrackingSettings
from barnsightd.tracking.memory import MemoryBank
from barnsightd.types import TrackSource

OUTSIDE_LOGIT = -10.0
SPECK_SHARE = 16 / 288**2  # of the mask's pixels: SAM 3 cleans up to 16 at 288 x 288


def carried(target: Target, image_size: tuple[int, int]) -> NDArray[np.float32]:
    """The last mask that was seen, moved by whole grid cells to where the motion filter expects the animal."""
    height, width = target.seen_mask_logits.shape
    right, down = target.moved_px
    return shifted(
        target.seen_mask_logits,
        rows=round(down * height / image_size[0]),
        columns=round(right * width / image_size[1]),
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


def make_bank(tracker: MemoryTracker, settings: TrackingSettings) -> MemoryBank:
    """A session's memory for a tracker; raises ValueError where it cannot do with `settings.memory_slots`."""
    return MemoryBank(
        settings.max_objects,
        tracker.positions,
        tracker.layout,
        slots=settings.memory_slots,
        batch=min(tracker.largest_batch, settings.max_objects),
    )


class MemoryPropagator:
    """Finds the animals of one session by what is remembered of them, and remembers what was seen.

    Everything is reserved when it is made; `size_bytes` never changes.
    """

    def __init__(self, tracker: MemoryTracker, settings: TrackingSettings) -> None:
        """Reserve everything; raises ValueError where the tracker cannot do with `settings.memory_slots`."""
        self._tracker = tracker
        self._bank = make_bank(tracker, settings)
        self._bank.reserve()
        self._frame = -1
        self._pointers: dict[int, NDArray[np.float32]] = {}  # of this frame, by slot

    @property
    def size_bytes(self) -> int:
        """What is reserved for memories."""
        return self._bank.size_bytes

    def begin_frame(self, number: int) -> None:
        """Turn to the frame that nominally has this number; two frames never share one, so that ages count up."""
        self._frame = max(number, self._frame + 1)
        self._pointers.clear()

    def seek(self, targets: Sequence[Target], features: Features, image_size: tuple[int, int]) -> None:
        """Look for the animals on the frame of `features`; each target learns whether it was found, and where.

        Raises EngineError.
        """
        for first in range(0, len(targets), self._bank.batch):
            group = targets[first : first + self._bank.batch]
            seen = self._tracker.segment(features, self._bank.recall([t.slot for t in group], self._frame))
            for target, logits, pointer, presence in zip(
                group, seen.mask_logits, seen.pointers, seen.presence, strict=True
            ):
                self._pointers[target.slot] = pointer
                mask_logits = without_specks(logits, round(SPECK_SHARE * logits.size))
                if presence > 0 and (mask_logits > 0).any():
                    target.recall(box_px(mask_logits, image_size), mask_logits)
                else:
                    target.lose_sight()

    def remember(self, targets: Sequence[Target], features: Features) -> None:
        """Remember this frame of the targets that were detected or sought on it. Raises EngineError."""
        evident = [target for target in targets if target.sought or target.source is TrackSource.DETECTED]
        if not evident:
            return
        masks = np.stack([self._as_remembered(target) for target in evident])
        presence = np.array([1.0 if _is_there(target) else -1.0 for target in evident], np.float32)
        memories = self._tracker.memorize(features, masks, presence)
        slots = np.array([target.slot for target in evident])
        is_certain = np.array([target.certain for target in evident])
        pointed = np.array([target.slot in self._pointers for target in evident]) & ~is_certain
        bare = ~is_certain & ~pointed
        if is_certain.any():
            pointers = self._tracker.point_at(features, masks[is_certain])
            self._bank.condition(slots[is_certain].tolist(), self._frame, memories[is_certain], pointers)
        if pointed.any():
            known = slots[pointed].tolist()
            pointers = np.stack([self._pointers[slot] for slot in known])
            self._bank.remember(known, self._frame, memories[pointed], pointers)
        if bare.any():  # a detection explained it, so memory did not look and has no pointer
            self._bank.remember(slots[bare].tolist(), self._frame, memories[bare])

    def forget(self, target: Target) -> None:
        """Empty the target's slot for another animal."""
        self._bank.forget(target.slot)

    @staticmethod
    def _as_remembered(target: Target) -> NDArray[np.float32]:
        """The mask (h, w) that goes into memory: none of an animal that another one hides."""
        if not target.visible or not _is_there(target):
            return np.full_like(target.mask_logits, OUTSIDE_LOGIT)
        return certain(target.mask_logits) if target.certain else target.mask_logits


def _is_there(target: Target) -> bool:
    return target.recalled or target.source is TrackSource.DETECTED
