"""What a session remembers of its animals: fixed slots, reserved at its start; nothing else survives a frame.

SAM 3 looks at the memories of the latest conditioning frames and of the frames just before, and at object pointers from
a little further back. Everything older is never read again, so a ring of slots holds all that counts: pruning loses
nothing. The frame with number n writes slot n modulo the ring's length; a slot whose frame is not as old as its place
says holds what is over, and is masked. Numbers are of nominal frames, so a dropped frame leaves a gap, not a shift.

Letters in shapes: A animals, B of them asked for, M memory slots (conditioning ones first), N cells, D memory width,
K pointers (conditioning ones first), C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from barnsight_engines.propagator import MASKED, Floats, Memories, TemporalPositions

NEVER = -(1 << 40)


class MemoryBank:
    """The memories of up to `animals` animals, by slot number 0 to `animals` - 1."""

    def __init__(
        self,
        animals: int,
        positions: TemporalPositions,
        *,
        cells: int,
        slots: int,
        pointers: int,
        dtype: DTypeLike = np.float16,
    ) -> None:
        """Reserve everything: `slots` memories and `pointers` pointers an animal.

        Of the slots as many as there are temporal positions but one are recent frames, of the pointers one less than
        `pointer_frames`; what is left are conditioning frames. Raises ValueError where nothing is left for them.
        """
        self._positions = positions
        self._recent, width = positions.memory.shape[0] - 1, positions.memory.shape[1]
        self._recent_pointers, pointer_width = positions.pointer_frames - 1, positions.pointer_weight.shape[1]
        self._conditioning, self._conditioning_pointers = slots - self._recent, pointers - self._recent_pointers
        if self._conditioning < 1 or self._conditioning_pointers < 1:
            raise ValueError(
                f"a bank of {slots} memories and {pointers} pointers has none for conditioning frames: it needs more "
                f"than {self._recent} and {self._recent_pointers}"
            )
        self._tokens = pointer_width // width  # a pointer is as wide as the network, a memory narrower
        self._mem = np.zeros((animals, slots, cells, width), dtype)
        self._mem_frames = np.full((animals, slots), NEVER, np.int64)
        self._ptr = np.zeros((animals, pointers, pointer_width), np.float32)
        self._ptr_frames = np.full((animals, pointers), NEVER, np.int64)
        self._conditioned = np.zeros(animals, np.int64)  # how often

    @property
    def size_bytes(self) -> int:
        """How much is reserved; it never changes."""
        kept = (self._mem, self._mem_frames, self._ptr, self._ptr_frames, self._conditioned)
        return sum(array.nbytes for array in kept)

    def condition(self, animals: Sequence[int], frame: int, memories: Floats, pointers: Floats) -> None:
        """Remember that these animals are certain on frame `frame`: memories (B, N, D), pointers (B, C)."""
        for animal, memory, pointer in zip(animals, memories, pointers, strict=True):
            turn = self._conditioned[animal]
            self._write(animal, turn % self._conditioning, turn % self._conditioning_pointers, frame, memory, pointer)
            self._conditioned[animal] += 1

    def remember(self, animals: Sequence[int], frame: int, memories: Floats, pointers: Floats) -> None:
        """Remember frame `frame` of these animals: memories (B, N, D), pointers (B, C)."""
        slot = self._conditioning + frame % self._recent
        pointer_slot = self._conditioning_pointers + frame % self._recent_pointers
        for animal, memory, pointer in zip(animals, memories, pointers, strict=True):
            self._write(animal, slot, pointer_slot, frame, memory, pointer)

    def forget(self, animal: int) -> None:
        """Empty a slot for another animal."""
        self._mem_frames[animal] = self._ptr_frames[animal] = NEVER
        self._conditioned[animal] = 0

    def recall(self, animals: Sequence[int], frame: int) -> Memories:
        """What is remembered of these animals on frame `frame`, which is not yet among it."""
        chosen = np.asarray(animals)
        rings = np.arange(self._recent)
        ages = (frame - 1 - rings) % self._recent + 1  # (R,) of the ring's slots, were they written
        memory_ages = frame - self._mem_frames[chosen]  # (B, M)
        pointer_ages = frame - self._ptr_frames[chosen]  # (B, K)
        empty = memory_ages > frame - NEVER - 1
        empty[:, self._conditioning :] = memory_ages[:, self._conditioning :] != ages
        pointer_empty = pointer_ages > frame - NEVER - 1
        recent = pointer_ages[:, self._conditioning_pointers :]
        pointer_empty[:, self._conditioning_pointers :] = (recent < 1) | (recent > self._recent_pointers)

        batch, cells, width = len(chosen), self._mem.shape[2], self._mem.shape[3]
        places = self._positions.of_pointers(np.where(pointer_empty, 0, pointer_ages))  # (B, K, D)
        bias = np.concatenate(
            [np.repeat(empty, cells, axis=1), np.repeat(pointer_empty, self._tokens, axis=1)], axis=1
        )  # (B, M·N + P)
        return Memories(
            mem=self._mem[chosen].reshape(batch, -1, width).astype(np.float32),
            mempos=self._positions.memory[np.concatenate([np.zeros(self._conditioning, np.int64), ages])],
            ptr=self._ptr[chosen].reshape(batch, -1, width),  # a pointer is so many tokens
            ptrpos=np.repeat(places, self._tokens, axis=1),
            bias=np.where(bias[:, None], MASKED, 0).astype(np.float32),
        )

    def _write(self, animal: int, slot: int, pointer_slot: int, frame: int, memory: Floats, pointer: Floats) -> None:
        self._mem[animal, slot], self._mem_frames[animal, slot] = memory, frame
        self._ptr[animal, pointer_slot], self._ptr_frames[animal, pointer_slot] = pointer, frame
