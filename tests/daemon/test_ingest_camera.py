"""A camera's life on scripted streams: every fault leads to a pause and a new stream, and nothing holds up a stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from structlog.testing import capture_logs

from barnsightd.config import CameraConfig, IngestConfig, SourceAddress
from barnsightd.errors import SourceMissingError
from barnsightd.ingest.camera import MAX_HANGING, STABLE_S, Camera, CameraState
from barnsightd.ingest.faults import StreamError
from barnsightd.ingest.slots import FrameSlots
from barnsightd.ingest.stream import FrameSink, Stream

NS_PER_S = 1_000_000_000
PATIENCE_S = 20.0
IMAGE = np.zeros((4, 6, 3), np.uint8)
INGEST = IngestConfig(connect_s=10, silence_s=10, reconnect_min_s=0.1, reconnect_max_s=1)
CONFIG = CameraConfig(
    version=1,
    name="pen-1",
    source=SourceAddress.parse("rtsp://admin:hunter2@10.0.0.13/stream1"),
    species="pig",
    fps=10,
    ingest=INGEST,
)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 1000 * NS_PER_S

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS_PER_S)


class Listener:
    """Writes down what it is told and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self._changed = threading.Condition()

    def wait_for(self, what: str, times: int = 1) -> list[tuple[object, ...]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.about(what)) >= times, PATIENCE_S), f"{self.told}"
            return self.about(what)

    def about(self, what: str) -> list[tuple[object, ...]]:
        return [event for event in self.told if event[0] == what]

    def _note(self, *event: object) -> None:
        with self._changed:
            self.told.append(event)
            self._changed.notify_all()

    def frame_decoded(self, camera: str) -> None:
        self._note("decoded", camera)

    def frame_dropped(self, camera: str, reason: str) -> None:
        self._note("dropped", camera, reason)

    def reconnecting(self, _camera: str, reason: str, delay_s: float) -> None:
        self._note("reconnecting", reason, delay_s)

    def up(self, camera: str) -> None:
        self._note("up", camera)

    def down(self, _camera: str, reason: str) -> None:
        self._note("down", reason)


Act = Callable[[FrameSink], None]


class ScriptedStream:
    """Performs one act per poll; after the last one it plays on in silence."""

    def __init__(self, *acts: Act, hangs: bool = False) -> None:
        self.acts = iter(acts)
        self.hangs = hangs
        self.sink: FrameSink | None = None
        self.closed = threading.Event()
        self._idle = threading.Event()

    def start(self, _deadline_s: float) -> None:
        pass

    def poll(self, _timeout_s: float) -> None:
        assert self.sink is not None
        act = next(self.acts, None)
        if act is None:
            self._idle.wait(0.001)
        else:
            act(self.sink)

    def close(self, _deadline_s: float) -> bool:
        self.closed.set()
        return not self.hangs

    def explain_silence(self) -> str:
        return "nothing arrives"


def frames(*stamps_s: float) -> Act:
    def act(sink: FrameSink) -> None:
        for stamp_s in stamps_s:
            if sink.wants(round(stamp_s * NS_PER_S)):
                sink.deliver(IMAGE, age_ns=0)

    return act


def fails(reason: str) -> Act:
    def act(sink: FrameSink) -> None:
        raise StreamError(reason, f"it says {reason}")  # type: ignore[arg-type]

    return act


def plays_for(clock: Clock, seconds: int) -> Act:
    def act(sink: FrameSink) -> None:
        for second in range(seconds + 1):
            frames(second)(sink)
            clock.forward(1)

    return act


def passes(clock: Clock, seconds: float) -> Act:
    return lambda _sink: clock.forward(seconds)


