"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from barnsight_export.errors import OutputError


def write_whole(path: Path, write: Callable[[BinaryIO], object], advice: str) -> None:
    """Let `write` fill a file beside `path`, then put it in the place of `path`.

    Raises OutputError, with `advice` as the next step, where the disk is full or refuses; what stood at `path` stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise OutputError(f"{path}: {reason}; {advice}") from error
    finally:
        draft.unlink(missing_ok=True)
