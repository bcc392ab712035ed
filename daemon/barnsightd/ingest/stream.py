"""What a camera asks of one connection to its source, whatever that is, and what it gives in return.

A stream is built, started, polled and closed, once; whoever wants to try again builds a new one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class FrameSink(Protocol):
    """Takes the frames of a stream, on whatever thread decodes them."""

    def wants(self, pts_ns: int) -> bool:
        """Called for every decoded frame with its time stamp; False drops it before it is converted."""
        ...

    def damaged(self) -> None:
        """Called instead of `wants` for a frame that its decoder marked as damaged; it is dropped."""
        ...

    def deliver(self, image: NDArray[np.uint8], age_ns: int) -> None:
        """Take a wanted frame, (H, W, 3) uint8 RGB, that arrived `age_ns` ago."""
        ...


class Stream(Protocol):
    """A connection that delivers to its sink from `start` to `close`."""

    def start(self, deadline_s: float) -> None:
        """Begin to connect. Raises StreamError."""
        ...

    def poll(self, timeout_s: float) -> None:
        """Look after the stream for at most that long. Raises StreamError where it ended or failed."""
        ...

    def close(self, deadline_s: float) -> bool:
        """Let go of everything; returns False where that still goes on. May be called again to ask."""
        ...

    def explain_silence(self) -> str:
        """What is known about why no frame comes, with the next step."""
        ...
