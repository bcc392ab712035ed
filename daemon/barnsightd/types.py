"""What the stages pass on: frozen values with units in their names.

Times are integer nanoseconds. `captured_ns` is wall clock and goes into records; `monotonic_ns` serves every
deadline and duration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.detector import Detections

__all__ = [
    "Detections",
    "Frame",
    "FrameResult",
    "Observation",
    "Track",
    "TrackSource",
    "TrackState",
    "Tracklet",
    "TrackletEnd",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture of one camera.

    `image` is (H, W, 3) uint8 RGB. `index` counts the frames that this camera delivered since it was started.
    """

    camera: str
    index: int
    captured_ns: int
    monotonic_ns: int
    image: NDArray[np.uint8]


class TrackState(str, Enum):
    """Where a track stands in its life: not yet trusted, trusted, or trusted and out of sight."""

    TENTATIVE = "tentative"
    CONFIRMED = "confirmed"
    LOST = "lost"


class TrackSource(str, Enum):
    """What this frame's mask of a track was taken from."""

    DETECTED = "detected"
    PROPAGATED = "propagated"


@dataclass(frozen=True, slots=True)
class Track:
    """One animal followed through one session of one camera.

    `track` is unique within its session. `box_px` is (4,) float32 xyxy in pixels of the frame. `mask_logits` is
    (h, w) float32 over the whole frame on the detector's mask grid; above 0 is animal. `score` is in 0..1.
    """

    track: int
    box_px: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    score: float
    state: TrackState
    age_frames: int
    source: TrackSource


class TrackletEnd(str, Enum):
    """Why a track ended: the animal was not found again, the scene changed at once, or the session was over."""

    LOST = "lost"
    CUT = "cut"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Tracklet:
    """What a session hands over of one animal at the end, for identity to settle whose it is.

    Times are monotonic. `mean_score` is over its `detections`; `found_share` is how many of the frames that the
    detector looked at, until it last saw the animal, it found it on. Both are in 0..1.
    """

    session: int
    track: int
    born_ns: int
    last_seen_ns: int
    detections: int
    mean_score: float
    found_share: float
    end: TrackletEnd

    @property
    def quality(self) -> float:
        """How far to trust it, 0..1."""
        return self.mean_score * self.found_share


@dataclass(frozen=True, slots=True)
class Observation:
    """What the store keeps of one animal on one frame.

    `box_px` is xyxy in pixels; `mask_rle` is the compressed COCO run-length string (column-major) of a mask of
    `mask_size` (height, width), empty where masks are not kept of this frame; `area_px` counts the mask's pixels
    in the frame. `session` counts the camera's sessions since the store was made.
    """

    camera: str
    captured_ns: int
    frame: int
    session: int
    track: int
    animal: str | None
    box_px: tuple[float, float, float, float]
    area_px: float
    mask_rle: bytes
    mask_size: tuple[int, int]
    score: float
    state: TrackState
    source: TrackSource
    behavior: str | None
    model_set: str


@dataclass(frozen=True, slots=True)
class FrameResult:
    """Everything the pipeline made of one frame: its tracks, its records, and how long each stage took.

    `stage_ns` maps encoder, detector, tracking and records to nanoseconds. `tracklets` ended since the camera's last
    frame; `session_bytes` is what its session's memory takes; `waiting` animals found every track taken.
    """

    frame: Frame
    tracks: tuple[Track, ...]
    observations: tuple[Observation, ...]
    stage_ns: dict[str, int]
    tracklets: tuple[Tracklet, ...] = ()
    session_bytes: int = 0
    waiting: int = 0
