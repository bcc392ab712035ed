"""One camera: a thread that keeps a stream running and tells what became of it.

    connecting ──first frame──► playing ──fault──► waiting ──pause──► connecting …

A fault is an error, the end of the stream, or no frame in time: of a camera that freezes nobody else tells. After
each one the stream is torn down whole and a new one built, after a pause that grows (`backoff.py`). Nothing that a
camera does ends the service, and nothing that GStreamer does holds up its stop: every wait has a deadline.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from random import random
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from barnsightd.config import CameraConfig
from barnsightd.errors import SourceError
from barnsightd.ingest.backoff import Backoff
from barnsightd.ingest.faults import DropReason, FaultReason, StreamError
from barnsightd.ingest.playback import FilePlayback
from barnsightd.ingest.rate import RateLimiter
from barnsightd.ingest.rtsp import RtspStream
from barnsightd.ingest.slots import FrameSlots
from barnsightd.ingest.stream import FrameSink, Stream
from barnsightd.types import Frame

NS_PER_S = 1_000_000_000
POLL_S = 0.2
STATE_CHANGE_S = 5.0
STABLE_S = 120.0
MAX_HANGING = 4
FPS_WINDOW = 64

log = structlog.get_logger(__name__)

OpenStream = Callable[[CameraConfig, FrameSink], Stream]


class CameraState(str, Enum):
    """What a camera's thread is doing."""

    CONNECTING = "connecting"
    PLAYING = "playing"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """A camera at this moment; `fps` is the rate of its newest decoded frames before thinning, 0 without a stream."""

    camera: str
    state: CameraState
    last_frame_monotonic_ns: int | None = None
    last_error: str | None = None
    reconnects: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0


class CameraListener(Protocol):
    """Who wants to know what becomes of cameras; called on the cameras' and GStreamer's threads."""

    def frame_decoded(self, camera: str) -> None:
        """A frame came, whatever becomes of it."""
        ...

    def frame_dropped(self, camera: str, reason: DropReason) -> None:
        """A decoded frame did not, or will not, reach inference."""
        ...

    def reconnecting(self, camera: str, reason: FaultReason, delay_s: float) -> None:
        """The stream failed and is tried again after `delay_s`."""
        ...

    def up(self, camera: str) -> None:
        """The first frame of a connection came."""
        ...

    def down(self, camera: str, reason: FaultReason) -> None:
        """A camera that was up is not any more."""
        ...


def open_stream(config: CameraConfig, sink: FrameSink) -> Stream:
    """The stream that the camera's source asks for."""
    path = config.source.path
    if path is not None:
        return FilePlayback(path, config.fps, sink)
    return RtspStream(config.source, config.ingest, sink)


class Camera:
    """Follows one source from `start` to `stop` and leaves its newest frame in `slots`."""

    def __init__(
        self,
        config: CameraConfig,
        slots: FrameSlots,
        listener: CameraListener,
        *,
        open_stream: OpenStream = open_stream,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        draw: Callable[[], float] = random,
    ) -> None:
        self.name = config.name
        self._config = config
        self._slots = slots
        self._listener = listener
        self._open_stream = open_stream
        self._monotonic_ns = monotonic_ns
        self._backoff = Backoff(config.ingest.reconnect_min_s, config.ingest.reconnect_max_s, draw)
        self._log = log.bind(camera=config.name)
        self._lock = threading.Lock()
        self._status = CameraStatus(config.name, CameraState.CONNECTING)
        self._connection: _Connection | None = None
        self._indices = count()
        self._hanging: list[Stream] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera-{config.name}", daemon=True)

    @property
    def status(self) -> CameraStatus:
        """The camera at this moment, from any thread."""
        with self._lock:
            status, connection = self._status, self._connection
        return connection.describe(status) if connection else status

    def start(self) -> None:
        """Begin to follow the source; returns at once."""
        self._thread.start()

    def stop(self, deadline_s: float) -> bool:
        """Deliver nothing more and free the stream; returns False where that hung and was abandoned."""
        self._stopping.set()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
        if self._thread.ident is not None:
            self._thread.join(deadline_s)
        self._change(state=CameraState.STOPPED)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            fault = self._follow_to_fault()
            if fault is not None and not self._stopping.is_set():
                self._pause(fault)

    def _follow_to_fault(self) -> StreamError | None:
        try:
            self._follow()
        except StreamError as fault:
            return fault
        except SourceError as error:
            return StreamError.of(error)
        except Exception as error:  # noqa: BLE001 - one camera's bug must not leave that camera unwatched
            # As text: a logger that shows local variables would show the camera's password.
            text = self._config.source.mask(traceback.format_exc())
            self._log.error("camera failed in a way nobody foresaw", traceback=text)
            return StreamError("error", f"internal error: {type(error).__name__}; please report the log")
        return None

    def _follow(self) -> None:
        """Connect, and look after the connection until it fails or the camera is stopped."""
        self._refuse_if_hanging()
        ingest = self._config.ingest
        connection = self._connect()
        stream = self._open_stream(self._config, connection)
        try:
            stream.start(STATE_CHANGE_S)
            while not self._stopping.is_set():
                stream.poll(POLL_S)
                waited_s = connection.silent_s()
                if not connection.is_up and waited_s > ingest.connect_s:
                    raise self._no_frame("connect", ingest.connect_s, stream)
                if connection.is_up and waited_s > ingest.silence_s:
                    raise self._no_frame("silence", ingest.silence_s, stream)
        finally:
            connection.close()
            if not stream.close(STATE_CHANGE_S):
                self._log.error("stream hangs in GStreamer and was abandoned")
                self._hanging.append(stream)

    def _connect(self) -> _Connection:
        config = self._config
        connection = _Connection(
            config.name, config.fps, self._slots, self._listener, self._indices, self._monotonic_ns, self._on_up
        )
        with self._lock:
            self._connection = connection
        self._change(state=CameraState.CONNECTING)
        return connection

    def _refuse_if_hanging(self) -> None:
        """Abandoned streams hold memory: a few are borne, more are not made until one of them lets go."""
        self._hanging = [stream for stream in self._hanging if not stream.close(0)]
        if len(self._hanging) >= MAX_HANGING:
            raise StreamError("error", f"{len(self._hanging)} streams hang in GStreamer; restart the service")

    def _no_frame(self, reason: FaultReason, waited_s: float, stream: Stream) -> StreamError:
        text = f"{self._config.source}: no frame for {waited_s:g} s; {stream.explain_silence()}"
        return StreamError(reason, text)

    def _on_up(self) -> None:
        self._change(state=CameraState.PLAYING)
        self._listener.up(self.name)
        self._log.info("camera is up")

    def _pause(self, fault: StreamError) -> None:
        """Say what happened, then leave the source alone for a while."""
        connection = self._connection
        if connection is not None and connection.is_up:
            self._listener.down(self.name, fault.reason)
        if connection is not None and (connection.played_s() > STABLE_S or self._is_end_of_file(fault)):
            self._backoff.reset()
        # Repeated wrong passwords lock accounts: ask seldom.
        delay_s = self._backoff.slowest_s() if fault.reason == "unauthorized" else self._backoff.next_s()
        self._change(state=CameraState.WAITING, last_error=str(fault), reconnects=self._status.reconnects + 1)
        self._listener.reconnecting(self.name, fault.reason, delay_s)
        self._log.warning("camera is down", reason=fault.reason, error=str(fault), retry_in_s=round(delay_s, 1))
        self._stopping.wait(delay_s)

    def _is_end_of_file(self, fault: StreamError) -> bool:
        return fault.reason == "eos" and self._config.source.path is not None

    def _change(self, **fields: Any) -> None:
        with self._lock:
            if self._status.state is not CameraState.STOPPED:
                self._status = replace(self._status, **fields)


