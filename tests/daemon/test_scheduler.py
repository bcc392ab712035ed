"""The inference thread: takes frames, survives bad ones, gives up on an engine that is gone, stops in time."""

from __future__ import annotations

import threading

import numpy as np

from barnsightd.runtime.scheduler import MAX_FAILURES_IN_A_ROW, Scheduler
from barnsightd.types import Frame, FrameResult

WAIT_S = 10.0


def make_frame(index: int) -> Frame:
    return Frame("pen", index, index, index, np.zeros((2, 2, 3), np.uint8))


def make_result(frame: Frame) -> FrameResult:
    return FrameResult(frame, (), (), {})


class Frames:
    """Offers the given frames one by one, then nothing; says when all were taken."""

    def __init__(self, frames: list[Frame]) -> None:
        self.waiting = frames
        self.all_taken = threading.Event()

    def take_all(self, timeout_s: float) -> list[Frame]:
        if self.waiting:
            return [self.waiting.pop(0)]
        self.all_taken.set()
        return []


def test_every_offered_frame_is_stepped_and_delivered_in_order() -> None:
    frames, delivered = Frames([make_frame(i) for i in range(5)]), list[FrameResult]()
    scheduler = Scheduler(frames, make_result, delivered.append, lambda frame, reason: None)
    scheduler.start()
    assert frames.all_taken.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert [result.frame.index for result in delivered] == [0, 1, 2, 3, 4]
    assert scheduler.fatal is None


def test_one_bad_frame_is_reported_and_the_next_one_goes_through() -> None:
    def step(frame: Frame) -> FrameResult:
        if frame.index == 1:
            raise ValueError("engine hiccup")
        return make_result(frame)

    frames, delivered, failed = Frames([make_frame(i) for i in range(3)]), list[FrameResult](), list[tuple[int, str]]()
    scheduler = Scheduler(frames, step, delivered.append, lambda frame, reason: failed.append((frame.index, reason)))
    scheduler.start()
    assert frames.all_taken.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert [result.frame.index for result in delivered] == [0, 2]
    assert failed == [(1, "failed")]


def test_an_engine_that_keeps_failing_ends_the_thread_with_the_reason() -> None:
    def step(frame: Frame) -> FrameResult:
        raise RuntimeError("device lost")

    frames = Frames([make_frame(i) for i in range(MAX_FAILURES_IN_A_ROW + 5)])
    scheduler = Scheduler(frames, step, lambda result: None, lambda frame, reason: None)
    scheduler.start()
    scheduler._thread.join(WAIT_S)
    assert not scheduler.alive
    assert "device lost" in str(scheduler.fatal)
    assert len(frames.waiting) == 5


def test_under_pressure_every_second_frame_is_shed_and_counted() -> None:
    frames, delivered, shed = Frames([make_frame(i) for i in range(4)]), list[FrameResult](), list[tuple[int, str]]()
    scheduler = Scheduler(
        frames, make_result, delivered.append, lambda frame, reason: shed.append((frame.index, reason))
    )
    scheduler.stride = 2
    scheduler.start()
    assert frames.all_taken.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert [result.frame.index for result in delivered] == [0, 2]
    assert shed == [(1, "shed"), (3, "shed")]


def test_an_errand_runs_on_the_inference_thread() -> None:
    frames, ran_on, done = Frames([]), list[str](), threading.Event()
    scheduler = Scheduler(frames, make_result, lambda result: None, lambda frame, reason: None)

    def errand() -> None:
        ran_on.append(threading.current_thread().name)
        done.set()

    scheduler.between_frames(errand)
    scheduler.start()
    assert done.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert ran_on == ["inference"]


def test_progress_advances_while_there_is_nothing_to_do() -> None:
    frames = Frames([])
    scheduler = Scheduler(frames, make_result, lambda result: None, lambda frame, reason: None)
    before_ns = scheduler.progress_monotonic_ns
    scheduler.start()
    assert frames.all_taken.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert scheduler.progress_monotonic_ns > before_ns
