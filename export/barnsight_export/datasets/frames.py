"""Stores of frames without truth, whatever they come from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from barnsight_export.datasets.simulated import Pictures


class Frames(Protocol):
    """A store of frames (H, W, 3) uint8 RGB; sizes may differ."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...


class Images:
    """The pictures of a simulated store without their truth."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self._pictures[index][0]
