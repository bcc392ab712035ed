"""SAM 3's memory tracker on engines: what is remembered of each animal in, where it is on this frame out.

The four engines take any number of animals up to `largest_batch`; more go through in turns. They are SAM 3's (Carion et
al. 2025, arXiv:2511.16719), split as in `docs/export.md`.

Letters in shapes: B animals, C width, D memory width, h x w grid, N = hw cells, M memory slots, K pointers (P tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.encoder import Features

LARGEST_BATCH = 20
SCORES_BYTES = 1 << 30  # for memory attention's scores of all animals that it looks for at once
MASKED = -1e4  # bias of a slot that holds nothing: its weight is an exact zero, and FP16 can hold the number
CERTAIN = 1e4  # a mask logit that leaves no doubt, between two pixels that differ neither

Floats = NDArray[np.float32]


class Memories(NamedTuple):
    """What is remembered of B animals, for one frame; `bias` masks slots and tokens that hold nothing."""

    mem: Floats  # (B, M·N, D)
    mempos: Floats  # (M, D), the same for all
    ptr: Floats  # (B, P, D)
    ptrpos: Floats  # (B, P, D)
    bias: Floats  # (B, 1, M·N + P)


class Segmented(NamedTuple):
    """Where B animals are: logits of masks and of presence, object pointers, and the IoU that the masks promise."""

    mask_logits: Floats  # (B, 4h, 4w)
    pointers: Floats  # (B, C)
    presence: Floats  # (B,)
    iou: Floats  # (B,)


@dataclass(frozen=True, slots=True)
class TemporalPositions:
    """What a session computes itself: how positions depend on ages in frames (`tracker.npz` of a model set).

    `memory` (slots, D): row 0 for conditioning frames, row a for a memory that is a frames old. A pointer's is
    `pointer_weight` (D, C) @ sines(age / (`pointer_frames` - 1)) + `pointer_bias` (D).
    """

    memory: Floats
    pointer_weight: Floats
    pointer_bias: Floats
    pointer_frames: int

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TemporalPositions:
        """The positions in the arrays of a model set's tracker file."""
        return cls(
            memory=arrays["memory_positions"],
            pointer_weight=arrays["pointer_weight"],
            pointer_bias=arrays["pointer_bias"],
            pointer_frames=int(arrays["pointer_frames"]),
        )

    def of_pointers(self, ages: NDArray[np.int64]) -> Floats:
        """Positions of pointers by their ages in frames: (B, K) -> (B, K, D)."""
        sines = sine_encoding(ages / np.float32(self.pointer_frames - 1), self.pointer_weight.shape[1])
        return np.asarray(sines @ self.pointer_weight.T + self.pointer_bias, np.float32)


class MemoryLayout(NamedTuple):
    """How much the engines want to remember of an animal: `slots` memories of a `grid` (height, width), `pointers`."""

    grid: tuple[int, int]
    slots: int
    pointers: int

    @property
    def cells(self) -> int:
        """Cells of the grid."""
        return math.prod(self.grid)


def largest_batch(cells: int, keys: int) -> int:
    """How many animals memory attention looks for at once, so that its scores fit.

    Each of `cells` cells scores `keys` memories and pointers: at SAM 3's size 0.75 GB of single precision an animal,
    unless the runtime fuses them. One animal is looked for whatever it takes.
    """
    return min(LARGEST_BATCH, max(1, SCORES_BYTES // (4 * cells * keys)))


class MemoryTracker:
    """The four engines, in the terms of a session; `largest_batch` is what fits, unless it is given."""

    def __init__(
        self,
        memory_attention: Backend,
        mask_decoder: Backend,
        memory_encoder: Backend,
        prompt_decoder: Backend,
        *,
        positions: TemporalPositions,
        largest_batch: int | None = None,
    ) -> None:
        self._memory_attention = memory_attention
        self._mask_decoder = mask_decoder
        self._memory_encoder = memory_encoder
        self._prompt_decoder = prompt_decoder
        self.positions = positions
        self.largest_batch = largest_batch or self._fitting_batch()

    @property
    def layout(self) -> MemoryLayout:
        """What the memory attention was exported for."""
        pointers = self._size("ptr", 1) * self._size("mempos", 1) // self._size("t1", 1)
        return MemoryLayout((self._size("t1", 2), self._size("t1", 3)), self._size("mempos", 0), pointers)

    def segment(self, features: Features, memories: Memories) -> Segmented:
        """Find B animals on the frame of `features` by what is remembered of them. Raises EngineError."""

        def run(rows: slice) -> Segmented:
            mem, mempos, ptr, ptrpos, bias = memories
            remembered = {"mem": mem[rows], "mempos": mempos, "ptr": ptr[rows], "ptrpos": ptrpos[rows]}
            pix = self._memory_attention.run({"t1": features["t1"], **remembered, "bias": bias[rows]})["pix"]
            found = self._mask_decoder.run({"pix": pix, "t4": features["t4"], "t2": features["t2"]})
            return Segmented(found["mask"], found["ptr"], found["obj"][:, 0], found["iou"][:, 0])

        parts = [run(rows) for rows in self._turns(len(memories.mem))]
        return Segmented(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def memorize(self, features: Features, mask_logits: Floats, presence: Floats) -> Floats:
        """The memories (B, N, D) of animals with these masks (B, 4h, 4w) and presences (B,). Raises EngineError."""

        def run(rows: slice) -> Floats:
            masks, obj = mask_logits[rows, None], presence[rows, None]
            memories: Floats = self._memory_encoder.run({"t1": features["t1"], "mask": masks, "obj": obj})["mem"]
            return memories

        return self._in_turns(run, len(mask_logits))

    def point_at(self, features: Features, mask_logits: Floats) -> Floats:
        """The first object pointers (B, C) of animals that begin with these masks (B, 4h, 4w). Raises EngineError."""

        def run(rows: slice) -> Floats:
            pointers: Floats = self._prompt_decoder.run({"t1": features["t1"], "mask": mask_logits[rows, None]})["ptr"]
            return pointers

        return self._in_turns(run, len(mask_logits))

    def close(self) -> None:
        """Close every engine; a second call does nothing."""
        for engine in (self._memory_attention, self._mask_decoder, self._memory_encoder, self._prompt_decoder):
            engine.close()

    def _size(self, name: str, axis: int) -> int:
        """How long an axis of an input of memory attention is."""
        length = next(tensor.shape[axis] for tensor in self._memory_attention.spec.inputs if tensor.name == name)
        assert length is not None  # only the batch is left open
        return length

    def _fitting_batch(self) -> int:
        return largest_batch(self.layout.cells, self._size("bias", 2))

    def _turns(self, count: int) -> list[slice]:
        return [slice(first, first + self.largest_batch) for first in range(0, count, self.largest_batch)]

    def _in_turns(self, run: Callable[[slice], Floats], count: int) -> Floats:
        return np.concatenate([run(rows) for rows in self._turns(count)])


def certain(mask_logits: Floats) -> Floats:
    """The same masks without doubt, as those of a conditioning frame are remembered."""
    return np.where(mask_logits > 0, CERTAIN, -CERTAIN).astype(np.float32)


def sine_encoding(values: NDArray[np.float32], width: int, temperature: float = 10000.0) -> Floats:
    """Sines and cosines of values (...) at `width` / 2 frequencies, every frequency twice: (..., width)."""
    half = width // 2
    frequencies = temperature ** (2 * (np.arange(half) // 2) / half)
    angles = np.asarray(values, np.float32)[..., None] / frequencies.astype(np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
