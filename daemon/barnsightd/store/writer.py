"""The writer thread: takes each frame's observations off a bounded queue and keeps the store going.

Its progress time stamp advances also while nothing arrives, and stands still while the disk hangs: it feeds the
watchdog. A full or failing disk does not stop it; what finds no room is dropped newest first, counted and reported.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Protocol

import structlog

from barnsightd.errors import BarnsightError
from barnsightd.store.files import StoreWriteError
from barnsightd.store.records import Store, StoreSettings, StoreUsage
from barnsightd.types import Observation

__all__ = ["Store", "StoreListener", "StoreSettings", "StoreUsage", "StoreWriteError", "Writer"]

TICK_S = 0.1
USAGE_EVERY_NS = 5_000_000_000
CAPACITY_FRAMES = 256

log = structlog.get_logger(__name__)


class StoreListener(Protocol):
    """Who wants to know how the store is; called on the writer thread."""

    def store_error(self, op: str, errno: str) -> None:
        """An operation of the store failed with the error number of that name."""
        ...

    def storage(self, usage: StoreUsage) -> None:
        """The store was measured."""
        ...


class Writer:
    """Owns a store from `start` to `stop`, and closes it."""

    def __init__(self, store: Store, listener: StoreListener, *, capacity_frames: int = CAPACITY_FRAMES) -> None:
        self._store = store
        self._listener = listener
        self._queue: queue.Queue[tuple[Observation, ...]] = queue.Queue(capacity_frames)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._failing: set[tuple[str, str]] = set()
        self._usage_due_ns = 0
        self.dropped_frames = 0
        self.progress_monotonic_ns = time.monotonic_ns()
        self.fatal: Exception | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it ends by itself only with `fatal` set."""
        return self._thread.is_alive()

    @property
    def queue_length(self) -> int:
        """Frames that wait to be appended."""
        return self._queue.qsize()

    def submit(self, observations: tuple[Observation, ...]) -> bool:
        """Queue a frame's observations without waiting; False where the queue is full and they are dropped."""
        try:
            self._queue.put_nowait(observations)
        except queue.Full:
            self.dropped_frames += 1
            return False
        return True

    def stop(self, deadline_s: float) -> bool:
        """Write what is queued, flush and close; whether all of it was done within `deadline_s`."""
        self._stopping.set()
        self._thread.join(deadline_s)
        return not self._thread.is_alive() and self.fatal is None

    def _run(self) -> None:
        try:
            while not (self._stopping.is_set() and self._queue.empty()):
                self._advance()
            self._store.close()
            self._listener.storage(self._store.usage())
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner has to learn of it
            if isinstance(error, StoreWriteError):
                self._listener.store_error(error.op, error.errno)
            self.fatal = (
                error if isinstance(error, BarnsightError) else BarnsightError(f"the writer failed: {error!r}")
            )
            log.error("the writer ended", error=str(self.fatal))

    def _advance(self) -> None:
        try:
            observations = self._queue.get(timeout=TICK_S)
        except queue.Empty:
            observations = ()
        if not self._store.append(observations):
            self.dropped_frames += 1
        self._report(self._store.maintain())
        self.progress_monotonic_ns = time.monotonic_ns()

    def _report(self, faults: tuple[StoreWriteError, ...]) -> None:
        for fault in faults:
            self._listener.store_error(fault.op, fault.errno)
            if (fault.op, fault.errno) not in self._failing:
                self._failing.add((fault.op, fault.errno))
                log.error("the store cannot write; it keeps trying", op=fault.op, error=str(fault))
        now_ns = time.monotonic_ns()
        if now_ns >= self._usage_due_ns:
            self._usage_due_ns = now_ns + USAGE_EVERY_NS
            usage = self._store.usage()
            self._listener.storage(usage)
            if self._failing and not usage.degraded:
                self._failing.clear()
                log.info("the store writes again", dropped_observations=usage.dropped)
