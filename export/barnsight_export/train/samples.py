"""From stored pictures to training batches: a reproducible stream of augmented views with their targets.

Sample number p of a stream depends on the seed and p alone, so training resumes exactly where it stopped, and the
store of pictures may grow while it runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from barnsight_export.datasets import simulated
from barnsight_export.train.augment import augment

TARGET, PADDING, IGNORED = 1, 0, -1
# An animal smaller or more hidden than this is neither to be found nor a mistake to find.
MIN_AREA_PX = 40.0  # at 320 px
MIN_VISIBLE = 0.12
_WRONG_CONCEPT_SHARE = 0.1

Address = tuple[int, tuple[int, int]]  # a sample's position in the stream, and its (height, width)


class Picture(NamedTuple):
    """A picture with its truth; instance k of `ids` is visible to `visible_fraction[k - 1]`."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    ids: NDArray[np.uint8]  # (H, W), 0 is background
    concept: int | None  # None: an empty scene
    visible_fraction: NDArray[np.float32]


class Pictures(Protocol):
    """A store of pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture: ...


class Simulated:
    """Pictures of simulated barns (`datasets.simulated`) as training reads them, without the most crowded ones."""

    def __init__(self, folder: Path, most_animals: int | None = None) -> None:
        self._pictures = simulated.Pictures(folder)
        animals = (self._pictures.visible_fraction > 0).sum(axis=1)
        self._chosen = np.flatnonzero(animals <= (most_animals or simulated.MAX_ANIMALS))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Picture:
        image, ids, species, visible_fraction = self._pictures[int(self._chosen[index])]
        return Picture(image, ids, species if ids.any() else None, visible_fraction)


class Targets(NamedTuple):
    """What is to be found in one picture: N instances, all visible ones or none where the prompt is wrong."""

    boxes: NDArray[np.float32]  # (N, 4) normalized cxcywh
    kinds: NDArray[np.int64]  # (N,) TARGET or IGNORED
    masks: NDArray[np.uint8]  # (N, h/4, w/4), share of each mask pixel that the animal covers, times 255


class Batch(NamedTuple):
    """B samples with their instances padded to the largest number N."""

    images: Tensor  # (B, h, w, 3) uint8
    concepts: Tensor  # (B,) int64
    boxes: Tensor  # (B, N, 4)
    kinds: Tensor  # (B, N) int64
    masks: Tensor  # (B, N, h/4, w/4) uint8

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(value.to(device, non_blocking=True) for value in self))


def find_targets(
    ids: NDArray[np.uint8], visible_fraction: NDArray[np.float32], full_area_px: NDArray[np.float32] | None = None
) -> Targets:
    """Boxes and masks of the instances in a map (h, w).

    `full_area_px` is what each instance would cover had the view not cut or covered it; absent, nothing was cut.
    """
    height, width = ids.shape
    boxes, kinds, masks = [], [], []
    for number, region in enumerate(ndimage.find_objects(ids)):
        if not region:  # this animal is nowhere in view
            continue
        whole = ids == number + 1
        area_px = float(np.count_nonzero(whole[region]))
        rows, columns = region
        top, bottom, left, right = rows.start / height, rows.stop / height, columns.start / width, columns.stop / width
        visible = float(visible_fraction[number]) if number < len(visible_fraction) else 1.0
        if full_area_px is not None:
            visible *= min(1.0, area_px / max(float(full_area_px[number]), 1.0))
        large = area_px * 320**2 / (height * width) >= MIN_AREA_PX
        boxes.append(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
        kinds.append(TARGET if large and visible >= MIN_VISIBLE else IGNORED)
        masks.append(area_mask(whole))
    return Targets(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kinds, np.int64),
        np.array(masks, np.uint8).reshape(-1, height // 4, width // 4),
    )


def resized(
    image: NDArray[np.uint8], ids: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture (H, W, 3) and its instance map (H, W) at `size` (height, width), without augmentation."""
    return (
        np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8),
    )


def area_mask(whole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask (h, w) at a quarter of the size: what it covers of each pixel, times 255."""
    height, width = whole.shape
    quarter = (width // 4, height // 4)
    return np.asarray(cv2.resize(whole.view(np.uint8) * 255, quarter, interpolation=cv2.INTER_AREA), np.uint8)


class Views(Dataset[tuple[NDArray[np.uint8], int, Targets]]):
    """Augmented views of stored pictures, addressed by (position in the stream, (height, width) in pixels)."""

    def __init__(self, pictures: Pictures, concepts: int, seed: int) -> None:
        self.pictures = pictures
        self.concepts = concepts
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Address) -> tuple[NDArray[np.uint8], int, Targets]:
        position, size = key
        rng = np.random.default_rng((self.seed, position))
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        image, ids, area_scale = augment(picture.image, picture.ids, size, rng)
        concept = picture.concept
        if concept is None or rng.random() < _WRONG_CONCEPT_SHARE:
            offset = int(rng.integers(concept is not None, self.concepts))
            concept = ((concept or 0) + offset) % self.concepts
            ids = np.zeros_like(ids)
        full_area_px = np.bincount(picture.ids.ravel(), minlength=256)[1:].astype(np.float32) * area_scale
        return image, concept, find_targets(ids, picture.visible_fraction, full_area_px)


class Stream(Sampler[list[Address]]):
    """Endless batches of (position, size) from a position on; `stride` skips what other processes take."""

    def __init__(self, start: int, batch: int, size: tuple[int, int], stride: int) -> None:
        self.start = start
        self.batch = batch
        self.size = size
        self.stride = stride

    def __iter__(self) -> Iterator[list[Address]]:
        for first in itertools.count(self.start, self.stride):
            yield [(first + offset, self.size) for offset in range(self.batch)]


def collate(samples: Sequence[tuple[NDArray[np.uint8], int, Targets]]) -> Batch:
    """Stack samples of one size."""
    images = torch.from_numpy(np.stack([image for image, _, _ in samples]))
    most = max(1, *(len(targets.boxes) for _, _, targets in samples))
    size, (height, width) = len(samples), images.shape[1:3]
    boxes = torch.full((size, most, 4), 0.5)
    kinds = torch.zeros((size, most), dtype=torch.int64)
    masks = torch.zeros((size, most, height // 4, width // 4), dtype=torch.uint8)
    for row, (_, _, targets) in enumerate(samples):
        count = len(targets.boxes)
        boxes[row, :count] = torch.from_numpy(targets.boxes)
        kinds[row, :count] = torch.from_numpy(targets.kinds)
        masks[row, :count] = torch.from_numpy(targets.masks)
    return Batch(images, torch.tensor([concept for _, concept, _ in samples]), boxes, kinds, masks)
