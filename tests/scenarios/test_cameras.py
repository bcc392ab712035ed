"""Cameras over a real RTSP server in a process of its own, which is frozen, killed, moved and locked as in a barn."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from structlog.testing import capture_logs

from barnsightd.config import CameraConfig, IngestConfig, SourceAddress
from barnsightd.errors import SourceAccessError, SourceDataError, SourceError, SourceMissingError
from barnsightd.ingest.camera import Camera, CameraState
from barnsightd.ingest.probe import probe
from barnsightd.ingest.slots import FrameSlots
from barnsightd.types import Frame

SERVER = Path(__file__).parents[1] / "rtsp_server.py"
PATIENCE_S = 30.0
RECONNECTS = 50


class Server:
    """The RTSP server's process."""

    def __init__(self, *options: str, port: int = 0) -> None:
        command = [sys.executable, str(SERVER), "--port", str(port), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read_line().split()[1])
        self.url = f"rtsp://127.0.0.1:{self.port}/pen"

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self._process.kill)
        watchdog.start()
        try:
            return self._process.stdout.readline()
        finally:
            watchdog.cancel()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would; its port is free afterwards."""
        self._process.kill()
        self._process.wait(PATIENCE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Listener:
    """Writes down what a camera tells and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def wait_for(self, what: str, times: int = 1) -> list[str]:
        def told() -> list[str]:
            return [detail for event, detail in self.told if event == what]

        with self._changed:
            assert self._changed.wait_for(lambda: len(told()) >= times, PATIENCE_S), f"{what} among {self.told}"
            return told()

    def _note(self, event: str, detail: str) -> None:
        with self._changed:
            self.told.append((event, detail))
            self._changed.notify_all()

    def frame_decoded(self, camera: str) -> None:
        pass

    def frame_dropped(self, camera: str, reason: str) -> None:
        self._note(reason, camera)

    def reconnecting(self, _camera: str, reason: str, _delay_s: float) -> None:
        self._note("reconnecting", reason)

    def up(self, camera: str) -> None:
        self._note("up", camera)

    def down(self, _camera: str, reason: str) -> None:
        self._note("down", reason)


