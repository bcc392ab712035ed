"""Looks at a source once: can it be reached, what does it send, what would decode it, how soon is the first frame."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from barnsightd.config import IngestConfig, SourceAddress
from barnsightd.ingest.faults import StreamFault
from barnsightd.ingest.files import PICTURES
from barnsightd.ingest.playback import FilePlayback
from barnsightd.ingest.rtsp import RtspStream
from barnsightd.ingest.stream import Stream

NS_PER_S = 1_000_000_000
POLL_S = 0.1
STATE_CHANGE_S = 5.0
FRAMES = 30


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a source sends; `fps` is measured by its time stamps over at most 30 frames."""

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


def probe(url: str, timeout_s: float) -> ProbeResult:
    """Watch `url` (an address with or without login, or a path) for a few frames.

    Raises SourceError where nothing answers within `timeout_s`, SourceAccessError for a refused login,
    SourceMissingError for a stream or file that is not there, SourceDataError for what is no video.
    """
