"""Looks at a source once: can it be reached, what does it send, what decodes it, how soon comes the first frame."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from barnsightd.config import IngestConfig, SourceAddress
from barnsightd.ingest.faults import StreamError
from barnsightd.ingest.files import read_frames
from barnsightd.ingest.gst import is_installed
from barnsightd.ingest.pipelines import choose_decoder
from barnsightd.ingest.rtsp import RtspStream

NS_PER_S = 1_000_000_000
POLL_S = 0.05
STATE_CHANGE_S = 5.0
FRAMES = 30


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a source sends; `fps` is measured by the time stamps of its first 30 frames."""

    source: str
    codec: str
    width: int
    height: int
    fps: float
    decoder: str
    first_frame_s: float

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.codec} {self.width}x{self.height} at {self.fps:.1f} fps, "
            f"decoder {self.decoder}, first frame after {self.first_frame_s:.2f} s"
        )


@dataclass(slots=True)
class _Watcher:
    """Takes a probe's frames: their time stamps, the size of the newest, when the first one came."""

    started_ns: int = field(default_factory=time.monotonic_ns)
    first_frame_s: float = 0.0
    pts_ns: list[int] = field(default_factory=list)
    size: tuple[int, ...] = ()

    def wants(self, pts_ns: int) -> bool:
        if not self.pts_ns:
            self.first_frame_s = (time.monotonic_ns() - self.started_ns) / NS_PER_S
        self.pts_ns.append(pts_ns)
        return True

    def damaged(self) -> None:
        pass

    def deliver(self, image: NDArray[np.uint8], age_ns: int) -> None:  # noqa: ARG002 - the protocol's form
        self.size = image.shape

    def report(self, source: str, codec: str, decoder: str) -> ProbeResult:
        span_s = (self.pts_ns[-1] - self.pts_ns[0]) / NS_PER_S
        fps = (len(self.pts_ns) - 1) / span_s if span_s > 0 else 0.0
        height, width = self.size[:2]
        return ProbeResult(source, codec, width, height, fps, decoder, self.first_frame_s)


def probe(source: SourceAddress, timeout_s: float, ingest: IngestConfig) -> ProbeResult:
    """Watch `source` for up to 30 frames or until the time is up; a stream is received as `ingest` says.

    Raises SourceError where nothing answers or no frame comes within `timeout_s`, SourceAccessError for a refused
    login or file, SourceMissingError for a stream or file that is not there, SourceDataError for what is no video.
    """
    if source.path is not None:
        return _probe_file(source.path)
    try:
        return _probe_stream(source, timeout_s, ingest)
    except StreamError as fault:
        raise fault.as_error() from None


def _probe_file(path: Path) -> ProbeResult:
    watcher = _Watcher()
    for frame in islice(read_frames(path, camera=path.name), FRAMES):
        watcher.wants(frame.monotonic_ns)
        watcher.deliver(frame.image, 0)
    kind = "pictures" if path.is_dir() else path.suffix.lstrip(".").upper()
    return watcher.report(str(path), kind, choose_decoder("auto", is_installed))


def _probe_stream(source: SourceAddress, timeout_s: float, ingest: IngestConfig) -> ProbeResult:
    watcher = _Watcher()
    stream = RtspStream(source, ingest, watcher)
    until_ns = watcher.started_ns + round(timeout_s * NS_PER_S)
    try:
        stream.start(STATE_CHANGE_S)
        while len(watcher.pts_ns) < FRAMES and time.monotonic_ns() < until_ns:
            stream.poll(POLL_S)
        if not watcher.size:
            text = f"{source}: no frame within {timeout_s:g} s; {stream.explain_silence()}"
            raise StreamError("connect", text)
        return watcher.report(str(source), *stream.decoder)
    finally:
        stream.close(STATE_CHANGE_S)
