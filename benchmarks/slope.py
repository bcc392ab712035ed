"""How fast something grows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def fit_slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares: slope and its standard error."""
    away = x - x.mean()
    slope = float((away * y).sum() / (away**2).sum())
    rest = y - y.mean() - slope * away
    return slope, math.sqrt(float((rest**2).sum()) / max(1, len(x) - 2) / float((away**2).sum()))
