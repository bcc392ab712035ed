"""Draws what the tracker sees on a frame: each animal's mask, box and number, in a color that stays its own."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsight_engines.masks import to_image
from barnsightd.types import Frame, Track, TrackSource

MASK_OPACITY = 0.38
GOLDEN_RATIO = 0.618034


def color_of(track: int) -> tuple[int, int, int]:
    """Give a track its RGB color: hues a golden angle apart, so that neighbors in number differ in color."""
    red, green, blue = colorsys.hsv_to_rgb((track * GOLDEN_RATIO) % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(frame: Frame, tracks: Iterable[Track]) -> NDArray[np.uint8]:
    """Draw the tracks on a copy of the frame: (H, W, 3) uint8 RGB."""
    picture: NDArray[np.uint8] = frame.image.copy()
    height, width = picture.shape[:2]
    scale = max(height, width) / 1280
    for track in tracks:
        color = color_of(track.track)
        mask = to_image(track.mask_logits, (height, width))  # (h, w) -> (H, W)
        tint = np.array(color, np.float32) * MASK_OPACITY
        picture[mask] = (picture[mask] * (1 - MASK_OPACITY) + tint).astype(np.uint8)
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, outline, -1, color, max(1, round(2 * scale)), cv2.LINE_AA)
        x0, y0, x1, y1 = (round(float(edge)) for edge in track.box_px)
        if track.source is TrackSource.PROPAGATED:
            cv2.rectangle(picture, (x0, y0), (x1, y1), color, 1)
        _label(picture, f"{track.track}", (x0 + x1) // 2, (y0 + y1) // 2, color, scale)
    return picture


def to_jpeg(picture: NDArray[np.uint8], quality: int = 88) -> bytes:
    """Encode an (H, W, 3) uint8 RGB picture as JPEG."""
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ValueError(f"JPEG encoding failed for a picture of shape {picture.shape}")
    return bytes(data)


def _label(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int], scale: float) -> None:
    font, size, weight = cv2.FONT_HERSHEY_SIMPLEX, 0.8 * scale, max(1, round(2 * scale))
    (width, height), _ = cv2.getTextSize(text, font, size, weight)
    origin = (x - width // 2, y + height // 2)
    cv2.putText(picture, text, origin, font, size, (0, 0, 0), weight + 2, cv2.LINE_AA)
    cv2.putText(picture, text, origin, font, size, color, weight, cv2.LINE_AA)
