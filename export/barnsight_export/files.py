"""Files and folders that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def written_aside(folder: Path, last: str = "manifest.json") -> Iterator[Path]:
    """A fresh folder beside `folder` to write into; what it holds moves to `folder` once the block has ended well.

    A folder that exists keeps its other files; the file `last`, which vouches for the rest, moves in last. Nothing is
    left behind where the block fails. Raises OutputError where a file cannot be written.
    """
    folder = folder.resolve()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
        yield aside
        if folder.is_dir():
            for file in sorted(aside.iterdir(), key=lambda file: file.name == last):
                file.replace(folder / file.name)
        else:
            aside.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}; nothing was changed there: make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
