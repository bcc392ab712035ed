"""When each term of the distillation loss counts: always (the paper), or direction first and scale later."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from barnsight_export.distill.losses import Weights

Schedule = Literal["fixed", "direction-then-scale"]

# Shares of a run of 100 epochs: the second cosine cycle of the learning rate, epochs 15 to 45.
FADE_STARTS, FADE_ENDS = 0.15, 0.45


def weights_at(schedule: Schedule, weights: Weights, progress: float) -> Weights:
    """The weights when a share `progress` of the longest run has passed.

    `fixed` holds them. `direction-then-scale` begins with the terms that know no length (direction, cosine, and
    attention or intermediate matching where they are on); scale and magnitude then fade in along a line.
    """
    if schedule == "fixed":
        return weights
    share = min(1.0, max(0.0, (progress - FADE_STARTS) / (FADE_ENDS - FADE_STARTS)))
    return replace(weights, scale=share * weights.scale, magnitude=share * weights.magnitude)