class Barn:
    """A camera with its slots, its listener, its clock and the streams that it will open."""

    def __init__(self) -> None:
        self.clock, self.listener, self.slots = Clock(), Listener(), FrameSlots()
        self.streams: list[ScriptedStream] = []
        self.opened = 0
        self.camera = Camera(
            CONFIG,
            self.slots,
            self.listener,
            open_stream=self.open_stream,
            monotonic_ns=self.clock,
            draw=lambda: 1.0,
        )

    def open_stream(self, _config: CameraConfig, sink: FrameSink) -> Stream:
        stream = self.streams.pop(0)
        stream.sink = sink
        self.opened += 1
        return stream

    def play(self, *streams: ScriptedStream) -> None:
        self.streams = list(streams)
        self.camera.start()


@pytest.fixture
def barn() -> Iterator[Barn]:
    barn = Barn()
    yield barn
    barn.camera.stop(PATIENCE_S)


def test_frames_reach_the_slot_thinned_numbered_and_stamped(barn: Barn) -> None:
    barn.play(ScriptedStream(frames(0, 0.04, 0.1), frames(0.2)))
    barn.listener.wait_for("decoded", times=4)
    barn.camera.stop(PATIENCE_S)

    [newest] = barn.slots.take_all(0)
    assert (newest.camera, newest.index, newest.image.shape) == ("pen-1", 2, (4, 6, 3))
    assert newest.monotonic_ns == barn.clock.now_ns + 2
    assert barn.listener.about("dropped") == [
        ("dropped", "pen-1", "rate"),
        ("dropped", "pen-1", "superseded"),
        ("dropped", "pen-1", "superseded"),
    ]


def test_the_status_tells_what_the_camera_sends(barn: Barn) -> None:
    barn.play(ScriptedStream(frames(0), passes(barn.clock, 0.5), frames(0.5)))
    barn.listener.wait_for("decoded", times=2)

    status = barn.camera.status
    assert (status.state, status.width, status.height) == (CameraState.PLAYING, 6, 4)
    assert status.last_frame_monotonic_ns == barn.clock.now_ns
    assert status.fps == pytest.approx(2)


def test_a_connection_that_is_gone_sends_nothing(barn: Barn) -> None:
    barn.play(ScriptedStream(frames(0), passes(barn.clock, 0.5), frames(0.5), fails("unauthorized")))
    barn.listener.wait_for("reconnecting")

    assert barn.camera.status.fps == 0


def test_a_damaged_frame_counts_as_life_and_goes_no_further(barn: Barn) -> None:
    barn.play(ScriptedStream(lambda sink: sink.damaged()))
    barn.listener.wait_for("up")
    assert barn.listener.wait_for("dropped") == [("dropped", "pen-1", "corrupt")]
    assert barn.slots.take_all(0) == []


@pytest.mark.parametrize("reason", ["eos", "error", "connect", "not_found", "not_video"])
def test_every_fault_leads_to_a_new_stream(barn: Barn, reason: str) -> None:
    broken = ScriptedStream(frames(0), fails(reason))
    barn.play(broken, ScriptedStream(frames(0)))
    barn.listener.wait_for("up", times=2)

    assert broken.closed.is_set()
    assert barn.listener.about("down") == [("down", reason)]
    assert barn.listener.about("reconnecting") == [("reconnecting", reason, 0.1)]
    assert barn.camera.status.reconnects == 1
    assert barn.camera.status.last_error == f"it says {reason}"


def test_a_stream_that_falls_silent_is_a_fault(barn: Barn) -> None:
    barn.play(ScriptedStream(frames(0), passes(barn.clock, INGEST.silence_s + 1)), ScriptedStream(frames(0)))
    barn.listener.wait_for("up", times=2)

    assert barn.listener.about("reconnecting") == [("reconnecting", "silence", 0.1)]
    assert barn.camera.status.last_error == "rtsp://***@10.0.0.13/stream1: no frame for 10 s; nothing arrives"


def test_a_stream_that_never_sends_a_frame_is_a_fault(barn: Barn) -> None:
    barn.play(ScriptedStream(passes(barn.clock, INGEST.connect_s + 1)), ScriptedStream(frames(0)))
    barn.listener.wait_for("up")

    assert barn.listener.about("reconnecting") == [("reconnecting", "connect", 0.1)]
    assert barn.listener.about("down") == []


