"""An RTSP camera through GStreamer: the first video stream of its SDP, decoded by what that stream's codec needs.

What was seen of failures: a server that dies over TCP gives EOS and no error; one that freezes gives nothing at all
and stays PLAYING (the camera's own deadlines see that); a wrong password gives an error within milliseconds.
"""

from __future__ import annotations

from threading import Thread
from typing import Any

from barnsightd.config import IngestConfig, SourceAddress
from barnsightd.errors import SourceError
from barnsightd.ingest.address import StreamAddress
from barnsightd.ingest.faults import FaultReason, StreamError, describe, reason_of
from barnsightd.ingest.gst import build, gstreamer, is_installed, request_state, set_state, to_image, video_decoder
from barnsightd.ingest.pipelines import CODECS, choose_decoder, decode_branch, rtsp_source
from barnsightd.ingest.stream import FrameSink

NS_PER_S = 1_000_000_000
MAX_AGE_NS = 10 * NS_PER_S


class RtspStream:
    """One connection to one camera; frames reach the sink on GStreamer's streaming thread."""

    def __init__(self, source: SourceAddress, settings: IngestConfig, sink: FrameSink) -> None:
        Gst = gstreamer()
        self._source = source
        self._decoder = choose_decoder(settings.decoder, is_installed)
        self._sink = sink
        self._fault: StreamError | None = None
        self._selected = False
        self._received = False
        self._closing: Thread | None = None
        address = StreamAddress.parse(source.reveal())
        receiver = build(rtsp_source(settings.transport, settings.latency_ms, settings.connect_s))
        receiver.set_property("location", address.location)
        receiver.set_property("user-id", address.user or None)
        receiver.set_property("user-pw", address.password or None)
        self._pipeline: Any = Gst.Pipeline()
        self._pipeline.add(receiver)
        receiver.connect("select-stream", self._on_select_stream)
        receiver.connect("pad-added", self._on_pad_added)

    @property
    def decoder(self) -> tuple[str, str]:
        """Codec and decoding element, ("", "") until they are known."""
        return video_decoder(self._pipeline)

    def start(self, deadline_s: float) -> None:
        """Begin to connect; frames or a fault follow. Raises StreamError where GStreamer does not answer."""
        if not set_state(self._pipeline, gstreamer().State.PLAYING, deadline_s):
            raise StreamError("error", f"{self._source}: GStreamer has not started within {deadline_s:g} s")

    def poll(self, timeout_s: float) -> None:
        """Wait for bad news. Raises StreamError with its text masked."""
        Gst = gstreamer()
        message = self._pipeline.get_bus().timed_pop_filtered(
            round(timeout_s * NS_PER_S), Gst.MessageType.ERROR | Gst.MessageType.EOS
        )
        if self._fault is not None:  # Says more than the errors that follow from it.
            raise self._fault
        if message is None:
            return
        if message.type == Gst.MessageType.EOS:
            raise StreamError("eos", f"{self._source} ended the stream; look whether the camera restarts")
        error, debug = message.parse_error()
        detail = f"{error.message} {(debug or '').rpartition(':')[2]}"
        raise self._failure(reason_of(error.domain, error.code), detail)

    def close(self, deadline_s: float) -> bool:
        """Free everything; returns False where that still goes on. May be called again to ask."""
        if self._closing is None:
            self._closing = request_state(self._pipeline, gstreamer().State.NULL)
            # The pipeline's callbacks refer to this stream: a reference back would keep both for ever.
            self._pipeline = None
        self._closing.join(deadline_s)
        return not self._closing.is_alive()

    def explain_silence(self) -> str:
        """Whether anything arrives at all."""
        if self._received:
            return "packets arrive, but no frame can be decoded; shorten the camera's key frame interval"
        return "nothing arrives; look at the camera and its network"

    def _failure(self, reason: FaultReason, detail: str) -> StreamError:
        return StreamError(reason, describe(reason, str(self._source), self._source.mask(detail)))

    def _on_select_stream(self, _source: Any, _number: int, caps: Any) -> bool:
        """The camera is asked for its first video stream alone: no sound, no metadata."""
        if self._selected or caps.get_structure(0).get_string("media") != "video":
            return False
        self._selected = True
        return True

    def _on_pad_added(self, source: Any, pad: Any) -> None:
        """The stream is there and its codec known: attach what decodes it."""
        Gst = gstreamer()
        codec = (pad.get_current_caps() or pad.query_caps(None)).get_structure(0).get_string("encoding-name")
        if codec not in CODECS:
            self._fault = self._failure("not_video", f"its codec is {codec}, supported are {', '.join(CODECS)}")
            return
        try:
            branch = build(decode_branch(codec, self._decoder), open_ends=True)
        except SourceError as error:
            self._fault = StreamError("error", str(error))
            return
        branch.get_by_name("convert").get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, self._on_decoded)
        branch.get_by_name("sink").connect("new-sample", self._on_sample)
        pad.add_probe(Gst.PadProbeType.BUFFER, self._on_first_packet)
        source.get_parent().add(branch)
        pad.link(branch.get_static_pad("sink"))
        branch.sync_state_with_parent()

    def _on_first_packet(self, _pad: Any, _info: Any) -> Any:
        self._received = True
        return gstreamer().PadProbeReturn.REMOVE

    def _on_decoded(self, pad: Any, info: Any) -> Any:
        """A frame left the decoder: keep it or drop it before it costs a conversion."""
        Gst = gstreamer()
        buffer = info.get_buffer()
        if buffer.get_flags() & Gst.BufferFlags.CORRUPTED:
            self._sink.damaged()
            return Gst.PadProbeReturn.DROP
        pts_ns = _running_ns(pad.get_parent_element()) if buffer.pts == Gst.CLOCK_TIME_NONE else buffer.pts
        return Gst.PadProbeReturn.OK if self._sink.wants(pts_ns) else Gst.PadProbeReturn.DROP

    def _on_sample(self, appsink: Any) -> Any:
        """A picture is ready: copy it out and hand it on with its age."""
        Gst = gstreamer()
        sample = appsink.emit("pull-sample")
        if sample is None:
            return Gst.FlowReturn.EOS
        try:
            image = to_image(sample)
        except ValueError as error:
            self._fault = self._failure("not_video", str(error))
            return Gst.FlowReturn.ERROR
        arrived_ns = sample.get_segment().to_running_time(Gst.Format.TIME, sample.get_buffer().pts)
        age_ns = 0 if arrived_ns == Gst.CLOCK_TIME_NONE else _running_ns(appsink) - arrived_ns
        self._sink.deliver(image, min(max(age_ns, 0), MAX_AGE_NS))
        return Gst.FlowReturn.OK


def _running_ns(element: Any) -> int:
    """The time of the element's pipeline: nanoseconds since it began to play."""
    clock = element.get_clock()
    return int(clock.get_time() - element.get_base_time()) if clock else 0
