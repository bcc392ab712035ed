"""Tracks on disk, in the two forms that evaluation reads: boxes as MOT Challenge text, masks as JSON lines.

Boxes (`gt.txt`, `tracks.txt`), one per line, 1-based frame and pixel coordinates:

    frame,track,left,top,width,height,confidence[,x,y,z]

Masks (`masks.jsonl`), one per line, with COCO's compressed run-length string and (height, width):

    {"frame": 1, "track": 3, "size": [720, 1280], "counts": "...", "ignore": false}

In truth, confidence 0 or `ignore` marks an animal that a tracker may follow or not. Rows come in any order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from barnsight_export.errors import DataError, DataMissingError

BOX_COLUMNS = "frame,track,left,top,width,height,confidence"

Shape = list[float] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """One animal on one frame: a box [left, top, width, height] in pixels, or a COCO run-length mask."""

    frame: int
    track: int
    shape: Shape
    ignored: bool


def read_boxes(path: Path) -> list[Mark]:
    """Read MOT text, ordered by frame and track; DataError names the first line that is wrong."""
    return _read(path, _box)


def read_masks(path: Path) -> list[Mark]:
    """Read mask JSON lines, ordered by frame and track; DataError names the first line that is wrong."""
    marks = _read(path, _mask)
    sizes = {tuple(mark.shape["size"]): mark for mark in marks if isinstance(mark.shape, dict)}
    if len(sizes) > 1:
        raise DataError(f"{path}: masks of several sizes: {sorted(sizes)}; one file holds one camera's frames")
    return marks


def overlaps(truth: list[Mark], found: list[Mark]) -> NDArray[np.float64]:
    """Intersection over union of the shapes of one frame: (N, M), for N truths and M finds of one kind.

    DataError where masks differ in size.
    """
    if not truth or not found:
        return np.zeros((len(truth), len(found)))
    iou = coco.iou([mark.shape for mark in truth], [mark.shape for mark in found], [0] * len(found))
    if np.min(iou) < 0:
        raise DataError(f"masks of two sizes are compared on frame {truth[0].frame}: is it the same clip?")
    return np.asarray(iou, np.float64)


def _read(path: Path, parse: Callable[[str], Mark]) -> list[Mark]:
    marks: list[Mark] = []
    seen: dict[tuple[int, int], int] = {}
    for number, line in _lines(path):
        try:
            mark = parse(line)
            if mark.frame < 1:
                raise ValueError(f"frame must be 1 or more, got {mark.frame}")
            if mark.track < 0:
                raise ValueError(f"track must be 0 or more, got {mark.track}")
            key = mark.frame, mark.track
            if seen.setdefault(key, number) != number:
                raise ValueError(f"track {mark.track} is on frame {mark.frame} already, in line {seen[key]}")
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        marks.append(mark)
    return sorted(marks, key=lambda mark: (mark.frame, mark.track))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text; expected MOT lines or mask JSON lines") from None
    except OSError as error:
        raise DataMissingError(f"{path}: {error.strerror or error}; name a file that can be read") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _box(line: str) -> Mark:
    if line.startswith("{"):
        raise ValueError("this is a mask; add --masks to compare masks")
    columns = line.split(",")
    if not 6 <= len(columns) <= 10:
        raise ValueError(f"expected 6 to 10 columns {BOX_COLUMNS}, got {len(columns)}")
    values = [_number(column) for column in columns]
    left, top, width, height = values[2:6]
    if width <= 0 or height <= 0:
        raise ValueError(f"a box must be wider and higher than 0, got {width:g} x {height:g}")
    return Mark(
        frame=_whole("frame", values[0]),
        track=_whole("track", values[1]),
        shape=[left, top, width, height],
        ignored=len(values) > 6 and values[6] == 0,
    )


def _mask(line: str) -> Mark:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}; without --masks boxes are read") from None
    if not isinstance(row, dict) or not {"frame", "track", "size", "counts"} <= row.keys():
        raise ValueError('expected an object with "frame", "track", "size" and "counts"')
    for key in ("frame", "track"):
        if type(row[key]) is not int:
            raise ValueError(f'"{key}" must be a whole number, got {row[key]!r}')
    size, counts = row["size"], row["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise ValueError(f'"size" must be [height, width] in pixels, got {size!r}')
    shape = {"size": size, "counts": counts}
    if not isinstance(counts, str) or pixels_covered(counts) != size[0] * size[1]:
        raise ValueError(f'"counts" is not a COCO run-length string of {size[0]} x {size[1]} pixels')
    return Mark(row["frame"], row["track"], shape, ignored=bool(row.get("ignore", False)))


def pixels_covered(counts: str) -> int:
    """How many pixels a compressed run-length string spans, -1 where it is none.

    pycocotools decodes damaged strings without complaint, so the runs are summed here: each is a little-endian
    number of 5-bit digits offset by 48, bit 5 saying that more follow; from the fourth on they are differences to
    the run before the last.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return -1
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value, shift = 0, 0
    return sum(runs) if shift == 0 else -1


def _number(column: str) -> float:
    try:
        value = float(column)
    except ValueError:
        raise ValueError(f"expected numbers {BOX_COLUMNS}, got {column.strip()!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {column.strip()!r}")
    return value


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value:g}")
    return int(value)
