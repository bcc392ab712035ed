"""Where everything lies in a store's folder, and what the names say.

    lock                                                     held by the one process that writes
    barnsight.sqlite3                                        sessions, tracks, configuration history
    segments/<camera>/2026-11-04T13-00000007.seg             observations of one UTC hour or part of it, still growing
    observations/camera=<camera>/date=2026-11-04/13-00000007.parquet      the same, sealed
    quarantine/                                              what was found damaged

A segment becomes exactly one Parquet file of the same camera, hour and number; a busy hour has several. Numbers only
grow within a store, so a wall clock that jumps back never meets a name that is taken. Hours and dates are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

LOCK = "lock"
DATABASE = "barnsight.sqlite3"
SEGMENTS = "segments"
OBSERVATIONS = "observations"
QUARANTINE = "quarantine"

NS_PER_S = 1_000_000_000
S_PER_HOUR = 3600
NS_PER_HOUR = S_PER_HOUR * NS_PER_S

_CAMERA = r"[a-z0-9][a-z0-9-]{0,62}"
_SEGMENT = re.compile(rf"{SEGMENTS}/({_CAMERA})/(\d{{4}}-\d\d-\d\d)T(\d\d)-(\d+)\.seg")
_PARQUET = re.compile(rf"{OBSERVATIONS}/camera=({_CAMERA})/date=(\d{{4}}-\d\d-\d\d)/(\d\d)-(\d+)\.parquet")


def is_camera_name(name: str) -> bool:
    """Whether `name` can name a camera, and with that a folder."""
    return re.fullmatch(_CAMERA, name) is not None


@dataclass(frozen=True, slots=True)
class RecordName:
    """One hour of one camera, or part of it: `hour` counts UTC hours since 1970, `number` is unique in the store."""

    camera: str
    hour: int
    number: int

    @property
    def segment(self) -> Path:
        """Path of the segment, relative to the store."""
        return Path(SEGMENTS, self.camera, f"{self._moment:%Y-%m-%dT%H}-{self.number:08d}.seg")

    @property
    def parquet(self) -> Path:
        """Path of the sealed file, relative to the store."""
        moment = self._moment
        folder = Path(OBSERVATIONS, f"camera={self.camera}", f"date={moment:%Y-%m-%d}")
        return folder / f"{moment:%H}-{self.number:08d}.parquet"

    @property
    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.hour * S_PER_HOUR, timezone.utc)


def segments(root: Path) -> Iterator[RecordName]:
    """Name every segment of the store."""
    return _named(root, f"{SEGMENTS}/*/*.seg", _SEGMENT)


def parquet_files(root: Path) -> Iterator[RecordName]:
    """Name every sealed file of the store."""
    return _named(root, f"{OBSERVATIONS}/camera=*/date=*/*.parquet", _PARQUET)


def parquet_name(path: Path) -> RecordName | None:
    """Read the name off a sealed file's path relative to the store; None where it is not one."""
    return _parse(path.as_posix(), _PARQUET)


def _named(root: Path, pattern: str, names: re.Pattern[str]) -> Iterator[RecordName]:
    for path in list(root.glob(pattern)):  # listed at once: retention may remove a folder while who asks reads files
        name = _parse(path.relative_to(root).as_posix(), names)
        if name is not None:
            yield name


def _parse(path: str, names: re.Pattern[str]) -> RecordName | None:
    match = names.fullmatch(path)
    if match is None:
        return None
    camera, date, hour, number = match.groups()
    try:
        moment = datetime.strptime(f"{date}T{hour}+0000", "%Y-%m-%dT%H%z")
    except ValueError:
        return None
    return RecordName(camera, int(moment.timestamp()) // S_PER_HOUR, int(number))