def test_pauses_grow_until_the_camera_has_played_for_minutes(barn: Barn) -> None:
    steady = ScriptedStream(plays_for(barn.clock, round(STABLE_S) + 1), fails("error"))
    barn.play(*(ScriptedStream(fails("error")) for _ in range(3)), steady, ScriptedStream(frames(0)))
    barn.listener.wait_for("up", times=2)

    assert [delay_s for _, _, delay_s in barn.listener.about("reconnecting")] == [0.1, 0.2, 0.4, 0.1]


def test_a_refused_password_is_not_tried_again_in_haste(barn: Barn) -> None:
    barn.play(ScriptedStream(fails("unauthorized")), ScriptedStream(frames(0)))
    barn.listener.wait_for("up")

    assert barn.listener.about("reconnecting") == [("reconnecting", "unauthorized", INGEST.reconnect_max_s)]


def test_a_source_that_cannot_be_opened_is_a_fault_like_any_other(barn: Barn) -> None:
    def fails_to_open(sink: FrameSink) -> None:
        raise SourceMissingError("clip.mp4 does not exist")

    barn.play(ScriptedStream(fails_to_open), ScriptedStream(frames(0)))
    barn.listener.wait_for("up")

    assert barn.listener.about("reconnecting") == [("reconnecting", "not_found", 0.1)]


def test_a_bug_costs_one_connection_and_leaks_no_password(barn: Barn) -> None:
    def has_a_bug(sink: FrameSink) -> None:
        raise RuntimeError(f"met {CONFIG.source.reveal()}")

    with capture_logs() as logs:
        barn.play(ScriptedStream(has_a_bug), ScriptedStream(frames(0)))
        barn.listener.wait_for("up")

    assert barn.listener.about("reconnecting") == [("reconnecting", "error", 0.1)]
    assert "has_a_bug" in str(logs)
    assert "hunter2" not in f"{logs} {barn.camera.status}"


def test_frames_of_a_closed_stream_go_nowhere(barn: Barn) -> None:
    late = ScriptedStream(frames(0))
    barn.play(late)
    barn.listener.wait_for("up")
    barn.camera.stop(PATIENCE_S)
    barn.slots.take_all(0)

    frames(1, 2)(late.sink)  # type: ignore[arg-type]

    assert barn.slots.take_all(0) == []
    assert barn.camera.status.state is CameraState.STOPPED


def test_a_stop_does_not_wait_for_the_pause_to_end() -> None:
    barn = Barn()
    barn.camera = Camera(
        CONFIG.model_copy(update={"ingest": IngestConfig(reconnect_min_s=60, reconnect_max_s=3600)}),
        barn.slots,
        barn.listener,
        open_stream=barn.open_stream,
    )
    barn.play(ScriptedStream(fails("error")))
    barn.listener.wait_for("reconnecting")

    assert barn.camera.stop(PATIENCE_S)


def test_a_stop_does_not_wait_for_a_stream_that_hangs(barn: Barn) -> None:
    hanging, released = threading.Event(), threading.Event()

    def hang(sink: FrameSink) -> None:
        hanging.set()
        released.wait(PATIENCE_S)

    barn.play(ScriptedStream(hang))
    assert hanging.wait(PATIENCE_S)

    assert not barn.camera.stop(0.01)
    released.set()


def test_streams_that_hang_are_few_and_the_camera_lives_on_once_they_let_go(barn: Barn) -> None:
    stuck = [ScriptedStream(fails("error"), hangs=True) for _ in range(MAX_HANGING)]
    with capture_logs() as logs:
        barn.play(*stuck, ScriptedStream(frames(0)))
        barn.listener.wait_for("reconnecting", times=MAX_HANGING + 2)
        assert barn.opened == MAX_HANGING
        assert barn.camera.status.last_error == f"{MAX_HANGING} streams hang in GStreamer; restart the service"

        stuck[0].hangs = False
        barn.listener.wait_for("up")

    assert sum("abandoned" in entry["event"] for entry in logs) == MAX_HANGING
