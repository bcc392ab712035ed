"""Masks on the network's grid and in the frame: overlaps, boxes, enlargement, run-length codes.

A mask grid (h, w) covers the whole frame (H, W). Enlargement is bilinear on logits with pixel centers aligned
(as OpenCV and PyTorch with `align_corners=False`), then cut at 0, and is computed only where a blob can be.
"""

from __future__ import annotations

import warnings
from math import gcd

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

_BARELY = 0.1  # the logit of a pixel that was corrected (SAM 3's)


def intersections(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Count the pixels that each pair shares: (N, h, w), (M, h, w) -> (N, M)."""
    # not a BLAS product: its threads wait for each other where video decoding keeps the cores busy
    rows = a.astype(np.float32).reshape(len(a), a.shape[1] * a.shape[2])
    columns = b.astype(np.float32).reshape(len(b), b.shape[1] * b.shape[2])
    shared: NDArray[np.float32] = np.einsum("nk,mk->nm", rows, columns)
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
    """Enlarge one mask to the frame: (h, w) logits -> (H, W) bool."""
    mask = np.zeros(image_size, np.bool_)
    window, (top, left) = to_window(mask_logits, image_size)
    mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return mask


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
    (height, width), (h, w) = image_size, mask_logits.shape
    y, top, bottom = _span(int(rows[0]), int(rows[-1]), h, height)
    x, left, right = _span(int(columns[0]), int(columns[-1]), w, width)
    enlarged = cv2.resize(mask_logits[y, x], (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    return enlarged > 0, (top, left)


def box_px(mask_logits: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
    """The tight box in the frame of one mask (h, w), (4,) xyxy in pixels; zeros where the mask is empty."""
    window, (top, left) = to_window(mask_logits, image_size)
    if not window.any():
        return np.zeros(4, np.float32)
    box: NDArray[np.float32] = tight_boxes(window[None])[0] + np.array([left, top, left, top], np.float32)
    return box


def without_specks(mask_logits: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """One mask (h, w) with its specks removed and its holes filled, where they have `largest` pixels at most.

    Parts are joined along edges and corners. What has more than half of the mask is no speck (both as in SAM 3).
    """
    if largest < 1:
        return mask_logits
    mask = mask_logits > 0
    holes, specks = _small_parts(~mask, largest), _small_parts(mask, min(largest, int(mask.sum()) // 2))
    cleaned: NDArray[np.float32] = np.where(holes, _BARELY, np.where(specks, -_BARELY, mask_logits))
    return cleaned.astype(np.float32, copy=False)


def encode_rle(
    mask: NDArray[np.bool_], image_size: tuple[int, int] | None = None, corner: tuple[int, int] = (0, 0)
) -> bytes:
    """Compress a frame's mask to COCO's run-length string (column-major).

    `mask` (h, w) is what lies at `corner` (top, left) of the frame (H, W), the rest of which is empty, or the whole.
    """
    (height, width), (top, left) = image_size or mask.shape, corner
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).view(np.int8), axis=0)  # (h + 1, w): a run begins, or is over
    columns, rows = np.nonzero(edges.T)
    turns = (left + columns) * height + top + rows
    goes_on = turns[1:-1:2] == turns[2::2]  # from the bottom of the frame at the top of the next column
    kept = np.ones(len(turns), np.bool_)
    kept[1:-1:2] = kept[2::2] = ~goes_on
    counts = np.diff(turns[kept], prepend=0, append=height * width).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    code: bytes = coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)["counts"]
    return code


def decode_rle(counts: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of a COCO run-length string; `size` is (height, width)."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 hands its array over in the way that numpy 2 calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        mask: NDArray[np.uint8] = coco.decode({"counts": counts, "size": list(size)})
    return mask.view(np.bool_)


def _small_parts(mask: NDArray[np.bool_], largest: int) -> NDArray[np.bool_]:
    """The connected parts of a mask (h, w) that have `largest` pixels at most."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    small = statistics[:, cv2.CC_STAT_AREA] <= largest
    small[0] = False  # what is outside the mask
    parts: NDArray[np.bool_] = small[labels]
    return parts


def _span(first: int, last: int, cells: int, pixels: int) -> tuple[slice, int, int]:
    """The part of one axis that cells `first` to `last` decide: as cells, and as its first and end pixel.

    It holds one cell more on either side, below 0 and so of no effect, and is widened until it starts and ends where
    an edge of a cell is an edge of a pixel: then enlarging the part equals enlarging the whole.
    """
    step = cells // gcd(cells, pixels)
    start = max(first - 1, 0) // step * step
    end = min(-(-(last + 2) // step) * step, cells)
    return slice(start, end), start * pixels // cells, end * pixels // cells
