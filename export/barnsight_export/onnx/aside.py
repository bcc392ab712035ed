"""Folders that are written whole or not at all: everything is made aside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from barnsight_export.errors import OutputError


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
