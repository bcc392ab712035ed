"""Labeled pictures in COCO's instances format: one JSON file, and a folder that holds the pictures it names.

    {"images": [{"id": 1, "file_name": "pen.jpg", "height": 720, "width": 1280}],
     "annotations": [{"image_id": 1, "bbox": [left, top, width, height], "segmentation": ..., "iscrowd": 0}]}

An annotation with `iscrowd` or `ignore` marks what may be found or not. Categories are not read: every annotation is
an animal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from barnsight_export.datasets.mot import pixels_covered
from barnsight_export.errors import DataError, DataMissingError


@dataclass(frozen=True, slots=True)
class LabeledPicture:
    """One picture of `size` (height, width) px and its animals: boxes [left, top, width, height] px or COCO masks."""

    path: Path
    size: tuple[int, int]
    shapes: list[Any]
    ignored: list[bool]


def read_labels(path: Path, folder: Path, *, masks: bool = False) -> list[LabeledPicture]:
    """The pictures that the file `path` names, in its order, with their boxes, or their masks as run-length codes.

    Raises DataMissingError where the file or a picture in `folder` is not there, DataError where an entry is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries, annotations = content["images"], content["annotations"]
    except OSError as error:
        raise DataMissingError(f"{path}: {error.strerror or error}; name a file that can be read") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a COCO instances file; it needs the lists 'images' and 'annotations'") from None
    pictures = {}
    where = ""
    try:
        for number, entry in enumerate(entries):
            where = f"image {number}"
            if entry["id"] in pictures:
                raise ValueError(f"its id {entry['id']} is that of another image")
            size = int(entry["height"]), int(entry["width"])
            pictures[entry["id"]] = LabeledPicture(folder / entry["file_name"], size, [], [])
        for number, annotation in enumerate(annotations):
            where = f"annotation {number}"
            picture = pictures[annotation["image_id"]]
            shape = _mask(annotation["segmentation"], picture.size) if masks else _box(annotation["bbox"])
            picture.shapes.append(shape)
            picture.ignored.append(bool(annotation.get("iscrowd") or annotation.get("ignore")))
    except KeyError as error:
        raise DataError(f"{path}: {where}: {error} is missing or names nothing") from None
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: {where}: {error}") from None
    absent = next((picture.path for picture in pictures.values() if not picture.path.is_file()), None)
    if absent is not None:
        raise DataMissingError(f"{absent}: {path} names this picture; give the folder that holds it")
    if not pictures:
        raise DataError(f"{path}: names no picture")
    return list(pictures.values())


def _box(values: Sequence[float]) -> list[float]:
    left, top, width, height = (float(value) for value in values)
    if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
        raise ValueError(f"a box must be wider and higher than 0, and finite, got {values}")
    return [left, top, width, height]


def _mask(outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or a run-length code, compressed or not, as a compressed one."""
    if isinstance(outline, dict):
        if tuple(outline["size"]) != size:
            raise ValueError(f"its mask is for {outline['size']} pixels (height, width), its picture has {list(size)}")
        if isinstance(outline["counts"], str):
            if pixels_covered(outline["counts"]) != size[0] * size[1]:
                raise ValueError(f"its run-length code is not of {size[0]} x {size[1]} pixels")
            return outline
    elif not (isinstance(outline, list) and outline and all(map(_is_polygon, outline))):
        raise ValueError("its segmentation is neither polygons of three points or more nor a run-length code")
    codes: Any = coco.frPyObjects(outline, *size)
    return dict(coco.merge(codes) if isinstance(codes, Sequence) else codes)


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
