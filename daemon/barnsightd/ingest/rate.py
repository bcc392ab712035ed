"""Thins a stream to a frame rate by its own time stamps, before any work is spent on the frames that go."""

from __future__ import annotations

NS_PER_S = 1_000_000_000


class RateLimiter:
    """Keeps at most `fps` frames a second on average, evenly spread.

    A frame may come up to half a period early, so that a camera at exactly `fps` keeps every frame through its
    jitter. Time stamps that jump, as when a camera restarts its clock, start the count anew.
    """

    def __init__(self, fps: float) -> None:
        self._period_ns = round(NS_PER_S / fps)
        self._due_ns: int | None = None

    def keep(self, pts_ns: int) -> bool:
        """Whether the frame with this time stamp is kept."""
        due_ns = self._due_ns
        if due_ns is None or abs(pts_ns - due_ns) > 2 * self._period_ns:
            due_ns = pts_ns
        if pts_ns < due_ns - self._period_ns // 2:
            return False
        self._due_ns = due_ns + self._period_ns
        return True
