"""The inference thread: the newest frame of every camera, one tick after another, through the pipeline.

One thread owns all engines (DESIGN §3). Its progress time stamp feeds the watchdog, so it advances while there is
nothing to do and stands still when an engine hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from barnsightd.errors import BarnsightError
from barnsightd.types import Frame, FrameResult

IDLE_WAIT_S = 0.25
MAX_FAILURES_IN_A_ROW = 10

log = structlog.get_logger(__name__)


class FrameSource(Protocol):
    """Where the newest frames wait: at most one per camera."""

    def take_all(self, timeout_s: float) -> list[Frame]:
        """Wait for a frame and take the newest of each camera; empty after `timeout_s`."""
        ...


class Scheduler:
    """Runs `step` on what the cameras offer and hands each result on."""

    def __init__(
        self,
        frames: FrameSource,
        step: Callable[[Frame], FrameResult],
        deliver: Callable[[FrameResult], None],
        dropped: Callable[[Frame, str], None],
    ) -> None:
        """`deliver` gets each result, `dropped` each frame that gave none, with the reason: failed or shed.

        Both are called on the inference thread. Set `stride` to n to process every n-th frame only: how load is shed.
        """
        self._frames = frames
        self._step = step
        self._deliver = deliver
        self._dropped = dropped
        self._stopping = threading.Event()
        self._errands: list[Callable[[], None]] = []
        self._errands_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self.progress_monotonic_ns = time.monotonic_ns()
        self.fatal: BarnsightError | None = None
        self.stride = 1

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it ends by itself only with `fatal` set."""
        return self._thread.is_alive()

    def between_frames(self, errand: Callable[[], None]) -> None:
        """Run `errand` on the inference thread before its next tick: the way to change what only it may touch."""
        with self._errands_lock:
            self._errands.append(errand)

    def stop(self, deadline_s: float) -> bool:
        """Let the frame in hand finish; whether the thread ended within `deadline_s`."""
        self._stopping.set()
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._run_errands()
            for frame in self._frames.take_all(IDLE_WAIT_S):
                if frame.index % self.stride:
                    self._dropped(frame, "shed")
                    continue
                try:
                    self._deliver(self._step(frame))
                    failures = 0
                except Exception as error:  # noqa: BLE001 - one bad frame must not end the service
                    failures += 1
                    log.error("frame failed", camera=frame.camera, frame=frame.index, error=str(error))
                    self._dropped(frame, "failed")
                    if failures >= MAX_FAILURES_IN_A_ROW:
                        self.fatal = BarnsightError(
                            f"{failures} frames in a row failed, the last one of camera {frame.camera!r} with: "
                            f"{error}; run `barnsight doctor`, then look at the log above"
                        )
                        return
                self.progress_monotonic_ns = time.monotonic_ns()
            self.progress_monotonic_ns = time.monotonic_ns()

    def _run_errands(self) -> None:
        with self._errands_lock:
            errands, self._errands = self._errands, []
        for errand in errands:
            errand()
