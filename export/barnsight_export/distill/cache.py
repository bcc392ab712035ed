"""Teacher features on disk: half precision, one file a frame, up to a budget of bytes.

    <folder>/<teacher>/<frame>.npz        an array a map, named as the map; zip's CRC tells a damaged file

`teacher` is the teacher's key and `frame` a hash of the frame's pixels, so no entry can outlive what it was made from.
What does not fit is computed again whenever it is needed.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from barnsight_export.distill.teacher import Teacher
from barnsight_export.errors import DataError
from barnsight_export.files import write_whole

Arrays = dict[str, NDArray[np.float16]]

_DAMAGE = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_OVERHEAD_BYTES = 1024  # zip and array headers of an entry, at most


class FeatureCache:
    """Entries of any teachers in `folder`, at most `budget_bytes` in all.

    Processes that share a folder share what is left of the budget when they open it.
    """

    def __init__(self, folder: Path, budget_bytes: int, processes: int = 1) -> None:
        self.folder = folder
        used = sum(path.stat().st_size for path in folder.glob("*/*.npz"))
        self.free_bytes = max(0, budget_bytes - used) // processes

    def read(self, teacher: str, frame: str) -> Arrays | None:
        """An entry; None where there is none, or where it is damaged, in which case it is removed."""
        path = self._path(teacher, frame)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
                return {name: entry[name] for name in entry.files}
        except FileNotFoundError:
            return None
        except _DAMAGE:
            self.free_bytes += path.stat().st_size
            path.unlink()
            return None

    def write(self, teacher: str, frame: str, maps: Arrays) -> bool:
        """Keep an entry if it fits; raises OutputError where the disk is full before the budget is."""
        size = sum(array.nbytes + _OVERHEAD_BYTES for array in maps.values())
        if size > self.free_bytes:
            return False
        advice = "free some space or lower --cache-gb, then go on with --resume: the run's checkpoint stands"
        path = self._path(teacher, frame)
        write_whole(path, lambda file: np.savez(file, **_named(maps)), advice)
        self.free_bytes -= path.stat().st_size
        return True

    def _path(self, teacher: str, frame: str) -> Path:
        return self.folder / teacher[:32] / f"{frame}.npz"


class CachedTeacher:
    """A teacher behind a cache, or without one; its maps are always rounded to half precision.

    Behind a cache they are computed frame by frame, so that they do not depend on which frames of a batch were kept.
    Without one a whole batch is computed at once, which a GPU does many times faster, and stays on its device; the last
    digits are then those of the batch's arithmetic, the same in each run that makes the same batches.
    """

    def __init__(self, teacher: Teacher, cache: FeatureCache | None, names: Sequence[str] | None = None) -> None:
        self.teacher, self.cache, self.names = teacher, cache, names

    def __call__(self, images: Tensor, frames: Sequence[str]) -> dict[str, Tensor]:
        """Maps (B, C, h, w) of pictures (B, 3, H, W) in 0..1 with their identities, on the pictures' device."""
        if self.cache is None:
            maps = self.teacher(images)
            return {name: _half(name, maps[name]).float() for name in self.names or maps}
        entries = [self._entry(self.cache, image, frame) for image, frame in zip(images, frames, strict=True)]
        return {
            name: torch.from_numpy(np.stack([entry[name] for entry in entries])).to(images.device).float()
            for name in entries[0]
        }

    def _entry(self, cache: FeatureCache, image: Tensor, frame: str) -> Arrays:
        kept = cache.read(self.teacher.key, frame)
        if kept is not None and (self.names is None or set(self.names) <= kept.keys()):
            return {name: kept[name] for name in self.names or kept}
        maps = self.teacher(image[None])
        entry: Arrays = {name: _half(name, maps[name][0]).cpu().numpy() for name in self.names or maps}
        cache.write(self.teacher.key, frame, entry)
        return entry


def frame_key(image: NDArray[np.uint8]) -> str:
    """The identity of a frame (H, W, 3): a hash of its pixels."""
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).hexdigest()


def _half(name: str, values: Tensor) -> Tensor:
    half = values.half()
    if not half.isfinite().all():
        reach = float(values.abs().max())
        raise DataError(
            f"the teacher's map '{name}' reaches {reach:g}, which half precision does not hold: check its checkpoint"
        )
    return half


def _named(maps: Arrays) -> dict[str, Any]:
    """Arrays as keyword arguments of a function whose own keywords have other types."""
    return dict(maps)
