"""Files that appear whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path

from barnsight_engines.errors import ModelSetWriteError

ASIDE = ".tmp"


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `path`, so that a full disk or a power cut leaves what was there before. Raises ModelSetWriteError."""
    aside = path.with_name(path.name + ASIDE)
    try:
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> ModelSetWriteError:
    """What to say where the disk refuses `path`."""
    reason = error.strerror or str(error)
    return ModelSetWriteError(f"{path}: cannot be written ({reason}); free space there, or check its permissions")
