"""Events per second over the last ten seconds: one figure for the metrics and for `/status`."""

from __future__ import annotations

import threading
from collections import deque

WINDOW_NS = 10_000_000_000
WINDOW_EVENTS = 1024
NS_PER_S = 1_000_000_000


class Rate:
    """Counts events in a sliding window of bounded length; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times_ns: deque[int] = deque(maxlen=WINDOW_EVENTS)
        self._first_ns: int | None = None

    def tick(self, now_ns: int) -> None:
        """Note one event; `now_ns` is monotonic."""
        with self._lock:
            self._times_ns.append(now_ns)
            if self._first_ns is None:
                self._first_ns = now_ns

    def per_second(self, now_ns: int) -> float:
        """Events per second of the window that ends at `now_ns`; it begins no sooner than at the first event ever."""
        with self._lock:
            if self._first_ns is None:
                return 0.0
            since_ns = max(now_ns - WINDOW_NS, self._first_ns)
            events = sum(since_ns < at_ns <= now_ns for at_ns in self._times_ns)
        return events * NS_PER_S / (now_ns - since_ns) if now_ns > since_ns else 0.0
