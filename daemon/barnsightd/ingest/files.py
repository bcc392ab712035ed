"""Frames of a recording, every one in order: video files (whatever GStreamer reads), GIFs, folders of pictures.

Time comes from the recording, so that the same file gives the same records each time: frame i is captured at
`start_ns` plus its presentation time, counted from the first frame.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsightd.errors import SourceAccessError, SourceDataError, SourceError, SourceMissingError
from barnsightd.ingest.faults import reason_of
from barnsightd.ingest.gst import build, gstreamer, is_installed, set_state, to_image
from barnsightd.ingest.pipelines import choose_decoder, file_pipeline
from barnsightd.ingest.rate import RateLimiter
from barnsightd.types import Frame

NS_PER_S = 1_000_000_000
PICTURES = (".jpg", ".jpeg", ".png")
FOLDER_FPS = 6.0
STALL_S = 20
STATE_CHANGE_S = 10.0
PULL_S = 0.2
ADVICE = "give a video such as H.264 in MP4"
NO_TIME = 2**64 - 1
USUAL_PERIOD_NS = NS_PER_S // 25

Picture = tuple[NDArray[np.uint8], int]


def read_frames(
    source: Path, *, camera: str, fps: float | None = None, start_ns: int | None = None
) -> Generator[Frame, None, None]:
    """Yield the frames of `source` as `camera` would have delivered them, as fast as they are asked for.

    `fps` thins a video to at most that rate, and is the rate at which the pictures of a folder were taken (6 when
    left out). `start_ns` is the wall-clock time of the first frame, the file's modification time when left out.
    `monotonic_ns` of the frames counts from 0. Raises SourceMissingError, SourceAccessError, SourceDataError or
    SourceError.
    """
    with _reading(source):
        if not source.exists():
            raise SourceMissingError(f"{source} does not exist; give a video file or a folder of pictures")
        origin_ns = source.stat().st_mtime_ns if start_ns is None else start_ns
        pictures = _read_folder(source, fps or FOLDER_FPS) if source.is_dir() else _thin(_read_video(source), fps)
        try:
            for index, (image, at_ns) in enumerate(pictures):
                yield Frame(camera, index, origin_ns + at_ns, at_ns, image)
        finally:
            pictures.close()


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn an operating system's refusal to read `source` into a clear error."""
    try:
        yield
    except PermissionError as error:
        raise SourceAccessError(f"{error.filename or source} may not be read; give this user the right to") from error
    except OSError as error:
        raise SourceError(f"{error.filename or source} cannot be read ({error.strerror}); look at the disk") from error


def _thin(pictures: Generator[Picture, None, None], fps: float | None) -> Generator[Picture, None, None]:
    limiter = RateLimiter(fps) if fps else None
    try:
        for image, at_ns in pictures:
            if limiter is None or limiter.keep(at_ns):
                yield image, at_ns
    finally:
        pictures.close()


def _read_folder(folder: Path, fps: float) -> Generator[Picture, None, None]:
    """The pictures of a folder in the order of their names, `fps` of them a second."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not paths:
        raise SourceDataError(f"{folder} holds no .jpg or .png picture; give a folder of pictures or a video file")
    for index, path in enumerate(paths):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceDataError(f"{path} is not a picture that can be read; remove it or replace it")
        yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), round(index * NS_PER_S / fps)


def _read_video(path: Path) -> Generator[Picture, None, None]:
    """Every frame of a video file with its time after the first one."""
    if _is_cut_off(path):
        raise SourceDataError(f"{path} is not a video that can be read: it was cut off before its index; {ADVICE}")
    Gst = gstreamer()
    pipeline = build(file_pipeline(choose_decoder("auto", is_installed)))
    pipeline.get_by_name("source").set_property("location", str(path))
    timeline = Timeline()
    try:
        if not set_state(pipeline, Gst.State.PLAYING, STATE_CHANGE_S):
            raise SourceError(f"{path}: GStreamer has not started within {STATE_CHANGE_S:g} s")
        while (sample := _pull(pipeline, path)) is not None:
            buffer = sample.get_buffer()
            yield to_image(sample), timeline.place(buffer.pts, buffer.duration)
        if timeline.is_empty:
            raise SourceDataError(f"{path} holds no video; give a video file or a folder of pictures")
    finally:
        set_state(pipeline, Gst.State.NULL, STATE_CHANGE_S)


def _is_cut_off(path: Path) -> bool:
    """Whether an MP4 file lacks its index (box `moov`, ISO/IEC 14496-12), as when a recorder lost power.

    GStreamer's decodebin now and then swallows the error of this, the commonest of broken files.
    """
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return False
        while offset + 8 <= size:
            file.seek(offset)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if kind in (b"moov", b"moof"):
                return offset + length > size
            if length < 8:
                break
            offset += length
    return True


def _pull(pipeline: Any, path: Path) -> Any:
    """The next sample, None at the end of the file. Raises SourceDataError for what is no video, or broken."""
    Gst = gstreamer()
    sink, bus = pipeline.get_by_name("sink"), pipeline.get_bus()
    deadline_ns = time.monotonic_ns() + STALL_S * NS_PER_S
    while time.monotonic_ns() < deadline_ns:
        sample = sink.try_pull_sample(round(PULL_S * NS_PER_S))
        if sample is not None or sink.is_eos():
            return sample
        message = bus.pop_filtered(Gst.MessageType.ERROR)
        if message is not None:
            error, _debug = message.parse_error()
            kind = SourceError if reason_of(error.domain, error.code) == "error" else SourceDataError
            detail = error.message.strip().rstrip(".")
            raise kind(f"{path} is not a video that can be read (GStreamer: {detail}); {ADVICE}")
    raise SourceError(f"{path} gave no frame within {STALL_S} s; look at the disk, or {ADVICE}")


class Timeline:
    """Turns the time stamps of a file into times that begin at 0 and always increase.

    The frames of a GIF all claim the time 0 and tell only how long they last; other files may lack a stamp.
    """

    def __init__(self) -> None:
        self._first_ns: int | None = None
        self._last_ns = -1
        self._next_ns = 0

    @property
    def is_empty(self) -> bool:
        """Whether no frame was placed yet."""
        return self._first_ns is None

    def place(self, pts_ns: int, duration_ns: int) -> int:
        """The time of the next frame; both arguments may be GStreamer's "none"."""
        if self._first_ns is None:
            self._first_ns = 0 if pts_ns >= NO_TIME else pts_ns
        at_ns = self._next_ns if pts_ns >= NO_TIME else pts_ns - self._first_ns
        if at_ns <= self._last_ns:
            at_ns = self._next_ns
        self._last_ns = at_ns
        self._next_ns = at_ns + (duration_ns if 0 < duration_ns < NO_TIME else USUAL_PERIOD_NS)
        return at_ns
