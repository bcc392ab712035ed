"""Few frames that differ: day and night, color and infrared, empty and crowded.

A frame is described by its brightness, its contrast, its saturation (infrared has none) and the density of its edges
(animals, bars and litter make them). Each next frame is the one least like all that were chosen before: the greedy
k-center algorithm (Gonzalez 1985).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsight_export.datasets.frames import Frames

LOOKED_AT = 10  # frames that are looked at for each that is chosen
_SIDE = 96


def choose_varied(frames: Frames, count: int) -> list[int]:
    """Indices of `count` frames that differ most, or of all where there are no more; the most usual one first."""
    looked_at = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), LOOKED_AT * count)).round().astype(int))
    if len(looked_at) <= count:
        return [int(index) for index in looked_at]
    return [int(looked_at[row]) for row in spread([describe(frames[int(index)]) for index in looked_at], count)]


def describe(image: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Brightness, contrast, saturation and density of edges of a frame (H, W, 3)."""
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    saturation = (small.max(axis=2).astype(np.float32) - small.min(axis=2)).mean()
    edges = np.abs(cv2.Laplacian(gray, cv2.CV_32F)).mean()
    return float(gray.mean()), float(gray.std()), float(saturation), float(edges)


def spread(points: Sequence[Sequence[float]], count: int) -> list[int]:
    """Indices of `count` points that lie far apart, each dimension weighing alike; the most central one first."""
    values = np.asarray(points, np.float64)  # (N, D)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    chosen = [int(np.abs(values).sum(axis=1).argmin())]
    distance = np.linalg.norm(values - values[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(values - values[chosen[-1]], axis=1))
    return chosen
