"""Where an animal will be: a constant-velocity filter with friction on the center of its box.

The velocity is an Ornstein-Uhlenbeck process (R. A. Singer, 1970, with velocity in place of acceleration): it
decays with `FRICTION_S`, so that an animal out of sight is expected to slow down and not to leave the pen. For
velocity variance s², time constant T and a = exp(-t/T), the noise that a step of t seconds adds is

    var(position) = s² T² (2t/T - 3 + 4a - a²)    cov = s² T (1 - a)²    var(velocity) = s² (1 - a²)

Variances are in units of the animal's own size, which makes one set of constants serve piglet and cow, any
distance and any frame rate; x and y then share one 2x2 covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

FRICTION_S = 1.0
SPEED_SIZES_S = 1.0
MEASUREMENT_SIZES = 0.05


def center_of(box_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """Centers of xyxy boxes: (..., 4) -> (..., 2)."""
    return (box_px[..., :2] + box_px[..., 2:]).astype(np.float64) / 2


def size_of(box_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """The side in pixels of the square with a box's area: (..., 4) -> (...,)."""
    sides_px = np.maximum(box_px[..., 2:] - box_px[..., :2], 1.0).astype(np.float64)
    return np.asarray(np.sqrt(sides_px.prod(axis=-1)))


@dataclass(slots=True)
class Motion:
    """Position and velocity of one animal, and how sure they are.

    `center_px` and `velocity_px_s` are (2,) float64; `covariance` is (2, 2) of position and velocity in sizes.
    """

    center_px: NDArray[np.float64]
    velocity_px_s: NDArray[np.float64]
    size_px: float
    covariance: NDArray[np.float64]

    @classmethod
    def at_rest(cls, box_px: NDArray[np.float32]) -> Motion:
        """An animal seen for the first time: position known, velocity not."""
        return cls(
            center_px=center_of(box_px),
            velocity_px_s=np.zeros(2),
            size_px=float(size_of(box_px)),
            covariance=np.diag([MEASUREMENT_SIZES**2, SPEED_SIZES_S**2]),
        )

    @property
    def spread_sizes(self) -> float:
        """Standard deviation per axis of where the next detection's center will fall, in sizes."""
        return sqrt(self.covariance[0, 0] + MEASUREMENT_SIZES**2)

    def predict(self, elapsed_s: float) -> None:
        """Move on by `elapsed_s` seconds without looking."""
        step, noise = _transition(elapsed_s)
        self.center_px = self.center_px + step[0, 1] * self.velocity_px_s
        self.velocity_px_s = step[1, 1] * self.velocity_px_s
        self.covariance = step @ self.covariance @ step.T + noise

    def update(self, box_px: NDArray[np.float32]) -> None:
        """Take in a detection's box, (4,) xyxy."""
        surprise_px = center_of(box_px) - self.center_px
        gain = self.covariance[:, 0] / (self.covariance[0, 0] + MEASUREMENT_SIZES**2)
        self.center_px = self.center_px + gain[0] * surprise_px
        self.velocity_px_s = self.velocity_px_s + gain[1] * surprise_px
        self.covariance = self.covariance - np.outer(gain, self.covariance[0])
        self.size_px = float(size_of(box_px))


@lru_cache(maxsize=8)
def _transition(elapsed_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How a state moves on in `elapsed_s` seconds, and the covariance that this adds; one for all animals."""
    decay = exp(-elapsed_s / FRICTION_S)
    step = np.array([[1.0, FRICTION_S * (1 - decay)], [0.0, decay]])
    var_position = FRICTION_S**2 * (2 * elapsed_s / FRICTION_S - 3 + 4 * decay - decay**2)
    cov = FRICTION_S * (1 - decay) ** 2
    return step, SPEED_SIZES_S**2 * np.array([[var_position, cov], [cov, 1 - decay**2]])
