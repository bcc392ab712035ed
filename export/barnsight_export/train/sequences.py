"""From stored sequences to training samples: one view of a sequence, and some of its animals from frame to frame.

Sample number p of a stream depends on the seed and p alone, as those of pictures do (`samples`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from barnsight_export.datasets import simulated
from barnsight_export.errors import DataError, DataMissingError
from barnsight_export.train.augment import augment
from barnsight_export.train.samples import MIN_AREA_PX, area_mask, resized

# An animal begins where so much of it is seen, and is there as long as so much is.
BEGINS_VISIBLE = 0.3
STAYS_VISIBLE = 0.08
_MOST_PASSED_OVER = 100


class Sequence(NamedTuple):
    """T frames and N animals that are in sight on the first: what is to be followed."""

    images: Tensor  # (T, h, w, 3) uint8
    masks: Tensor  # (T, N, h/4, w/4) uint8, share of each mask pixel that the animal covers, times 255
    present: Tensor  # (T, N) bool


class Sequences(Dataset[Sequence]):
    """Views of the stored sequences of a folder, addressed by (position in the stream, frames).

    They are of `size` (height, width) in pixels.
    `augmented` views are as `augment` makes them, one and the same for all frames of a sequence, forward or backward.
    Raises DataMissingError where the folder holds none.
    """

    def __init__(self, folder: Path, *, size: tuple[int, int], animals: int, seed: int, augmented: bool = True) -> None:
        try:
            self._stored = simulated.Pictures(folder)
        except FileNotFoundError as error:
            raise DataMissingError(f"{error} (barnsight-export simulate --sequences does)") from error
        self.size, self.animals, self.seed, self.augmented = size, animals, seed, augmented

    def __len__(self) -> int:
        return len(self._stored)

    def require(self, frames: int) -> None:
        """Raise DataError where a stored sequence is shorter than so many frames."""
        if self._stored.frames < frames:
            raise DataError(
                f"{self._stored.folder}: holds sequences of {self._stored.frames} frames, the recipe follows {frames};"
                " render others (barnsight-export simulate --sequences)"
            )

    def __getitem__(self, key: tuple[int, int]) -> Sequence:
        """The sample at a position; sequences in which nothing can be followed are passed over.

        Raises DataError where a hundred of them in a row show nothing.
        """
        position, frames = key
        rng = np.random.default_rng((self.seed, position))
        for step in range(_MOST_PASSED_OVER):
            index = int(rng.integers(len(self))) if self.augmented else (position + step) % len(self)
            sample = self._view(index, frames, rng)
            if sample.masks.shape[1]:
                return sample
        raise DataError(f"{self._stored.folder}: no animal to follow in {_MOST_PASSED_OVER} sequences; render others")

    def _view(self, index: int, frames: int, rng: np.random.Generator) -> Sequence:
        images, ids, _, visible = self._stored[index]
        chosen = np.arange(frames)
        if self.augmented:
            chosen = np.sort(rng.permutation(len(images))[:frames])
            chosen = chosen[::-1] if rng.random() < 0.5 else chosen
            look = int(rng.integers(1 << 62))  # every frame is seen through the same camera
            views = [augment(images[k], ids[k], self.size, np.random.default_rng(look)) for k in chosen]
            images, ids = np.stack([view[0] for view in views]), np.stack([view[1] for view in views])
        else:
            plain = [resized(images[k], ids[k], self.size) for k in chosen]
            images, ids = np.stack([view[0] for view in plain]), np.stack([view[1] for view in plain])
        areas = np.stack([np.bincount(frame.ravel(), minlength=256)[1:] for frame in ids])  # (T, 255)
        least_px = MIN_AREA_PX * math.prod(self.size) / 320**2
        seen = visible[chosen]  # (T, 30)
        there = (areas[:, : seen.shape[1]] >= least_px) & (seen >= STAYS_VISIBLE)
        numbers = 1 + np.flatnonzero(there[0] & (seen[0] >= BEGINS_VISIBLE))
        numbers = np.sort(rng.permutation(numbers)[: self.animals])
        masks = np.stack([_masks(frame, numbers) for frame in ids])
        return Sequence(
            torch.from_numpy(images.copy()), torch.from_numpy(masks), torch.from_numpy(there[:, numbers - 1])
        )


def _masks(ids: NDArray[np.uint8], numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The masks (N, h/4, w/4) of some animals in an instance map (h, w)."""
    height, width = ids.shape
    masks = [area_mask(ids == number) for number in numbers]
    return np.array(masks, np.uint8).reshape(-1, height // 4, width // 4)
