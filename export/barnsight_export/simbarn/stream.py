"""An RTSP camera made of a clip: the clip's own H.264 units, again and again, at their true rate.

The units of an mp4 are read into memory once and handed to a live ``appsrc`` with time stamps that go on over the end
of the clip, so nothing is encoded again and a client sees one endless stream. Clients of a mount share it, as clients
of a camera do; it starts with the first frame when its first client comes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gi

from barnsight_export.errors import DataError, DataMissingError, ExportError

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402

READ_DEADLINE_S = 30.0  # without a further picture
POLL_NS = 200_000_000
MAX_CLIP_BYTES = 512 * 1024 * 1024  # a clip is held in memory
ROLE = "viewer"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Basic authentication of every mount; the password is in no representation."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unit:
    """One coded picture (access unit) and how long it is shown."""

    data: bytes = field(repr=False)
    duration_ns: int
    key: bool


def read_units(path: Path) -> list[Unit]:
    """The coded pictures of an H.264 mp4 in order. Raises DataMissingError or DataError naming the file."""
    if not path.is_file():
        raise DataMissingError(f"{path}: no such file; make one with barnsight-export simulate")
    Gst.init(None)
    pipeline = Gst.parse_launch(
        "filesrc name=source ! qtdemux ! h264parse config-interval=-1 ! "
        "video/x-h264,stream-format=byte-stream,alignment=au ! appsink name=sink sync=false max-buffers=64"
    )
    pipeline.get_by_name("source").set_property("location", str(path))
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(Gst.State.PLAYING)
    units: list[Unit] = []
    total = 0
    try:
        while (sample := _next_sample(pipeline, sink, path)) is not None:
            buffer = sample.get_buffer()
            data = buffer.extract_dup(0, buffer.get_size())
            key = not buffer.has_flags(Gst.BufferFlags.DELTA_UNIT)
            units.append(Unit(data, int(buffer.duration), key))
            total += len(data)
            if total > MAX_CLIP_BYTES:
                raise DataError(f"{path}: over {MAX_CLIP_BYTES >> 20} MiB of video; serve a shorter clip")
    finally:
        pipeline.set_state(Gst.State.NULL)
    if not units or not units[0].key:
        raise DataError(f"{path}: holds no H.264 video that starts with a key frame")
    if any(not 0 < unit.duration_ns < Gst.SECOND * 60 for unit in units):
        raise DataError(f"{path}: has pictures without a duration; write it at a constant rate")
    return units


def _next_sample(pipeline: Any, sink: Any, path: Path) -> Any:
    """The next coded picture, or None at the end of the clip."""
    deadline = time.monotonic() + READ_DEADLINE_S
    while time.monotonic() < deadline:
        sample = GstApp.AppSink.try_pull_sample(sink, POLL_NS)
        if sample is not None or GstApp.AppSink.is_eos(sink):
            return sample
        if (message := pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)) is not None:
            raise DataError(f"{path}: cannot be read as an mp4: {message.parse_error()[0].message}")
    raise DataError(f"{path}: no picture came for {READ_DEADLINE_S:g} s; is it a complete mp4?")


class Loop:
    """Feeds one media's ``appsrc`` with the units over and over."""

    def __init__(self, units: list[Unit], source: Any) -> None:
        self._units = [(GLib.Bytes.new(unit.data), unit) for unit in units]
        self._next, self._time_ns = 0, 0
        source.connect("need-data", self._push)

    def _push(self, source: Any, _wanted: int) -> None:
        data, unit = self._units[self._next]
        buffer = Gst.Buffer.new_wrapped_bytes(data)
        buffer.pts = buffer.dts = self._time_ns
        buffer.duration = unit.duration_ns
        if not unit.key:
            buffer.set_flags(Gst.BufferFlags.DELTA_UNIT)
        self._time_ns += unit.duration_ns
        self._next = (self._next + 1) % len(self._units)
        source.emit("push-buffer", buffer)


class ClipServer:
    """RTSP server of several clips: ``files`` maps a mount's name to its mp4. Port 0 takes a free one.

    Raises DataError or DataMissingError for a bad clip, ExportError when the port cannot be had.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        host: str = "127.0.0.1",
        port: int = 8554,
        credentials: Credentials | None = None,
    ) -> None:
        Gst.init(None)
        self._units = {mount: read_units(path) for mount, path in files.items()}
        self._loops: dict[str, Loop] = {}
        self._context = GLib.MainContext.new()
        self._main = GLib.MainLoop.new(self._context, False)
        self._server = GstRtspServer.RTSPServer.new()
        self._server.set_address(host)
        self._server.set_service(str(port))
        if credentials is not None:
            self._server.set_auth(_authentication(credentials))
        for mount in files:
            self._server.get_mount_points().add_factory(f"/{mount}", self._factory(mount, credentials is not None))
        self._attached = self._server.attach(self._context)
        if not self._attached:
            raise ExportError(f"cannot listen on {host}:{port}: is the port in use? choose another with --port")
        self.host = host
        self.port = int(self._server.get_bound_port())

    def url(self, mount: str) -> str:
        """Address of a mount, without credentials."""
        return f"rtsp://{self.host}:{self.port}/{mount}"

    def run(self) -> None:
        """Serve until ``stop``."""
        self._main.run()

    def stop(self) -> None:
        """End ``run``, from any thread or from a signal handler."""
        self._main.quit()

    def stop_on_signals(self) -> None:
        """Let SIGINT and SIGTERM end ``run``."""
        for number in (signal.SIGINT, signal.SIGTERM):
            watch = GLib.unix_signal_source_new(number)
            watch.set_callback(self._on_signal)
            watch.attach(self._context)

    def _on_signal(self, *_: object) -> bool:
        self.stop()
        return bool(GLib.SOURCE_REMOVE)

    def _factory(self, mount: str, guarded: bool) -> Any:
        factory = GstRtspServer.RTSPMediaFactory.new()
        factory.set_launch(
            "( appsrc name=loop is-live=true format=time block=false max-buffers=4 caps=video/x-h264,"
            "stream-format=byte-stream,alignment=au ! h264parse config-interval=-1 ! queue max-size-buffers=8 ! "
            "rtph264pay name=pay0 pt=96 )"
        )
        factory.set_shared(True)
        factory.set_protocols(GstRtsp.RTSPLowerTrans.TCP | GstRtsp.RTSPLowerTrans.UDP)
        if guarded:
            permissions = GstRtspServer.RTSPPermissions.new()
            permissions.add_permission_for_role(ROLE, "media.factory.access", True)
            permissions.add_permission_for_role(ROLE, "media.factory.construct", True)
            factory.set_permissions(permissions)
        factory.connect("media-configure", self._configure, mount)
        return factory

    def _configure(self, _factory: Any, media: Any, mount: str) -> None:
        source = media.get_element().get_by_name("loop")
        self._loops[mount] = Loop(self._units[mount], source)


def _authentication(credentials: Credentials) -> Any:
    auth = GstRtspServer.RTSPAuth.new()
    token = GstRtspServer.RTSPToken.new()
    token.set_string("media.factory.role", ROLE)
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(credentials.user, credentials.password), token)
    return auth


def serve(
    files: Mapping[str, Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8554,
    credentials: Credentials | None = None,
    ready: Callable[[ClipServer], None] | None = None,
) -> None:
    """Serve clips until SIGINT or SIGTERM; ``ready`` is called once the server listens."""
    server = ClipServer(files, host=host, port=port, credentials=credentials)
    server.stop_on_signals()
    if ready is not None:
        ready(server)
    server.run()