class Followed:
    """A camera that follows a URL, with its slots and its listener."""

    def __init__(self, url: str, fps: float = 30) -> None:
        self.slots, self.listener = FrameSlots(), Listener()
        ingest = IngestConfig(connect_s=10, silence_s=4, reconnect_min_s=0.1, reconnect_max_s=1)
        source = SourceAddress.parse(url)
        config = CameraConfig(version=1, name="pen-1", source=source, species="pig", fps=fps, ingest=ingest)
        self.camera = Camera(config, self.slots, self.listener)
        self.camera.start()

    def frame(self) -> Frame:
        [frame] = self.slots.take_all(PATIENCE_S)
        return frame

    def frame_where(self, condition: Callable[[Frame], bool]) -> Frame:
        return next(frame for frame in (self.frame() for _ in range(500)) if condition(frame))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str, port: int = 0) -> Server:
        servers.append(Server(*options, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.send(signal.SIGCONT)
        server.kill()


@pytest.fixture
def follow() -> Iterator[Callable[..., Followed]]:
    followed: list[Followed] = []

    def start(url: str, **options: float) -> Followed:
        followed.append(Followed(url, **options))
        return followed[-1]

    yield start
    stopped = [each.camera.stop(PATIENCE_S) for each in followed]
    assert all(stopped)


Serve = Callable[..., Server]
Follow = Callable[..., Followed]


@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
def test_frames_come_in_order_and_in_color(serve: Serve, follow: Follow, codec: str) -> None:
    pen = follow(serve("--codec", codec, "--audio").url)

    frames = [pen.frame() for _ in range(5)]

    assert [frame.image.shape for frame in frames] == [(240, 320, 3)] * 5
    assert all(a.index < b.index and a.monotonic_ns < b.monotonic_ns for a, b in pairwise(frames))
    assert pen.camera.status.state is CameraState.PLAYING


def test_a_camera_that_is_faster_than_wanted_is_thinned(serve: Serve, follow: Follow) -> None:
    pen = follow(serve("--fps", "30").url, fps=5)

    assert pen.listener.wait_for("rate", times=10)
    assert pen.frame().image.shape == (240, 320, 3)


def test_a_killed_server_is_found_again(serve: Serve, follow: Follow) -> None:
    server = serve()
    pen = follow(server.url)
    pen.listener.wait_for("up")

    server.kill()
    [reason] = pen.listener.wait_for("down")
    serve(port=server.port)
    pen.listener.wait_for("up", times=2)

    assert reason in {"eos", "connect", "error"}
    assert pen.frame_where(lambda frame: frame.index > 0).image.shape == (240, 320, 3)


def test_a_frozen_server_is_noticed_and_found_again(serve: Serve, follow: Follow) -> None:
    server = serve()
    pen = follow(server.url)
    pen.listener.wait_for("up")

    server.send(signal.SIGSTOP)
    assert pen.listener.wait_for("down") == ["silence"]
    server.send(signal.SIGCONT)

    pen.listener.wait_for("up", times=2)


def test_a_wrong_password_keeps_being_tried_and_is_never_told(serve: Serve, follow: Follow) -> None:
    server = serve("--login", "admin:right")

    with capture_logs() as logs:
        pen = follow(server.url.replace("//", "//admin:wr%40ng@"))
        assert pen.listener.wait_for("reconnecting", times=3)[:2] == ["unauthorized"] * 2

    told = f"{logs} {pen.camera.status} {pen.listener.told}"
    assert "refuses the user name or password" in told
    assert "wr@ng" not in told
    assert "wr%40ng" not in told


def test_the_right_password_opens_the_stream(serve: Serve, follow: Follow) -> None:
    pen = follow(serve("--login", "admin:r@ght/1").url.replace("//", "//admin:r%40ght%2F1@"))
    assert pen.frame().camera == "pen-1"


def test_nobody_at_the_address_is_a_fault_until_somebody_is(serve: Serve, follow: Follow) -> None:
    server = serve()
    server.kill()
    pen = follow(server.url)

    assert set(pen.listener.wait_for("reconnecting", times=2)) == {"connect"}
    serve(port=server.port)

    pen.listener.wait_for("up")


def test_a_camera_may_change_its_resolution_while_it_streams(serve: Serve, follow: Follow) -> None:
    server = serve("--second-size", "160x128")
    pen = follow(server.url)
    pen.frame()

    server.send(signal.SIGUSR1)

    assert pen.frame_where(lambda frame: frame.image.shape == (128, 160, 3)).image.any()
    assert pen.camera.status.reconnects == 0
    assert (pen.camera.status.width, pen.camera.status.height) == (160, 128)


def test_joining_in_the_middle_of_a_group_of_pictures_shows_no_gray_smears(serve: Serve, follow: Follow) -> None:
    server = serve("--gop", "45")
    follow(server.url).frame_where(lambda frame: frame.index >= 5)  # The shared stream is past its key frame.

    first = follow(server.url).frame()

    # The picture is a white ball on black; smears are gray.
    assert first.image.mean() < 32


def test_a_stream_that_ends_is_opened_again(serve: Serve, follow: Follow) -> None:
    pen = follow(serve("--frames", "15").url)
    assert pen.listener.wait_for("down") == ["eos"]
    pen.listener.wait_for("up", times=2)


def test_a_codec_that_is_not_supported_is_named(serve: Serve, follow: Follow) -> None:
    pen = follow(serve("--codec", "vp8").url)

    assert pen.listener.wait_for("reconnecting")[0] == "not_video"
    assert "its codec is VP8, supported are H264, H265, JPEG" in str(pen.camera.status.last_error)


def test_a_probe_describes_a_camera(serve: Serve) -> None:
    server = serve("--fps", "15")

    result = probe(SourceAddress.parse(server.url), PATIENCE_S, IngestConfig())

    assert (result.codec, result.width, result.height, result.decoder) == ("H.264", 320, 240, "avdec_h264")
    assert result.fps == pytest.approx(15, abs=3)
    assert str(result).startswith(f"{server.url}: H.264 320x240 at ")


def test_a_probe_says_what_is_wrong(serve: Serve, tmp_path: Path) -> None:
    server, locked, gone = serve("--codec", "vp8"), serve("--login", "admin:right"), serve()
    gone.kill()
    text = tmp_path / "clip.mp4"
    text.write_text("not a video\n" * 100)
    for source, error, words in (
        (gone.url, SourceError, "cannot connect"),
        (locked.url.replace("//", "//admin:wrong@"), SourceAccessError, "refuses the user name or password"),
        (server.url.replace("/pen", "/barn"), SourceMissingError, "check the path"),
        (server.url, SourceDataError, "its codec is VP8"),
        (str(text), SourceDataError, "not a video"),
        (str(tmp_path / "no-such.mp4"), SourceMissingError, "does not exist"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            probe(SourceAddress.parse(source), PATIENCE_S, IngestConfig())
        assert type(caught.value) is error
        assert "admin" not in str(caught.value)


def test_a_probe_gives_up_on_a_server_that_hangs(serve: Serve) -> None:
    server = serve()
    server.send(signal.SIGSTOP)
    with pytest.raises(SourceError, match="no frame within 1 s; nothing arrives"):
        probe(SourceAddress.parse(server.url), 1, IngestConfig())


def test_a_file_plays_as_a_camera_in_a_loop(serve: Serve, follow: Follow, tmp_path: Path) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    pen = follow(str(tmp_path))

    pen.listener.wait_for("up", times=3)

    assert {reason for event, reason in pen.listener.told if event == "down"} == {"eos"}


@pytest.mark.slow
def test_fifty_reconnects_leave_nothing_behind(serve: Serve, follow: Follow) -> None:
    """Half of the attempts meet a stream that ends, half a server that is not there."""
    here, process = serve("--frames", "3"), psutil.Process(os.getpid())
    gone = serve()
    gone.kill()
    cameras = [follow(here.url), follow(gone.url)]
    for pen in cameras:
        pen.listener.wait_for("reconnecting", times=3)
    fds, threads, held = process.num_fds(), process.num_threads(), held_bytes(process)

    for pen in cameras:
        pen.listener.wait_for("reconnecting", times=3 + RECONNECTS // 2)

    assert process.num_fds() <= fds + 8
    assert process.num_threads() <= threads + 8
    assert held_bytes(process) <= held + 24 * 2**20


def held_bytes(process: psutil.Process) -> int:
    """Resident memory without what was freed and the allocator keeps: that depends on every test before this one."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(process.memory_info().rss)
