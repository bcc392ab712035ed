"""One frame's way through the house: encode, detect, track, record. No threads, no I/O, no clock of its own.

It comes in two halves, so that the next frame can be encoded while this one is followed: `encode` touches nothing but
the encoder, `follow` owns the rest. Everything that differs between machines is handed in by `app`: the engines, the
settings per camera, a stopwatch, and who keeps the book of sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.detector import Detections
from barnsight_engines.masks import encode_rle, to_window
from barnsight_engines.propagator import MemoryTracker
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.tracking.propagation import MemoryPropagator
from barnsightd.tracking.session import Session
from barnsightd.types import Frame, FrameResult, Observation, Track, Tracklet

NS_PER_S = 1_000_000_000


class Encoder(Protocol):
    """The trunk and neck: a frame's image in, its feature maps out."""

    def encode(self, image: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        """Encode an (H, W, 3) uint8 RGB image."""
        ...


class Detector(Protocol):
    """The concept detector: feature maps in, every animal of that concept out."""

    def detect(
        self,
        features: Mapping[str, NDArray[np.float32]],
        image_size: tuple[int, int],
        concept: str,
        *,
        min_score: float | None,
    ) -> Detections:
        """Find the animals of `concept` in an image of (height, width) pixels."""
        ...


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """What the pipeline needs to know of one camera; `masks_every_s` = 0 keeps the masks of every frame.

    `remembers` gives its sessions a memory, where the model set has a tracker.
    """

    species: str
    tracking: TrackingSettings
    session_ns: int
    masks_every_s: float
    remembers: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """A frame with its features, and how long they took."""

    frame: Frame
    features: Mapping[str, NDArray[np.float32]]
    duration_ns: int


class Stopwatch:
    """Splits a frame's time into named laps, on whatever clock it is given."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._last_ns = clock_ns()
        self.laps_ns: dict[str, int] = {}

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now_ns = self._clock_ns()
        self.laps_ns[stage] = now_ns - self._last_ns
        self._last_ns = now_ns


@dataclass(slots=True)
class _OpenSession:
    """A camera's running session, when it has to end, and how many frames ago the detector looked: 0, it is to look."""

    session: Session
    number: int
    ends_ns: int
    masks_due_ns: int
    last_captured_ns: int
    frames_since_look: int = 0


class Pipeline:
    """Turns frames into tracks and records, with one tracking session per camera."""

    def __init__(
        self,
        encoder: Encoder,
        detector: Detector,
        cameras: Mapping[str, CameraSettings],
        *,
        tracker: MemoryTracker | None = None,
        model_set: str,
        number_session: Callable[[str, int], int],
        session_ended: Callable[[str, int, int], None],
        clock_ns: Callable[[], int],
    ) -> None:
        """Take the engines and the settings of each camera by name.

        `number_session(camera, started_ns)` names a new session; `session_ended(camera, number, ended_ns)` learns when
        its last frame was captured, on the thread that ends it. `clock_ns` only measures the stages. Set `keeps_masks`
        to False to shed the cost of masks in the records.
        """
        self._encoder = encoder
        self._detector = detector
        self._cameras = dict(cameras)
        self._tracker = tracker
        self._model_set = model_set
        self._number_session = number_session
        self._session_ended = session_ended
        self._clock_ns = clock_ns
        self._open: dict[str, _OpenSession] = {}
        self._ended: dict[str, tuple[Tracklet, ...]] = {}  # by sessions that are over, until the camera's next frame
        self._over_ns: dict[str, int] = {}  # frames up to here belong to sessions that are over
        self.keeps_masks = True

    def encode(self, frame: Frame) -> Encoded:
        """The first half of a frame's way; it may run on a thread of its own, one frame after the other."""
        watch = Stopwatch(self._clock_ns)
        features = self._encoder.encode(frame.image)
        watch.lap("encoder")
        return Encoded(frame, features, watch.laps_ns["encoder"])

    def follow(self, encoded: Encoded) -> FrameResult | None:
        """The second half, all the way to the records.

        None where the frame's camera has been taken out meanwhile, or the session that it belonged to was ended.
        """
        frame = encoded.frame
        settings = self._cameras.get(frame.camera)
        if settings is None or frame.monotonic_ns <= self._over_ns.get(frame.camera, -1):
            return None
        opened = self._session_of(frame, settings)
        height, width = frame.image.shape[:2]
        watch = Stopwatch(self._clock_ns)
        detections = None
        if opened.frames_since_look == 0:
            detections = self._detector.detect(
                encoded.features, (height, width), settings.species, min_score=settings.tracking.min_score
            )
        opened.frames_since_look = (opened.frames_since_look + 1) % settings.tracking.detect_every
        watch.lap("detector")
        tracks = opened.session.step(detections, frame.monotonic_ns, encoded.features)
        watch.lap("tracking")
        observations = self._record(frame, opened, settings, tracks)
        watch.lap("records")
        return FrameResult(
            frame,
            tracks,
            observations,
            {"encoder": encoded.duration_ns, **watch.laps_ns},
            tracklets=self._ended.pop(frame.camera, ()) + opened.session.take_tracklets(),
            session_bytes=opened.session.size_bytes,
            waiting=opened.session.waiting,
        )

    def set_cameras(self, cameras: Mapping[str, CameraSettings]) -> None:
        """Take new settings; a camera that changed or went away starts over with an empty session."""
        for name in list(self._open):
            if cameras.get(name) != self._cameras[name]:
                self._close_session(name)
        self._cameras = dict(cameras)
        self._ended = {name: tracklets for name, tracklets in self._ended.items() if name in cameras}
        self._over_ns = {name: over_ns for name, over_ns in self._over_ns.items() if name in cameras}

    def end_session(self, camera: str, until_ns: int) -> None:
        """End the camera's session as of `until_ns` (monotonic): frames up to then still on their way are lost.

        The first frame after it opens a new session, and hands over what this one leaves.
        """
        self._over_ns[camera] = until_ns
        self._close_session(camera)

    def end_sessions(self) -> None:
        """End every session: nothing more will come."""
        for camera in list(self._open):
            self._close_session(camera)

    def _close_session(self, camera: str) -> None:
        opened = self._open.pop(camera, None)
        if opened is not None:
            self._ended[camera] = opened.session.end()
            self._session_ended(camera, opened.number, opened.last_captured_ns)

    def _session_of(self, frame: Frame, settings: CameraSettings) -> _OpenSession:
        opened = self._open.get(frame.camera)
        if opened is None or frame.monotonic_ns >= opened.ends_ns:
            self._close_session(frame.camera)
            number = self._number_session(frame.camera, frame.captured_ns)
            opened = _OpenSession(
                session=Session(settings.tracking, session=number, memory=self._new_memory(settings)),
                number=number,
                ends_ns=frame.monotonic_ns + settings.session_ns,
                masks_due_ns=frame.monotonic_ns,
                last_captured_ns=frame.captured_ns,
            )
            self._open[frame.camera] = opened
        opened.last_captured_ns = frame.captured_ns
        return opened

    def _new_memory(self, settings: CameraSettings) -> MemoryPropagator | None:
        if self._tracker is None or not settings.remembers:
            return None
        memory = MemoryPropagator(self._tracker, settings.tracking)
        memory.reserve()
        return memory

    def _record(
        self, frame: Frame, opened: _OpenSession, settings: CameraSettings, tracks: tuple[Track, ...]
    ) -> tuple[Observation, ...]:
        keep_masks = self.keeps_masks and frame.monotonic_ns >= opened.masks_due_ns
        if keep_masks:
            opened.masks_due_ns = frame.monotonic_ns + round(settings.masks_every_s * NS_PER_S)
        return tuple(self._observe(frame, opened.number, track, keep_masks) for track in tracks)

    def _observe(self, frame: Frame, session: int, track: Track, keep_mask: bool) -> Observation:
        height, width = frame.image.shape[:2]
        window, corner = to_window(track.mask_logits, (height, width))  # of the frame, as large as the animal
        x0, y0, x1, y1 = (float(edge) for edge in track.box_px)
        return Observation(
            camera=frame.camera,
            captured_ns=frame.captured_ns,
            frame=frame.index,
            session=session,
            track=track.track,
            animal=None,
            box_px=(x0, y0, x1, y1),
            area_px=float(np.count_nonzero(window)),
            mask_rle=encode_rle(window, (height, width), corner) if keep_mask else b"",
            mask_size=(height, width),
            score=track.score,
            state=track.state,
            source=track.source,
            behavior=None,
            model_set=self._model_set,
        )
