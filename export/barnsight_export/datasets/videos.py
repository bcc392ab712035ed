"""Frames of any folder of videos: sampled evenly, decoded by OpenCV whenever they are asked for.

A video is opened anew for each frame, so that a store of frames can be shared with worker processes and holds nothing.
Training and validation are told apart by video, never by frame: neighbors in time are nearly the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsight_export.errors import DataError, DataMissingError

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))
VALIDATION_EVERY = 10  # every tenth video validates, at least one


@dataclass(frozen=True, slots=True)
class Video:
    """A video file and the frames that are taken from it, by index from 0."""

    path: Path
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: videos that can be read, and the names of those that cannot."""

    videos: tuple[Video, ...]
    broken: tuple[Path, ...]


class VideoFrames:
    """The sampled frames of several videos, one after the other, as (H, W, 3) uint8 RGB."""

    def __init__(self, videos: Sequence[Video]) -> None:
        self.videos = tuple(videos)
        self._ends = list(accumulate(len(video.frames) for video in self.videos))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Decode one frame; raises DataError where the video does not give it any more."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        video = self.videos[number]
        frame = video.frames[index - self._ends[number]]  # counted from the end of this video's
        image = read_frame(video.path, frame)
        if image is None:
            raise DataError(f"{video.path}: frame {frame} cannot be decoded; was the file changed or cut?")
        return image


def find_videos(folder: Path, frames_each: int) -> Found:
    """The videos under a folder, in order of their paths, with up to `frames_each` evenly spaced frames each.

    Raises DataMissingError where there is no folder or no video in it, DataError where no video can be read.
    """
    if not folder.is_dir():
        raise DataMissingError(f"{folder}: no such folder; name one that holds videos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataMissingError(f"{folder}: no videos in it; expected files that end in {', '.join(sorted(SUFFIXES))}")
    sampled = [Video(path, sample_evenly(path, frames_each)) for path in paths]
    broken = tuple(video.path for video in sampled if not video.frames)
    if len(broken) == len(sampled):
        names = ", ".join(path.name for path in broken[:5]) + (", …" if len(broken) > 5 else "")
        raise DataError(f"{folder}: none of its {len(broken)} videos can be decoded ({names}); convert or replace them")
    return Found(tuple(video for video in sampled if video.frames), broken)


def split_videos(videos: Sequence[Video]) -> tuple[VideoFrames, VideoFrames]:
    """Frames to train on and frames to validate with: every tenth video, or the last; of a single one its last tenth.

    Raises DataError where a single video has a single frame.
    """
    if len(videos) == 1:
        (only,) = videos
        cut = len(only.frames) - -(-len(only.frames) // VALIDATION_EVERY)
        if not cut:
            raise DataError(f"{only.path}: one frame is too little to train and validate; add videos")
        first, last = only.frames[:cut], only.frames[cut:]
        return VideoFrames([Video(only.path, first)]), VideoFrames([Video(only.path, last)])
    chosen = set(range(VALIDATION_EVERY - 1, len(videos), VALIDATION_EVERY)) or {len(videos) - 1}
    train = [video for number, video in enumerate(videos) if number not in chosen]
    return VideoFrames(train), VideoFrames([videos[number] for number in sorted(chosen)])


def sample_evenly(path: Path, count: int) -> tuple[int, ...]:
    """Indices of up to `count` frames, each from the middle of its stretch of the video; none where it is broken.

    A container's own count is believed only if the last frame that it promises can be decoded.
    """
    total = _promised_frames(path)
    frames = _middles(total, count)
    if total and read_frame(path, frames[-1]) is None:
        frames = _middles(_decodable_frames(path), count)
    return frames


def read_frame(path: Path, index: int) -> NDArray[np.uint8] | None:
    """Frame `index` of a video (H, W, 3) RGB, None where there is none."""
    capture = cv2.VideoCapture(str(path))
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        read, image = capture.read()
    finally:
        capture.release()
    return np.ascontiguousarray(image[..., ::-1], np.uint8) if read else None


def _middles(total: int, count: int) -> tuple[int, ...]:
    count = min(count, total)
    return tuple((2 * k + 1) * total // (2 * count) for k in range(count))


def _promised_frames(path: Path) -> int:
    """What the container says, at least 1 where the video opens at all and says nothing sensible."""
    capture = cv2.VideoCapture(str(path))
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()


def _decodable_frames(path: Path) -> int:
    """How many frames decode from the beginning on."""
    capture = cv2.VideoCapture(str(path))
    try:
        total = 0
        while capture.read()[0]:
            total += 1
        return total
    finally:
        capture.release()
