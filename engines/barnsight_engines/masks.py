"""Masks on the network's grid and in the frame: overlaps, boxes, enlargement, run-length codes.

A mask grid (h, w) covers the whole frame (H, W). Enlargement is bilinear on logits with pixel centers aligned
(as OpenCV and PyTorch with `align_corners=False`), then cut at 0, and is computed only where a blob can be.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def intersections(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Count the pixels that each pair shares: (N, h, w), (M, h, w) -> (N, M)."""
    # float32 is exact up to 16.7 million pixels, and a matrix product is what the machine does best
    rows = a.reshape(len(a), -1).astype(np.float32)
    columns = b.reshape(len(b), -1).astype(np.float32)
    shared: NDArray[np.float32] = rows @ columns.T
    return shared


def areas(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Count the pixels of each mask: (N, h, w) -> (N,)."""
    counts: NDArray[np.float32] = np.count_nonzero(masks, axis=(1, 2)).astype(np.float32)
    return counts


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Intersection over union of each pair, 0 where both are empty: (N, h, w), (M, h, w) -> (N, M)."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - shared
    iou: NDArray[np.float32] = shared / np.maximum(union, 1)
    return iou


def tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The smallest box around each mask, xyxy with exclusive ends, zeros where empty: (N, h, w) -> (N, 4)."""
    columns: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=1)  # (N, h, w) -> (N, w)
    rows: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=2)  # (N, h, w) -> (N, h)
    width, height = columns.shape[1], rows.shape[1]
    boxes = np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            width - columns[:, ::-1].argmax(axis=1),
            height - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    ).astype(np.float32)
    boxes[~columns.any(axis=1)] = 0
    return boxes


def to_image(mask_logits: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Enlarge one mask to the frame: (h, w) logits -> (H, W) bool, in column order as run-length codes want it."""
    mask = np.zeros(image_size, np.bool_, order="F")
    window, (top, left) = to_window(mask_logits, image_size)
    mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return mask


def area_px(mask_logits: NDArray[np.float32], image_size: tuple[int, int]) -> int:
    """Count the frame's pixels that one mask covers, without enlarging more than its blob."""
    return int(np.count_nonzero(to_window(mask_logits, image_size)[0]))


def to_window(
    mask_logits: NDArray[np.float32], image_size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Enlarge one mask: (h, w) logits -> the part of the frame that can hold it, and its (top, left) there.

    The part is (0, 0) large where the mask is empty.
    """
    rows = np.flatnonzero((mask_logits > 0).any(axis=1))
    if len(rows) == 0:
        return np.zeros((0, 0), np.bool_), (0, 0)
    columns = np.flatnonzero((mask_logits > 0).any(axis=0))
    grid_rows, frame_rows = _span(rows[0], rows[-1], mask_logits.shape[0], image_size[0])
    grid_columns, frame_columns = _span(columns[0], columns[-1], mask_logits.shape[1], image_size[1])
    down = _bilinear(mask_logits.shape[0], image_size[0])[frame_rows, grid_rows]
    across = _bilinear(mask_logits.shape[1], image_size[1])[frame_columns, grid_columns]
    enlarged = down @ mask_logits[grid_rows, grid_columns] @ across.T  # (h', w') -> (H', W')
    return enlarged > 0, (frame_rows.start, frame_columns.start)


def encode_rle(mask: NDArray[np.bool_]) -> bytes:
    """Compress a mask (H, W) to COCO's run-length string (column-major)."""
    counts: bytes = coco.encode(np.asfortranarray(mask).view(np.uint8))["counts"]
    return counts


def decode_rle(counts: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of a COCO run-length string; `size` is (height, width)."""
    mask: NDArray[np.uint8] = coco.decode({"counts": counts, "size": list(size)})
    return mask.view(np.bool_)


def _span(first: int, last: int, cells: int, pixels: int) -> tuple[slice, slice]:
    """Where along one axis cells `first` to `last` have a say: the cells with their neighbors, and the pixels.

    Pixel p looks at position (p + 1/2) cells / pixels - 1/2, so only those between first - 1 and last + 1 matter.
    """
    pixels_per_cell = pixels / cells
    start = max(int((first - 0.5) * pixels_per_cell - 0.5), 0)
    stop = min(int((last + 1.5) * pixels_per_cell - 0.5) + 1, pixels)
    return slice(max(first - 1, 0), min(last + 2, cells)), slice(start, stop)


@lru_cache(maxsize=32)
def _bilinear(cells: int, pixels: int) -> NDArray[np.float32]:
    """The matrix (pixels, cells) that enlarges one axis bilinearly, the border repeated."""
    position = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    lower = position.astype(np.int64)
    upper = np.minimum(lower + 1, cells - 1)
    weights = np.zeros((pixels, cells), np.float32)
    row = np.arange(pixels)
    weights[row, lower] += 1 - (position - lower)
    weights[row, upper] += position - lower
    weights.flags.writeable = False  # it is shared by every caller
    return weights
