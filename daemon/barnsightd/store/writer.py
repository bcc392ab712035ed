"""The writer thread: takes each frame's observations off a bounded queue and keeps the store going.

Its progress time stamp advances also while nothing arrives, and stands still while the disk hangs: it feeds the
watchdog. A full or failing disk does not stop it; the store takes no more, the queue fills, and what comes then is
refused, the newest first, until the disk is back.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from barnsightd.errors import BarnsightError
from barnsightd.store.files import StoreWriteError
from barnsightd.store.records import Store, StoreUsage
from barnsightd.types import Observation

TICK_S = 0.1
CAPACITY_FRAMES = 256

log = structlog.get_logger(__name__)


class Writer:
    """Owns a store from `start` to `stop`, which closes it."""

    def __init__(
        self,
        store: Store,
        *,
        on_error: Callable[[str, int], None],
        capacity_frames: int = CAPACITY_FRAMES,
    ) -> None:
        """`on_error(op, errno)` learns, on the writer thread, of each time that the disk refused something."""
        self._store = store
        self._on_error = on_error
        self._queue: queue.Queue[tuple[tuple[Observation, ...], int]] = queue.Queue(capacity_frames)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._failing: set[tuple[str, int]] = set()
        self.progress_monotonic_ns = time.monotonic_ns()
        self.fatal: BarnsightError | None = None

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
        """Queue a frame's observations without waiting; False where there is no room and they are dropped."""
        try:
            self._queue.put_nowait((observations, time.monotonic_ns()))
        except queue.Full:
            return False
        return True

    def record_config(self, applied_ns: int, config: str) -> None:
        """Keep a configuration, its secrets masked, in the store's history."""
        self._store.record_config(applied_ns, config)

    def usage(self) -> StoreUsage:
        """Measure the store."""
        return self._store.usage()

    def stop(self, deadline_s: float) -> bool:
        """Write what is queued, flush and close; whether all of it was done within `deadline_s`.

        Raises what ended the writer, also where that is the last flush: `usage` then counts what was lost.
        """
        self._stopping.set()
        self._thread.join(deadline_s)
        if self.fatal is not None:
            raise self.fatal
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take_queued()
                self._report(self._store.maintain())
                self.progress_monotonic_ns = time.monotonic_ns()
            while not self._queue.empty():
                self._store.append(*self._queue.get_nowait())
            self._store.close()
        except StoreWriteError as fault:
            self._on_error(fault.op, fault.errno)
            self._end_with(fault)
        except BarnsightError as error:
            self._end_with(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner has to learn of it
            self._end_with(BarnsightError(f"the writer failed: {error!r}; run `barnsight db check`"))

    def _take_queued(self) -> None:
        """Wait a moment for a frame and take all that are there, so that the queue is empty when a seal begins."""
        if self._store.full:
            self._stopping.wait(TICK_S)
            return
        with suppress(queue.Empty):
            self._store.append(*self._queue.get(timeout=TICK_S))
        waiting = self._queue.qsize()
        while waiting and not self._store.full:
            self._store.append(*self._queue.get_nowait())
            waiting -= 1

    def _report(self, faults: tuple[StoreWriteError, ...]) -> None:
        """Count every fault, log each kind once, and once that all is well again."""
        for fault in faults:
            self._on_error(fault.op, fault.errno)
            if (fault.op, fault.errno) not in self._failing:
                self._failing.add((fault.op, fault.errno))
                log.error("the store cannot write; it keeps trying", op=fault.op, error=str(fault))
        if self._failing and not self._store.degraded:
            self._failing.clear()
            log.info("the store writes again")

    def _end_with(self, error: BarnsightError) -> None:
        self.fatal = error
        log.error("the writer ended", error=str(error))
