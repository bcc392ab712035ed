"""What a session remembers of its animals: fixed slots, reserved at its start; nothing else survives a frame.

SAM 3 looks at the memories of the latest conditioning frames and of the frames just before, and at object pointers from
a little further back. Everything older is never read again, so a ring of slots holds all that counts: pruning loses
nothing. The frame with number n writes slot n modulo the ring's length; a slot whose frame is not as old as its place
says holds what is over, and is masked. Numbers are of nominal frames, so a dropped frame leaves a gap, not a shift.

Most memories are never recalled, since detections explain most animals, and to encode one is dear. So a recent frame is
kept as an impression first, which takes no engine, and becomes a memory when its animal is looked for (`Impressions`).

Letters in shapes: A animals, B of them asked for, M memory slots (conditioning ones first), N cells, D memory width,
K pointers (conditioning ones first), P their tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from barnsight_engines.propagator import MASKED, Floats, Memories, MemoryLayout, TemporalPositions

NEVER = -(1 << 40)


class MemoryBank:
    """The memories of up to `animals` animals, by slot number 0 to `animals` - 1."""

    def __init__(
        self,
        animals: int,
        positions: TemporalPositions,
        layout: MemoryLayout,
        *,
        slots: int | None = None,
        batch: int = 1,
        dtype: DTypeLike = np.float16,
    ) -> None:
        """Lay everything out, for a tracker of this `layout` that is asked about up to `batch` animals at once.

        Of the layout's memories as many as there are temporal positions but one are of recent frames, of its pointers
        one less than `pointer_frames`; the others are of conditioning frames. `slots` keeps fewer recent frames.
        `recent` counts the slots of recent frames. Raises ValueError where nothing is left for either.
        """
        self.batch = batch
        self._positions, self._layout = positions, layout
        reach, width = positions.memory.shape[0] - 1, positions.memory.shape[1]
        kept, pointer_width = slots or layout.slots, positions.pointer_weight.shape[1]
        self._conditioning, self._recent_pointers = layout.slots - reach, positions.pointer_frames - 1
        self._conditioning_pointers = layout.pointers - self._recent_pointers
        if self._conditioning < 1 or self._conditioning_pointers < 1:
            raise ValueError(
                f"a tracker with {layout.slots} memories and {layout.pointers} pointers has none for conditioning "
                f"frames: it needs more than {reach} and {self._recent_pointers}"
            )
        if not self._conditioning < kept <= layout.slots:
            raise ValueError(f"memory slots must be {self._conditioning + 1} to {layout.slots}, got {kept}")
        self.recent = kept - self._conditioning
        self._tokens = pointer_width // width  # a pointer is as wide as the network, a memory narrower
        self._mem = np.zeros((animals, kept, layout.cells, width), dtype)
        self._mem_frames = np.full((animals, kept), NEVER, np.int64)
        self._ptr = np.zeros((animals, layout.pointers, pointer_width), np.float32)
        self._ptr_frames = np.full((animals, layout.pointers), NEVER, np.int64)
        self._conditioned = np.zeros(animals, np.int64)  # how often
        # what a recall hands out: slots that are not kept stay empty
        self._mem_out = np.zeros((batch, layout.slots, layout.cells, width), np.float32)
        self._ptr_out = np.zeros((batch, layout.pointers, pointer_width), np.float32)
        cells, tokens = layout.slots * layout.cells, layout.pointers * self._tokens
        self._bias_out = np.full((batch, 1, cells + tokens), MASKED, np.float32)

    @property
    def size_bytes(self) -> int:
        """How much there is to reserve; it never changes."""
        kept = (self._mem, self._mem_frames, self._ptr, self._ptr_frames, self._conditioned)
        return sum(array.nbytes for array in (*kept, self._mem_out, self._ptr_out, self._bias_out))

    def reserve(self) -> None:
        """Take all of it from the system now, by writing to it: later nothing can be missing."""
        for array in (self._mem, self._ptr, self._mem_out, self._ptr_out):
            array.fill(0)

    def condition(self, animals: Sequence[int], frame: int, memories: Floats, pointers: Floats) -> None:
        """Remember that these animals are certain on frame `frame`: memories (B, N, D), pointers (B, C)."""
        for animal, memory, pointer in zip(animals, memories, pointers, strict=True):
            turn = self._conditioned[animal]
            self._write(animal, turn % self._conditioning, frame, memory)
            self._point(animal, turn % self._conditioning_pointers, frame, pointer)
            self._conditioned[animal] += 1

    def remember(self, animals: Sequence[int], frame: int, memories: Floats, pointers: Floats | None = None) -> None:
        """Remember frame `frame` of these animals: memories (B, N, D), and pointers (B, C) where there are any."""
        for animal, memory in zip(animals, memories, strict=True):
            self._write(animal, self._conditioning + frame % self.recent, frame, memory)
        if pointers is not None:
            self.point(animals, frame, pointers)

    def point(self, animals: Sequence[int], frame: int, pointers: Sequence[Floats] | Floats) -> None:
        """Remember the pointers (B, C) of these animals on frame `frame`."""
        for animal, pointer in zip(animals, pointers, strict=True):
            self._point(animal, self._conditioning_pointers + frame % self._recent_pointers, frame, pointer)

    def forget(self, animal: int) -> None:
        """Empty a slot for another animal."""
        self._mem_frames[animal] = self._ptr_frames[animal] = NEVER
        self._conditioned[animal] = 0

    def recall(self, animals: Sequence[int], frame: int) -> Memories:
        """What is remembered of up to `batch` animals on frame `frame`, which is not yet among it.

        The next recall overwrites it.
        """
        chosen, batch = np.asarray(animals), len(animals)
        rings = np.arange(self.recent)
        ages = (frame - 1 - rings) % self.recent + 1  # (R,) of the ring's slots, were they written
        memory_ages = frame - self._mem_frames[chosen]  # (B, kept)
        pointer_ages = frame - self._ptr_frames[chosen]  # (B, K)
        empty = memory_ages > frame - NEVER - 1
        empty[:, self._conditioning :] = memory_ages[:, self._conditioning :] != ages
        pointer_empty = pointer_ages > frame - NEVER - 1
        recent = pointer_ages[:, self._conditioning_pointers :]
        pointer_empty[:, self._conditioning_pointers :] = (recent < 1) | (recent > self._recent_pointers)

        kept, cells, slots = self._mem.shape[1], self._layout.cells, self._layout.slots
        for row, animal in enumerate(animals):
            self._mem_out[row, :kept] = self._mem[animal]
            self._ptr_out[row] = self._ptr[animal]
        bias = self._bias_out[:batch, 0]  # (B, M·N + P)
        bias[:, : kept * cells] = np.where(empty, MASKED, 0).repeat(cells, axis=1)
        bias[:, slots * cells :] = np.where(pointer_empty, MASKED, 0).repeat(self._tokens, axis=1)
        places = self._positions.of_pointers(np.where(pointer_empty, 0, pointer_ages))  # (B, K, D)
        rows = np.concatenate([np.zeros(self._conditioning, np.int64), ages, np.zeros(slots - kept, np.int64)])
        width = self._mem.shape[3]
        return Memories(
            mem=self._mem_out[:batch].reshape(batch, -1, width),
            mempos=self._positions.memory[rows],
            ptr=self._ptr_out[:batch].reshape(batch, -1, width),  # a pointer is so many tokens
            ptrpos=np.repeat(places, self._tokens, axis=1),
            bias=self._bias_out[:batch],
        )

    def _write(self, animal: int, slot: int, frame: int, memory: Floats) -> None:
        self._mem[animal, slot], self._mem_frames[animal, slot] = memory, frame

    def _point(self, animal: int, slot: int, frame: int, pointer: Floats) -> None:
        self._ptr[animal, slot], self._ptr_frames[animal, slot] = pointer, frame


class Impression(NamedTuple):
    """What was seen of B animals on one frame: its map, their masks as logits, and whether they were there."""

    frame: int
    t1: Floats  # (1, C, h, w)
    animals: NDArray[np.int64]  # (B,)
    mask_logits: Floats  # (B, 4h, 4w)
    presence: Floats  # (B,)


class Impressions:
    """The last `frames` frames as they were seen, of up to `animals` animals; fixed size, oldest overwritten."""

    def __init__(
        self, animals: int, frames: int, *, width: int, grid: tuple[int, int], dtype: DTypeLike = np.float16
    ) -> None:
        """Lay everything out for maps of `grid` (height, width) cells and `width` channels."""
        self._t1 = np.zeros((frames, 1, width, *grid), dtype)
        self._frames = np.full(frames, NEVER, np.int64)
        self._mask_logits = np.zeros((animals, frames, 4 * grid[0], 4 * grid[1]), dtype)
        self._presence = np.zeros((animals, frames), np.float32)
        self._fresh = np.zeros((animals, frames), np.bool_)

    @property
    def size_bytes(self) -> int:
        """How much there is to reserve; it never changes."""
        kept = (self._t1, self._frames, self._mask_logits, self._presence, self._fresh)
        return sum(array.nbytes for array in kept)

    def reserve(self) -> None:
        """Take all of it from the system now, by writing to it."""
        for array in (self._t1, self._mask_logits):
            array.fill(0)

    def keep(self, frame: int, t1: Floats, animals: Sequence[int], mask_logits: Floats, presence: Floats) -> None:
        """Keep what frame `frame` shows of these animals: map (1, C, h, w), masks (B, 4h, 4w), presence (B,)."""
        slot = frame % len(self._frames)
        if self._frames[slot] != frame:
            self._frames[slot], self._t1[slot] = frame, t1
            self._fresh[:, slot] = False
        self._mask_logits[animals, slot], self._presence[animals, slot] = mask_logits, presence
        self._fresh[animals, slot] = True

    def take(self, animals: Sequence[int]) -> Iterator[Impression]:
        """What was kept of these animals and not yet taken, frame by frame, the oldest first."""
        for slot in np.argsort(self._frames):
            fresh = np.array([animal for animal in animals if self._fresh[animal, slot]], np.int64)
            if len(fresh):
                self._fresh[fresh, slot] = False
                yield Impression(
                    frame=int(self._frames[slot]),
                    t1=self._t1[slot].astype(np.float32),
                    animals=fresh,
                    mask_logits=self._mask_logits[fresh, slot].astype(np.float32),
                    presence=self._presence[fresh, slot],
                )

    def forget(self, animal: int) -> None:
        """Drop what was kept of an animal."""
        self._fresh[animal] = False
