"""From stores of frames to the batches of an epoch: shuffled, shared out among processes, each with its view.

The view of a frame depends on seed, epoch and its place in the epoch alone, so training resumes in mid-epoch exactly,
and on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from barnsight_export.datasets.frames import Frames
from barnsight_export.distill.augment import PLAIN, Augmentation
from barnsight_export.distill.cache import frame_key

Place = tuple[int, int, int]  # frame, epoch, place in the epoch


class Shown(NamedTuple):
    """B frames as square pictures, who they are, and how the student is to view them."""

    images: Tensor  # (B, S, S, 3) uint8
    keys: tuple[str, ...]
    views: Tensor  # (B, 5), see `Augmentation.draw`


class Squares(Dataset[tuple[NDArray[np.uint8], str, NDArray[np.float32]]]):
    """Frames resized plainly to squares, as the engines do, by `Place`; without augmentation all views are plain."""

    def __init__(self, frames: Frames, size_px: int, augmentation: Augmentation | None, seed: int) -> None:
        self.frames, self.size_px, self.augmentation, self.seed = frames, size_px, augmentation, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, place: Place) -> tuple[NDArray[np.uint8], str, NDArray[np.float32]]:
        index, epoch, position = place
        image = self.frames[index]
        if image.shape[:2] != (self.size_px, self.size_px):
            image = np.asarray(cv2.resize(image, (self.size_px, self.size_px), interpolation=cv2.INTER_AREA), np.uint8)
        rng = np.random.default_rng((self.seed, epoch, position))
        return image, frame_key(image), PLAIN if self.augmentation is None else self.augmentation.draw(rng)


class Shuffled(Sampler[list[Place]]):
    """The batches of one epoch from batch `start` on: this process's share of each.

    Every frame comes once; what the last batch lacks is taken from the epoch's beginning.
    """

    def __init__(self, count: int, batch: int, seed: int, epoch: int, start: int, rank: int, processes: int) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(count)
        self.order = np.resize(order, batch_count(count, batch) * batch).tolist()
        self.batch, self.epoch, self.start, self.rank, self.processes = batch, epoch, start, rank, processes

    def __len__(self) -> int:
        return len(self.order) // self.batch - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch // self.processes
        for first in range(self.start * self.batch, len(self.order), self.batch):
            mine = range(first + self.rank * share, first + (self.rank + 1) * share)
            yield [(self.order[position], self.epoch, position) for position in mine]


def batch_count(count: int, batch: int) -> int:
    """Batches of an epoch of `count` frames."""
    return -(-count // batch)


def stack(samples: Sequence[tuple[NDArray[np.uint8], str, NDArray[np.float32]]]) -> Shown:
    """Stack samples of one size."""
    images, keys, views = zip(*samples, strict=True)
    return Shown(torch.from_numpy(np.stack(images)), tuple(keys), torch.from_numpy(np.stack(views)))


def as_input(images: Tensor) -> Tensor:
    """Bytes to the form that `Network` takes: (B, S, S, 3) uint8 -> (B, 3, S, S) in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255
