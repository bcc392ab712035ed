"""The newest frame of each camera is what inference gets; older ones are counted and gone."""

from __future__ import annotations

import threading

import numpy as np

from barnsightd.ingest.slots import FrameSlots
from barnsightd.types import Frame


def frame(camera: str, index: int) -> Frame:
    return Frame(camera, index, captured_ns=index, monotonic_ns=index, image=np.zeros((2, 2, 3), np.uint8))


def test_the_newest_frame_replaces_the_one_nobody_took() -> None:
    slots = FrameSlots()

    assert slots.put(frame("pen-1", 1)) is False
    assert slots.put(frame("pen-1", 2)) is True

    assert [f.index for f in slots.take_all(0)] == [2]
    assert slots.dropped("pen-1") == 1


def test_every_camera_has_its_own_slot_and_the_oldest_frame_comes_first() -> None:
    slots = FrameSlots()
    for camera, index in (("pen-1", 7), ("pen-2", 5), ("pen-3", 6)):
        slots.put(frame(camera, index))

    assert len(slots) == 3
    assert [f.camera for f in slots.take_all(0)] == ["pen-2", "pen-3", "pen-1"]
    assert len(slots) == 0
    assert slots.dropped("pen-1") == 0


def test_without_a_frame_the_wait_ends_at_its_time() -> None:
    assert FrameSlots().take_all(0.01) == []


def test_a_frame_wakes_whoever_waits() -> None:
    slots, taken = FrameSlots(), list[Frame]()
    waiter = threading.Thread(target=lambda: taken.extend(slots.take_all(30)))
    waiter.start()

    slots.put(frame("pen-1", 1))
    waiter.join(10)

    assert [f.index for f in taken] == [1]


def test_closing_wakes_whoever_waits_and_takes_nothing_more() -> None:
    slots, woken = FrameSlots(), threading.Event()
    waiter = threading.Thread(target=lambda: slots.take_all(30) == [] and woken.set())
    waiter.start()

    slots.close()

    assert woken.wait(10)
    assert slots.put(frame("pen-1", 1)) is False
    assert slots.take_all(30) == []
