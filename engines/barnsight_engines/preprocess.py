"""From a frame to the network's input, and the inverse for what comes back.

The network sees a plain resize to its own shape, as SAM 3 does: no letterbox, so the grid covers the whole frame and
the inverse is one scale per axis. An axis that is much too long is first halved, each time averaging pairs of pixels,
and the rest is bilinear: close to an area average, so thin legs do not alias away, at a sixth of its time.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsight_engines.errors import EngineError


def to_input(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Resize and normalise a frame: (H, W, 3) uint8 RGB -> (1, 3, h, w) float32, `size` being (h, w).

    `mean` and `std` are of values in 0..1. Raises EngineError for anything but such a frame.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise EngineError(f"a frame must be (H, W, 3) uint8, got {image.shape} {image.dtype}; convert it to RGB")
    resized = _resize(image, size)
    scale = 1 / (255 * np.asarray(std, np.float32))
    shift = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    channels = np.empty((1, 3, *size), np.float32)  # (h, w, 3) -> (1, 3, h, w)
    for c in range(3):
        np.multiply(resized[:, :, c], scale[c], out=channels[0, c])
        channels[0, c] += shift[c]
    return channels


def boxes_to_image(boxes: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
    """Scale boxes from shares of the picture to pixels of the frame, cut at its edges: (N, 4) xyxy -> (N, 4)."""
    height, width = image_size
    return np.clip(boxes, 0, 1) * np.array([width, height, width, height], np.float32)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W, 3) -> (h, w, 3)."""
    resized: NDArray[Any] = image
    sides = image.shape[:2]
    while any(n >= 2 * wanted for n, wanted in zip(sides, size, strict=True)):
        # bilinear at exactly one half is the mean of two neighbors
        sides = tuple(n // 2 if n >= 2 * wanted else n for n, wanted in zip(sides, size, strict=True))
        resized = cv2.resize(resized, sides[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.resize(resized, size[::-1], interpolation=cv2.INTER_LINEAR)
