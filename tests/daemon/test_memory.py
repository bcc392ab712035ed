"""The memory bank: what is old, absent or another animal's is masked, and nothing ever grows."""

from __future__ import annotations

import numpy as np
import pytest

from barnsight_engines.propagator import CERTAIN, MASKED, Memories, MemoryLayout, TemporalPositions, sine_encoding
from barnsightd.tracking.memory import Impression, Impressions, MemoryBank

GRID, WIDTH, POINTER_WIDTH = (2, 3), 3, 6
CELLS = 6
RECENT, RECENT_POINTERS = 6, 15


def positions() -> TemporalPositions:
    """Seven temporal positions, told apart by their value; a pointer's position is its age's first sine."""
    weight = np.zeros((WIDTH, POINTER_WIDTH), np.float32)
    weight[:, 0] = 1
    rows = np.arange(RECENT + 1, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    return TemporalPositions(rows, weight, np.zeros(WIDTH, np.float32), RECENT_POINTERS + 1)


def make_bank(
    memories: int = RECENT + 1, pointers: int = RECENT_POINTERS + 2, *, slots: int | None = None
) -> MemoryBank:
    layout = MemoryLayout(GRID, memories, pointers)
    return MemoryBank(3, positions(), layout, slots=slots, batch=2)


def value(number: float, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.full((count, CELLS, WIDTH), number, np.float32),
        np.full((count, POINTER_WIDTH), 100 + number, np.float32),
    )


def held(memories: Memories, animal: int = 0) -> dict[int, float]:
    """The slots that hold something, and what."""
    slots = memories.mem[animal].reshape(-1, CELLS, WIDTH)
    masked = memories.bias[animal, 0, : len(slots) * CELLS].reshape(len(slots), CELLS)
    assert (masked == masked[:, :1]).all()
    assert set(np.unique(masked)) <= {np.float32(0), MASKED}
    return {slot: float(slots[slot, 0, 0]) for slot in np.flatnonzero(masked[:, 0] == 0)}


def pointers_held(memories: Memories, animal: int = 0) -> list[float]:
    tokens = memories.ptr[animal]  # (P, D)
    masked = memories.bias[animal, 0, -len(tokens) :]
    return sorted(float(token[0]) for token, bias in zip(tokens, masked, strict=True) if bias == 0)


def test_the_last_six_frames_and_the_conditioning_one_are_recalled_each_by_its_age() -> None:
    bank = make_bank()
    bank.condition([0], 10, *value(10))
    for frame in range(11, 31):
        bank.remember([0], frame, *value(frame))
    memories = bank.recall([0], 31)
    found = held(memories)
    assert found[0] == 10
    assert sorted(found.values()) == [10, 25, 26, 27, 28, 29, 30]
    assert memories.mempos[0, 0] == 0
    assert all(memories.mempos[slot, 0] == 31 - frame for slot, frame in found.items() if slot)


def test_pointers_reach_fifteen_frames_back_and_become_two_tokens_each() -> None:
    bank = make_bank()
    bank.condition([0], 10, *value(10))
    for frame in range(11, 41):
        bank.remember([0], frame, *value(frame))
    memories = bank.recall([0], 41)
    assert pointers_held(memories) == sorted(2 * [110.0, *(100.0 + frame for frame in range(26, 41))])
    ages = np.array([[31, 3]])
    expected = sine_encoding(np.array(3 / 15, np.float32), POINTER_WIDTH)[0]
    assert positions().of_pointers(ages)[0, 1] == pytest.approx([expected] * WIDTH)


def test_a_frame_that_was_dropped_leaves_a_gap_and_shifts_nothing() -> None:
    bank = make_bank()
    for frame in (1, 2, 5, 6):
        bank.remember([0], frame, *value(frame))
    assert sorted(held(bank.recall([0], 7)).values()) == [1, 2, 5, 6]
    assert sorted(held(bank.recall([0], 9)).values()) == [5, 6]
    assert held(bank.recall([0], 13)) == {}


def test_what_is_over_is_not_recalled_however_long_the_gap() -> None:
    bank = make_bank()
    bank.remember([0], 3, *value(3))
    assert held(bank.recall([0], 3 + 6 * 1000)) == {}
    assert pointers_held(bank.recall([0], 3 + 15 * 1000)) == []


def test_later_conditioning_takes_the_place_of_the_first_and_pointers_keep_two() -> None:
    bank = make_bank()
    for frame in (1, 20, 40):
        bank.condition([0], frame, *value(frame))
    memories = bank.recall([0], 60)
    assert held(memories) == {0: 40}
    assert pointers_held(memories) == [120.0, 120.0, 140.0, 140.0]


def test_animals_do_not_see_each_other_and_a_slot_can_be_given_to_another() -> None:
    bank = make_bank()
    bank.condition([0, 2], 1, *(np.concatenate(pair) for pair in zip(value(7), value(9), strict=True)))
    memories = bank.recall([2, 0], 2)
    assert (held(memories, 0), held(memories, 1)) == ({0: 9}, {0: 7})
    bank.forget(2)
    bank.condition([2], 5, *value(4))
    assert held(bank.recall([2], 6)) == {0: 4}
    assert pointers_held(bank.recall([2], 6)) == [104.0, 104.0]


def test_nothing_grows() -> None:
    bank = make_bank()
    before = bank.size_bytes
    for frame in range(500):
        bank.remember([0, 1, 2], frame, *value(frame, 3))
    assert bank.size_bytes == before


def test_a_bank_needs_room_for_conditioning_frames() -> None:
    with pytest.raises(ValueError, match="it needs more than 6 and 15"):
        make_bank(RECENT)
    with pytest.raises(ValueError, match="it needs more than 6 and 15"):
        make_bank(pointers=RECENT_POINTERS)


@pytest.mark.parametrize(("grid", "mb_an_animal"), [(72, 4.66), (36, 1.18)])
def test_at_sam3s_size_an_animal_takes_a_few_megabytes(grid: int, mb_an_animal: float) -> None:
    rows = np.zeros((7, 64), np.float32)
    full = TemporalPositions(rows, np.zeros((64, 256), np.float32), np.zeros(64, np.float32), 16)
    bank, larger = (MemoryBank(animals, full, MemoryLayout((grid, grid), 7, 19)) for animals in (8, 9))
    assert (larger.size_bytes - bank.size_bytes) / 1e6 == pytest.approx(mb_an_animal, abs=0.01)


def test_fewer_slots_keep_fewer_frames_and_the_tracker_gets_the_shape_that_it_wants() -> None:
    bank, usual = make_bank(slots=4), make_bank()
    bank.condition([0], 10, *value(10))
    for frame in range(11, 31):
        bank.remember([0], frame, *value(frame))
    memories = bank.recall([0], 31)
    assert sorted(held(memories).values()) == [10, 28, 29, 30]
    assert [tensor.shape for tensor in memories] == [tensor.shape for tensor in usual.recall([0], 31)]
    assert bank.size_bytes < usual.size_bytes
    for slots in (1, RECENT + 2):
        with pytest.raises(ValueError, match=f"memory slots must be 2 to 7, got {slots}"):
            make_bank(slots=slots)


def test_a_frame_without_a_pointer_keeps_the_pointers_before_it() -> None:
    bank = make_bank()
    bank.condition([0], 1, *value(1))
    bank.remember([0], 2, *value(2))
    bank.remember([0], 3, value(3)[0])
    memories = bank.recall([0], 4)
    assert sorted(held(memories).values()) == [1, 2, 3]
    assert pointers_held(memories) == sorted(2 * [101.0, 102.0])


def seen(impressions: Impressions, frame: int, animals: list[int]) -> None:
    """Keep a frame whose map holds its number, with masks and presences that hold the animals' own."""
    numbers = np.array(animals, np.float32)
    masks = np.broadcast_to(numbers[:, None, None], (len(animals), 8, 12)).astype(np.float32)
    impressions.keep(frame, np.full((1, POINTER_WIDTH, *GRID), frame, np.float32), animals, masks, numbers)


def told(impression: Impression) -> tuple[int, list[int]]:
    """Frame and animals of an impression, which its arrays must bear out."""
    assert (impression.t1 == impression.frame).all()
    assert (impression.mask_logits == impression.animals[:, None, None]).all()
    assert (impression.presence == impression.animals).all()
    return impression.frame, impression.animals.tolist()


def test_an_impression_is_taken_once_and_only_while_its_frame_is_recent() -> None:
    impressions = Impressions(3, RECENT, width=POINTER_WIDTH, grid=GRID)
    for frame in range(20, 30):
        seen(impressions, frame, [0, 2] if frame % 2 else [1])
    assert [told(impression) for impression in impressions.take([0, 1])] == [
        (24, [1]), (25, [0]), (26, [1]), (27, [0]), (28, [1]), (29, [0]),
    ]  # fmt: skip
    assert list(impressions.take([0, 1])) == []
    seen(impressions, 30, [0])
    assert [told(impression) for impression in impressions.take([0])] == [(30, [0])]


def test_impressions_of_an_animal_that_is_gone_are_not_its_successors() -> None:
    impressions = Impressions(3, RECENT, width=POINTER_WIDTH, grid=GRID)
    seen(impressions, 7, [0, 1])
    impressions.forget(1)
    assert [told(impression) for impression in impressions.take([0, 1, 2])] == [(7, [0])]


def test_impressions_never_grow_and_keep_what_a_mask_decoder_says() -> None:
    impressions = Impressions(2, RECENT, width=POINTER_WIDTH, grid=GRID)
    size = impressions.size_bytes
    logits = np.array([CERTAIN, -1024, -10.25, 0.125], np.float32).repeat(24).reshape(1, 8, 12)
    for frame in range(100):
        impressions.keep(frame, np.zeros((1, POINTER_WIDTH, *GRID), np.float32), [1], logits, np.ones(1, np.float32))
    taken = list(impressions.take([1]))
    assert len(taken) == RECENT
    assert np.array_equal(taken[0].mask_logits, logits)
    assert impressions.size_bytes == size
