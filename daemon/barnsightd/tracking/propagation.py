"""How a track's mask comes to this frame without a detection: by its motion, or by what is remembered of the animal.

Motion costs next to nothing and does not look at the picture. Memory is SAM 3's tracker (Carion et al. 2025,
arXiv:2511.16719): the frame's features meet each animal's memories, and a mask comes out, or the animal is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.encoder import Features
from barnsight_engines.masks import mask_iou, without_specks
from barnsight_engines.propagator import MemoryTracker, certain
from barnsightd.tracking.lifecycle import Target, TrackingSettings
from barnsightd.tracking.memory import Impressions, MemoryBank
from barnsightd.types import TrackSource, TrackState

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


class MemoryPropagator:
    """Finds the animals of one session by what is remembered of them, and remembers what was seen.

    Everything is laid out when it is made, and taken from the system by `reserve`; `size_bytes` never changes.
    """

    def __init__(self, tracker: MemoryTracker, settings: TrackingSettings) -> None:
        """Lay everything out; raises ValueError where the tracker cannot do with `settings.memory_slots`."""
        animals, layout, positions = settings.max_objects, tracker.layout, tracker.positions
        self._tracker, self._settings = tracker, settings
        self._bank = MemoryBank(
            animals,
            positions,
            layout,
            slots=settings.memory_slots,
            batch=min(tracker.largest_batch, animals),
        )
        self._impressions = Impressions(
            animals, self._bank.recent, width=positions.pointer_weight.shape[1], grid=layout.grid
        )
        self._frame = self._look = -1
        self._pointers: dict[int, NDArray[np.float32]] = {}  # of this frame, by slot

    @property
    def size_bytes(self) -> int:
        """What there is to reserve."""
        return self._bank.size_bytes + self._impressions.size_bytes

    def reserve(self) -> None:
        """Take all of it from the system now: later nothing can be missing."""
        self._bank.reserve()
        self._impressions.reserve()

    def begin_frame(self, look: int | None) -> None:
        """Turn to the next frame: the one of the detector's look that nominally has this number, or one between looks.

        Two looks never share a number, so that ages count up. A frame between looks counts as if it were the next one.
        """
        if look is None:
            self._frame = self._look + 1
        else:
            self._frame = self._look = max(look, self._look + 1)
        self._pointers.clear()

    def seek(
        self, targets: Sequence[Target], everyone: Sequence[Target], features: Features, image_size: tuple[int, int]
    ) -> None:
        """Look for the animals on the frame of `features`; each target learns whether it was found, and where.

        One that seems to be where another of `everyone` is expected was taken for it: motion carries it on.
        Raises EngineError.
        """
        self._encode([target.slot for target in targets])
        for first in range(0, len(targets), self._bank.batch):
            group = targets[first : first + self._bank.batch]
            seen = self._tracker.segment(features, self._bank.recall([t.slot for t in group], self._frame))
            promised = seen.iou >= self._settings.recall_iou
            for row, target in enumerate(group):
                mask_logits = without_specks(seen.mask_logits[row], round(SPECK_SHARE * seen.mask_logits[row].size))
                if seen.presence[row] <= 0 or not (mask_logits > 0).any():
                    target.lose_sight()
                elif promised[row] and not self._is_anothers(mask_logits, target, everyone):
                    target.recall(mask_logits, image_size)
                else:
                    continue
                self._pointers[target.slot] = seen.pointers[row]

    def remember(self, targets: Sequence[Target], features: Features) -> None:
        """Remember this frame, a look of the detector, of the targets that were found or sought. Raises EngineError.

        A target that a detection explained was not sought, and leaves no pointer unless the frame is certain.
        """
        evident = [target for target in targets if target.sought or target.source is TrackSource.DETECTED]
        self._condition([target for target in evident if target.certain], features)
        others = [target for target in evident if not target.certain]
        if others:
            self._impressions.keep(self._frame, features["t1"], *_as_remembered(others))
        pointed = [target.slot for target in others if target.slot in self._pointers]
        self._bank.point(pointed, self._frame, [self._pointers[slot] for slot in pointed])

    def forget(self, target: Target) -> None:
        """Empty the target's slot for another animal."""
        self._bank.forget(target.slot)
        self._impressions.forget(target.slot)

    def _is_anothers(self, mask_logits: NDArray[np.float32], target: Target, everyone: Sequence[Target]) -> bool:
        """Whether a mask lies where another animal in sight is expected, and more so than where `target` is."""
        others = [other for other in everyone if other is target or other.state(self._settings) != TrackState.LOST]
        places = np.stack([other.mask_logits > 0 for other in others])  # (N, h, w)
        overlap = mask_iou(mask_logits[None] > 0, places)[0]  # (N,)
        nearest = int(overlap.argmax())
        return others[nearest] is not target and bool(overlap[nearest] >= self._settings.anothers_iou)

    def _encode(self, slots: Sequence[int]) -> None:
        """Make memories of what was seen of these animals."""
        for seen in self._impressions.take(slots):
            memories = self._tracker.memorize({"t1": seen.t1}, seen.mask_logits, seen.presence)
            self._bank.remember(seen.animals.tolist(), seen.frame, memories)

    def _condition(self, targets: Sequence[Target], features: Features) -> None:
        if targets:
            slots, mask_logits, presence = _as_remembered(targets)
            masks = certain(mask_logits)
            memories = self._tracker.memorize(features, masks, presence)
            self._bank.condition(slots, self._frame, memories, self._tracker.point_at(features, masks))


def _as_remembered(targets: Sequence[Target]) -> tuple[list[int], NDArray[np.float32], NDArray[np.float32]]:
    """What goes into memory: slots, masks (B, h, w), empty of an animal that another one hides, and presence (B,).

    A certain frame is one on which the animal was detected, so what is left of its mask counts in any case.
    """
    there = np.array([target.recalled or target.source is TrackSource.DETECTED for target in targets])
    shown = there & np.array([target.visible or target.certain for target in targets])
    masks = np.stack([target.mask_logits for target in targets])
    masks = np.where(shown[:, None, None], masks, np.float32(OUTSIDE_LOGIT))
    return [target.slot for target in targets], masks, np.where(there, 1, -1).astype(np.float32)