class _Connection:
    """The frames of one connection: thinned, stamped and put into the camera's slot."""

    def __init__(
        self,
        camera: str,
        fps: float,
        slots: FrameSlots,
        listener: CameraListener,
        indices: Iterator[int],
        monotonic_ns: Callable[[], int],
        on_up: Callable[[], None],
    ) -> None:
        self._camera = camera
        self._limiter = RateLimiter(fps)
        self._slots = slots
        self._listener = listener
        self._indices = indices
        self._monotonic_ns = monotonic_ns
        self._on_up = on_up
        self._opened_ns = monotonic_ns()
        self._decoded_ns: deque[int] = deque(maxlen=FPS_WINDOW)
        self._first_ns: int | None = None
        self._stamped_ns = 0
        self._size = (0, 0)
        self._closed = False

    @property
    def is_up(self) -> bool:
        """Whether a frame has come."""
        return self._first_ns is not None

    def silent_s(self) -> float:
        """Seconds since the last decoded frame, or since the connection was opened."""
        last_ns = self._decoded_ns[-1] if self._decoded_ns else self._opened_ns
        return (self._monotonic_ns() - last_ns) / NS_PER_S

    def played_s(self) -> float:
        """Seconds from the first decoded frame to the last."""
        return 0.0 if self._first_ns is None else (self._decoded_ns[-1] - self._first_ns) / NS_PER_S

    def describe(self, status: CameraStatus) -> CameraStatus:
        """`status` with what this connection knows."""
        height, width = self._size
        times_ns = tuple(self._decoded_ns)
        if not times_ns:
            return status
        span_s = (times_ns[-1] - times_ns[0]) / NS_PER_S
        fps = (len(times_ns) - 1) / span_s if span_s > 0 and not self._closed else 0.0
        return replace(status, last_frame_monotonic_ns=times_ns[-1], width=width, height=height, fps=fps)

    def close(self) -> None:
        """Take no more frames, from streams that were abandoned either."""
        self._closed = True

    def wants(self, pts_ns: int) -> bool:
        """Count a decoded frame; whether its rate allows it."""
        if self._closed:
            return False
        self._note_decoded()
        if self._limiter.keep(pts_ns):
            return True
        self._listener.frame_dropped(self._camera, "rate")
        return False

    def damaged(self) -> None:
        """Count a damaged frame: the camera lives."""
        if not self._closed:
            self._note_decoded()
            self._listener.frame_dropped(self._camera, "corrupt")

    def deliver(self, image: NDArray[np.uint8], age_ns: int) -> None:
        """Put a frame into the slot, stamped with the time at which it arrived; stamps never go back."""
        if self._closed:
            return
        self._size = image.shape[:2]
        self._stamped_ns = max(self._monotonic_ns() - age_ns, self._stamped_ns + 1)
        frame = Frame(self._camera, next(self._indices), time.time_ns() - age_ns, self._stamped_ns, image)
        if self._slots.put(frame):
            self._listener.frame_dropped(self._camera, "superseded")

    def _note_decoded(self) -> None:
        now_ns = self._monotonic_ns()
        self._decoded_ns.append(now_ns)
        self._listener.frame_decoded(self._camera)
        if self._first_ns is None:
            self._first_ns = now_ns
            self._on_up()
