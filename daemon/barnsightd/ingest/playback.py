"""A video file or a folder of pictures played in its own time, as if it were a camera: for commissioning."""

from __future__ import annotations

import time
from pathlib import Path

from barnsightd.errors import SourceError
from barnsightd.ingest.faults import StreamError
from barnsightd.ingest.files import read_frames
from barnsightd.ingest.stream import FrameSink
from barnsightd.types import Frame

NS_PER_S = 1_000_000_000


class FilePlayback:
    """Plays once; its end is a fault like any camera's, so that whoever reconnects plays it in a loop.

    `fps` is the pace of a folder of pictures; a video has its own.
    """

    def __init__(self, path: Path, fps: float, sink: FrameSink) -> None:
        self._path = path
        self._sink = sink
        self._frames = read_frames(path, camera=path.name, fps=fps if path.is_dir() else None, start_ns=0)
        self._next: Frame | None = None
        self._started_ns = 0

    def start(self, deadline_s: float) -> None:  # noqa: ARG002 - the protocol's form: a file answers at once
        """Read the first frame. Raises StreamError where there is none."""
        self._next = self._read()
        self._started_ns = time.monotonic_ns()

    def poll(self, timeout_s: float) -> None:
        """Deliver what is due within `timeout_s`. Raises StreamError at the end."""
        until_ns = time.monotonic_ns() + round(timeout_s * NS_PER_S)
        while self._next is not None:
            due_ns = self._started_ns + self._next.monotonic_ns
            time.sleep(max(0, min(due_ns, until_ns) - time.monotonic_ns()) / NS_PER_S)
            if due_ns > until_ns:
                return
            if self._sink.wants(self._next.monotonic_ns):
                self._sink.deliver(self._next.image, 0)
            self._next = self._read()
        raise StreamError("eos", f"{self._path} has been played to its end")

    def close(self, deadline_s: float) -> bool:  # noqa: ARG002 - the protocol's form: reading has its own deadlines
        """Close the file."""
        self._frames.close()
        return True

    def explain_silence(self) -> str:
        """A file that stops is slow to read."""
        return "reading takes too long; look at the disk"

    def _read(self) -> Frame | None:
        try:
            return next(self._frames, None)
        except SourceError as error:
            raise StreamError.of(error) from None
