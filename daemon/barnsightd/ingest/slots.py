"""Newest-frame slots: what stands between the cameras' threads and the inference thread.

A camera that is faster than inference overwrites its own slot, so that inference always works on what the animals
do now, and memory does not grow. What was overwritten is counted.
"""

from __future__ import annotations

from collections import Counter
from threading import Condition

from barnsightd.types import Frame


class FrameSlots:
    """One slot per camera and one condition for all of them; every method may be called from any thread."""

    def __init__(self) -> None:
        self._newest: dict[str, Frame] = {}
        self._dropped: Counter[str] = Counter()
        self._closed = False
        self._changed = Condition()

    def put(self, frame: Frame) -> bool:
        """Leave the newest frame of its camera; returns True where it took the place of one that nobody took."""
        with self._changed:
            if self._closed:
                return False
            replaced = frame.camera in self._newest
            self._dropped[frame.camera] += replaced
            self._newest[frame.camera] = frame
            self._changed.notify_all()
            return replaced

    def take_all(self, timeout_s: float) -> list[Frame]:
        """Wait for a frame, then take every camera's newest, oldest first; [] on time-out and when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._closed, timeout_s)
            frames = sorted(self._newest.values(), key=lambda frame: frame.monotonic_ns)
            self._newest.clear()
            return frames

    def __len__(self) -> int:
        """How many cameras have a frame waiting."""
        with self._changed:
            return len(self._newest)

    def dropped(self, camera: str) -> int:
        """How many frames of `camera` were overwritten before anyone took them."""
        with self._changed:
            return self._dropped[camera]

    def close(self) -> None:
        """Forget what waits, take nothing more and wake every waiter."""
        with self._changed:
            self._closed = True
            self._newest.clear()
            self._changed.notify_all()
