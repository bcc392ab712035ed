"""Files that survive a power cut: temporary name, fsync, rename, fsync of the folder; and faults with their errno.

The order is the one of fsync(2) and rename(2): a file's name becomes durable with its folder, not with the file.
"""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from barnsightd.errors import StoreError

TEMPORARY = ".tmp"


class StoreWriteError(StoreError):
    """The disk refused `op` (append, flush, seal, retention, database, set aside) with error `errno`."""

    def __init__(self, op: str, path: Path, cause: OSError) -> None:
        self.op = op
        self.errno = cause.errno or errnos.EIO
        reason = cause.strerror or str(cause)
        name = errnos.errorcode.get(self.errno, self.errno)
        super().__init__(f"{path}: {op} failed: {reason} ({name}); free space or check the disk")


@contextmanager
def writing(op: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreWriteError that names the operation and the path."""
    try:
        yield
    except OSError as cause:
        raise StoreWriteError(op, path, cause) from cause


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, and make their names durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def publish(target: Path, write: Callable[[BinaryIO], None]) -> int:
    """Let `write` fill a file that appears at `target` whole or not at all; return its size in bytes."""
    make_folder(target.parent)
    temporary = target.with_name(target.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)
    return size


def remove(path: Path) -> None:
    """Delete a file, if it is there, and make that durable."""
    path.unlink(missing_ok=True)
    fsync_folder(path.parent)
