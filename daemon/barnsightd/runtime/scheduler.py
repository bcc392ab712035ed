"""The two threads that own the engines: one encodes the newest frame of every camera, the other follows what is in it.

While one frame is detected, tracked and recorded, the next one is encoded: the rate is that of the slower half, and a
frame waits no longer for it (docs/adr/0004). One encoded frame may wait between them. Both stamp their progress, which
feeds the watchdog: it advances while there is nothing to do and stands still when an engine hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

from barnsight_engines.errors import EngineError
from barnsightd.errors import BarnsightError
from barnsightd.types import Frame, FrameResult

T = TypeVar("T")

IDLE_WAIT_S = 0.25
MAX_FAILURES_IN_A_ROW = 10

log = structlog.get_logger(__name__)


class FrameSource(Protocol):
    """Where the newest frames wait: at most one per camera."""

    def take_all(self, timeout_s: float) -> list[Frame]:
        """Wait for a frame and take the newest of each camera; empty after `timeout_s`."""
        ...


class Scheduler(Generic[T]):
    """Runs `encode` and then `follow` on what the cameras offer and hands each result on."""

    def __init__(
        self,
        frames: FrameSource,
        encode: Callable[[Frame], T],
        follow: Callable[[T], FrameResult | None],
        deliver: Callable[[FrameResult], None],
        dropped: Callable[[Frame, str], None],
    ) -> None:
        """`encode` runs on the thread "encoder", `follow` and `deliver` on the thread "inference".

        `dropped` gets each frame that gave no result, with the reason, on either thread: failed or shed. Set `stride`
        to n to process every n-th frame only: how load is shed.
        """
        self._frames = frames
        self._encode = encode
        self._follow = follow
        self._deliver = deliver
        self._dropped = dropped
        self._stopping = threading.Event()
        self._errands: list[Callable[[], None]] = []
        self._errands_lock = threading.Lock()
        self._encoded: queue.Queue[tuple[Frame, T | Exception]] = queue.Queue(maxsize=1)
        self._threads = {
            name: threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("encoder", self._run_encoder), ("inference", self._run_inference))
        }
        self._progress_ns = dict.fromkeys(self._threads, time.monotonic_ns())
        self.fatal: BarnsightError | None = None
        self.stride = 1

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads.values():
            thread.start()

    @property
    def progress_monotonic_ns(self) -> int:
        """When the thread that is further behind last advanced."""
        return min(self._progress_ns.values())

    @property
    def alive(self) -> bool:
        """Whether the threads run; they end by themselves only with `fatal` set."""
        return all(thread.is_alive() for thread in self._threads.values())

    def between_frames(self, errand: Callable[[], None]) -> None:
        """Run `errand` on the inference thread before its next frame: the way to change what only it may touch."""
        with self._errands_lock:
            self._errands.append(errand)

    def stop(self, deadline_s: float) -> bool:
        """Let the frames in hand finish; whether the threads ended within `deadline_s`."""
        ends_s = time.monotonic() + deadline_s
        self._stopping.set()
        for thread in self._threads.values():
            thread.join(max(0.0, ends_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads.values())

    def _run_encoder(self) -> None:
        while not self._stopping.is_set():
            for frame in self._frames.take_all(IDLE_WAIT_S):
                if frame.index % self.stride:
                    self._dropped(frame, "shed")
                    continue
                outcome: T | Exception
                try:
                    outcome = self._encode(frame)
                except Exception as error:  # noqa: BLE001 - one bad frame must not end the service
                    outcome = error
                self._advance("encoder")
                self._hand_over(frame, outcome)
            self._advance("encoder")

    def _hand_over(self, frame: Frame, outcome: T | Exception) -> None:
        """Wait until the inference thread has taken the frame before."""
        while not self._stopping.is_set() and not self._offer(frame, outcome):
            self._advance("encoder")

    def _offer(self, frame: Frame, outcome: T | Exception) -> bool:
        try:
            self._encoded.put((frame, outcome), timeout=IDLE_WAIT_S)
        except queue.Full:
            return False
        return True

    def _run_inference(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._run_errands()
            try:
                frame, outcome = self._encoded.get(timeout=IDLE_WAIT_S)
            except queue.Empty:
                self._advance("inference")
                continue
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                result = self._follow(outcome)
                if result is not None:
                    self._deliver(result)
                failures = 0
            except Exception as error:
                failures += 1
                what = f"{type(error).__name__}: {error}"
                bug = None if isinstance(error, EngineError) else error
                log.error("frame failed", camera=frame.camera, frame=frame.index, error=what, exc_info=bug)
                self._dropped(frame, "failed")
                if failures >= MAX_FAILURES_IN_A_ROW:
                    self.fatal = BarnsightError(
                        f"{failures} frames in a row failed, the last one of camera {frame.camera!r} with: "
                        f"{what}; run `barnsight doctor`, then look at the log above"
                    )
                    self._stopping.set()
            self._advance("inference")

    def _advance(self, thread: str) -> None:
        self._progress_ns[thread] = time.monotonic_ns()

    def _run_errands(self) -> None:
        with self._errands_lock:
            errands, self._errands = self._errands, []
        for errand in errands:
            errand()
