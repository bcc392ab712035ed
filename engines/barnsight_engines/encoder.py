"""The image encoder: one frame in, the feature pyramid that every other engine reads out.

Levels are named by their scale on the token grid h x w: `d4` (1, C, 4h, 4w), `d2` (1, C, 2h, 2w), `d1` (1, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.manifest import Normalization
from barnsight_engines.preprocess import to_input

Features: TypeAlias = Mapping[str, NDArray[np.float32]]


class Encoder:
    """Preprocess and infer; `image_size` is the (height, width) of the network's input in pixels."""

    def __init__(self, backend: Backend, image_size: tuple[int, int], normalization: Normalization) -> None:
        self.backend = backend
        self._image_size = image_size
        self._normalization = normalization

    def encode(self, image: NDArray[np.uint8]) -> Features:
        """Features of a frame (H, W, 3) uint8 RGB. Raises EngineError."""
        return self.backend.run(
            {"image": to_input(image, self._image_size, self._normalization.mean, self._normalization.std)}
        )
