"""The two inference threads: take frames, survive bad ones, give up on an engine that is gone, stop in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from structlog.testing import capture_logs

from barnsight_engines.errors import EngineError
from barnsightd.runtime.scheduler import MAX_FAILURES_IN_A_ROW, Scheduler
from barnsightd.types import Frame, FrameResult

WAIT_S = 10.0


def make_frame(index: int) -> Frame:
    return Frame("pen", index, index, index, np.zeros((2, 2, 3), np.uint8))


def same(frame: Frame) -> Frame:
    return frame


def make_result(frame: Frame) -> FrameResult:
    return FrameResult(frame, (), (), {})


class Frames:
    """Offers the given frames one by one, then nothing; says when all were taken."""

    def __init__(self, count: int) -> None:
        self.waiting = [make_frame(i) for i in range(count)]
        self.all_taken = threading.Event()

    def take_all(self, timeout_s: float) -> list[Frame]:
        if self.waiting:
            return [self.waiting.pop(0)]
        self.all_taken.set()
        time.sleep(0.01)
        return []


class Ends:
    """What became of each frame; `wait` for a number of them."""

    def __init__(self) -> None:
        self.delivered: list[int] = []
        self.dropped: list[tuple[int, str]] = []
        self._changed = threading.Condition()

    def deliver(self, result: FrameResult) -> None:
        with self._changed:
            self.delivered.append(result.frame.index)
            self._changed.notify_all()

    def drop(self, frame: Frame, reason: str) -> None:
        with self._changed:
            self.dropped.append((frame.index, reason))
            self._changed.notify_all()

    def wait(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.delivered) + len(self.dropped) >= count, WAIT_S)


Follow = Callable[[Frame], FrameResult | None]


def run(
    frames: Frames, encode: Callable[[Frame], Frame] = same, follow: Follow = make_result
) -> tuple[Scheduler[Frame], Ends]:
    ends = Ends()
    scheduler = Scheduler(frames, encode, follow, ends.deliver, ends.drop)
    scheduler.start()
    return scheduler, ends


def test_every_offered_frame_is_followed_and_delivered_in_order() -> None:
    scheduler, ends = run(Frames(5))
    assert ends.wait(5)
    assert scheduler.stop(WAIT_S)
    assert ends.delivered == [0, 1, 2, 3, 4]
    assert scheduler.fatal is None


def test_the_next_frame_is_encoded_while_one_is_followed() -> None:
    encoding, threads = {i: threading.Event() for i in range(3)}, set[str]()

    def encode(frame: Frame) -> Frame:
        threads.add(threading.current_thread().name)
        encoding[frame.index].set()
        return frame

    def follow(frame: Frame) -> FrameResult:
        threads.add(threading.current_thread().name)
        if frame.index < 2:
            assert encoding[frame.index + 1].wait(WAIT_S)
        return make_result(frame)

    scheduler, ends = run(Frames(3), encode, follow)
    assert ends.wait(3)
    assert scheduler.stop(WAIT_S)
    assert ends.delivered == [0, 1, 2]
    assert threads == {"encoder", "inference"}


def test_a_slow_second_half_holds_the_first_back() -> None:
    release = threading.Event()

    def follow(frame: Frame) -> FrameResult:
        assert release.wait(WAIT_S)
        return make_result(frame)

    frames = Frames(10)
    scheduler, ends = run(frames, same, follow)
    time.sleep(0.3)
    assert len(frames.waiting) >= 7  # one is followed, one waits, one is held
    release.set()
    assert ends.wait(10)
    assert scheduler.stop(WAIT_S)


@pytest.mark.parametrize("half", ["encode", "follow"])
def test_one_bad_frame_is_reported_and_the_next_one_goes_through(half: str) -> None:
    def fail_once(frame: Frame) -> Frame:
        if frame.index == 1:
            raise ValueError("engine hiccup")
        return frame

    if half == "encode":
        scheduler, ends = run(Frames(3), encode=fail_once)
    else:
        scheduler, ends = run(Frames(3), follow=lambda frame: make_result(fail_once(frame)))
    assert ends.wait(3)
    assert scheduler.stop(WAIT_S)
    assert ends.delivered == [0, 2]
    assert ends.dropped == [(1, "failed")]


@pytest.mark.parametrize(
    ("error", "told", "has_traceback"),
    [(KeyError("x"), "KeyError: 'x'", True), (EngineError("out of memory"), "EngineError: out of memory", False)],
)
def test_a_bug_is_logged_with_its_traceback_and_an_engines_fault_without(
    error: Exception, told: str, has_traceback: bool
) -> None:
    def fail(frame: Frame) -> FrameResult:
        raise error

    with capture_logs() as logs:
        scheduler, ends = run(Frames(1), follow=fail)
        assert ends.wait(1)
        assert scheduler.stop(WAIT_S)
    (entry,) = [entry for entry in logs if entry["event"] == "frame failed"]
    assert entry["error"] == told
    assert bool(entry["exc_info"]) == has_traceback


def test_an_engine_that_keeps_failing_ends_the_threads_with_the_reason() -> None:
    def fail(frame: Frame) -> FrameResult:
        raise RuntimeError("device lost")

    frames = Frames(MAX_FAILURES_IN_A_ROW + 5)
    scheduler, ends = run(frames, follow=fail)
    assert ends.wait(MAX_FAILURES_IN_A_ROW)
    assert scheduler.stop(WAIT_S)
    assert not scheduler.alive
    assert "device lost" in str(scheduler.fatal)
    assert len(ends.dropped) == MAX_FAILURES_IN_A_ROW
    assert len(frames.waiting) >= 2


def test_a_frame_of_a_camera_that_has_gone_is_nobodys() -> None:
    scheduler, ends = run(Frames(3), follow=lambda frame: make_result(frame) if frame.index != 1 else None)
    assert ends.wait(2)
    assert scheduler.stop(WAIT_S)
    assert ends.delivered == [0, 2]
    assert ends.dropped == []


def test_under_pressure_every_second_frame_is_shed_and_counted() -> None:
    frames, ends = Frames(4), Ends()
    scheduler = Scheduler(frames, same, make_result, ends.deliver, ends.drop)
    scheduler.stride = 2
    scheduler.start()
    assert ends.wait(4)
    assert scheduler.stop(WAIT_S)
    assert ends.delivered == [0, 2]
    assert ends.dropped == [(1, "shed"), (3, "shed")]


def test_an_errand_runs_on_the_inference_thread() -> None:
    ran_on, done = list[str](), threading.Event()
    scheduler, _ = run(Frames(0))

    def errand() -> None:
        ran_on.append(threading.current_thread().name)
        done.set()

    scheduler.between_frames(errand)
    assert done.wait(WAIT_S)
    assert scheduler.stop(WAIT_S)
    assert ran_on == ["inference"]


def test_progress_advances_while_there_is_nothing_to_do() -> None:
    scheduler, _ = run(Frames(0))
    before_ns = time.monotonic_ns()
    deadline_s = time.monotonic() + WAIT_S
    while scheduler.progress_monotonic_ns <= before_ns and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert scheduler.progress_monotonic_ns > before_ns
    assert scheduler.stop(WAIT_S)


@pytest.mark.parametrize("half", ["encode", "follow"])
def test_progress_stands_still_where_either_engine_hangs(half: str) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang(frame: Frame) -> Frame:
        hanging.set()
        release.wait(WAIT_S)
        return frame

    if half == "encode":
        scheduler, _ = run(Frames(1), encode=hang)
    else:
        scheduler, _ = run(Frames(1), follow=lambda frame: make_result(hang(frame)))
    assert hanging.wait(WAIT_S)
    stood_ns = scheduler.progress_monotonic_ns
    time.sleep(0.6)  # more than twice the time that an idle thread waits
    assert scheduler.progress_monotonic_ns == stood_ns
    assert not scheduler.stop(0.05)
    release.set()
    assert scheduler.stop(WAIT_S)
