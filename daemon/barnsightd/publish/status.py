"""What `/status` and `/preview` show: each camera's last moments, in windows of bounded length."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from barnsightd.publish.overlay import draw, to_jpeg
from barnsightd.publish.rate import Rate
from barnsightd.types import FrameResult

WINDOW_FRAMES = 600
NS_PER_MS = 1_000_000


@dataclass(slots=True)
class _Window:
    """One camera's newest frames: how fast they were done, how old each was then, and the last result itself."""

    rate: Rate = field(default_factory=Rate)
    age_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW_FRAMES))
    frames: int = 0
    last: FrameResult | None = None


class StatusBoard:
    """Written by the inference thread, read by the HTTP threads."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._windows = {camera: _Window() for camera in cameras}

    def set_cameras(self, cameras: Iterable[str]) -> None:
        """Keep the windows of the cameras that stay, open one for each that is new."""
        with self._lock:
            self._windows = {camera: self._windows.get(camera, _Window()) for camera in cameras}

    def frame_done(self, result: FrameResult, done_monotonic_ns: int) -> None:
        """Note a frame that went all the way through."""
        with self._lock:
            window = self._windows.get(result.frame.camera)
            if window is None:
                return
            window.frames += 1
            window.rate.tick(done_monotonic_ns)
            window.age_ns.append(done_monotonic_ns - result.frame.monotonic_ns)
            window.last = result

    def camera(self, name: str, now_ns: int) -> dict[str, Any]:
        """Sum up one camera for `/status`; figures that need a frame are null before the first one."""
        with self._lock:
            window = self._windows[name]
            ages_ms = np.array(window.age_ns, np.float64) / NS_PER_MS
            last, frames = window.last, window.frames
        return {
            "frames": frames,
            "fps": round(window.rate.per_second(now_ns), 2) if frames else None,
            "frame_age_p50_ms": round(float(np.percentile(ages_ms, 50)), 1) if ages_ms.size else None,
            "frame_age_p95_ms": round(float(np.percentile(ages_ms, 95)), 1) if ages_ms.size else None,
            "animals": len(last.tracks) if last else None,
            "width_px": last.frame.image.shape[1] if last else None,
            "height_px": last.frame.image.shape[0] if last else None,
        }

    def preview(self, name: str) -> bytes | None:
        """Draw the camera's newest frame with its tracks, as JPEG; None before the first frame."""
        with self._lock:
            window = self._windows.get(name)
            last = window.last if window else None
        return to_jpeg(draw(last.frame, last.tracks)) if last else None
