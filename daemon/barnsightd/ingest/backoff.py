"""Exponential backoff with jitter: how long a camera that failed is left alone.

Each pause is drawn between half and all of a bound that doubles ("equal jitter", M. Brooker, AWS Architecture
Blog, 2015), so that forty cameras that lost the same switch do not come back in the same instant.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random


class Backoff:
    """Pauses from `min_s` to `max_s`; `draw` returns a number in [0, 1)."""

    def __init__(self, min_s: float, max_s: float, draw: Callable[[], float] = random) -> None:
        self._min_s = min_s
        self._max_s = max(min_s, max_s)
        self._draw = draw
        self._bound_s = min_s

    def next_s(self) -> float:
        """The pause after one more failure."""
        bound_s, self._bound_s = self._bound_s, min(2 * self._bound_s, self._max_s)
        return self._jittered(bound_s)

    def slowest_s(self) -> float:
        """The pause after a failure that trying again soon will not mend."""
        return self._jittered(self._max_s)

    def reset(self) -> None:
        """Begin again with the shortest pause."""
        self._bound_s = self._min_s

    def _jittered(self, bound_s: float) -> float:
        return max(self._min_s, bound_s * (1 + self._draw()) / 2)
