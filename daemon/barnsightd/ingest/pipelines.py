"""GStreamer pipelines as text, for the Jetson's hardware and for any machine's processor.

Pure functions: they know which elements do what, not whether these are installed, and no credential ever enters a
description. Elements and properties are those of GStreamer 1.20 (JetPack 6) and later.

    rtspsrc ─┬ pad of the video stream ─► depayload ─► parse ─► decode ─► convert ─► appsink
             └ its codec, from the SDP, chooses the branch

Frames are dropped after the decoder, never before: a decoder that misses a frame shows wrong ones until the next
key frame. `convert` is named, so that frames which are not wanted can be dropped before they cost a conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Decoder = Literal["software", "jetson"]
IsInstalled = Callable[[str], bool]

# appsink never holds back the pipeline: it keeps one frame, the newest, and does not wait for its time.
LIVE_SINK = "appsink name=sink emit-signals=true sync=false max-buffers=1 drop=true"
# For files each frame counts: the pipeline waits for the reader.
FILE_SINK = "appsink name=sink sync=false max-buffers=2 drop=false"

# One decoding thread: more would fight inference for the processor. Frames decoded without their key frame, as
# after joining in the middle of a group of pictures, are gray smears: they stay inside the decoder.
_LIBAV = "max-threads=1 output-corrupt=false"

_DEPAYLOAD = {
    "H264": "rtph264depay ! h264parse",
    "H265": "rtph265depay ! h265parse",
    "JPEG": "rtpjpegdepay",
}
_SOFTWARE = {"H264": f"avdec_h264 {_LIBAV}", "H265": f"avdec_h265 {_LIBAV}", "JPEG": "jpegdec"}
_HARDWARE = "nvv4l2decoder"
_TO_RGB = "videoconvert name=convert ! video/x-raw,format=RGB"
# nvvidconv copies from the decoder's memory (NVMM) to the host's and knows RGBA, not RGB.
_NVMM_TO_RGBA = "nvvidconv name=convert ! video/x-raw,format=RGBA"

CODECS = tuple(_DEPAYLOAD)


def choose_decoder(wanted: Literal["auto", "software", "jetson"], is_installed: IsInstalled) -> Decoder:
    """The Jetson's decoder where it is installed, unless the configuration decides."""
    if wanted != "auto":
        return wanted
    return "jetson" if is_installed("nvv4l2decoder") and is_installed("nvvidconv") else "software"


def rtsp_source(transport: Literal["tcp", "udp"], latency_ms: int, connect_s: float) -> str:
    """The receiving end; address, user and password are set as properties of the element `source`."""
    timeout_us = round(connect_s * 1e6)
    return f"rtspsrc name=source protocols={transport} latency={latency_ms} tcp-timeout={timeout_us}"


def decode_branch(codec: str, decoder: Decoder) -> str:
    """From RTP packets of `codec` (one of CODECS) to RGB or RGBA pictures in host memory."""
    if decoder == "jetson" and codec != "JPEG":
        return f"{_DEPAYLOAD[codec]} ! {_HARDWARE} ! {_NVMM_TO_RGBA} ! {LIVE_SINK}"
    return f"{_DEPAYLOAD[codec]} ! {_SOFTWARE[codec]} ! {_TO_RGB} ! {LIVE_SINK}"


def file_pipeline(decoder: Decoder) -> str:
    """A file's video stream, every frame; the path is set as a property of the element `source`.

    Only raw video leaves decodebin, in whatever memory: sound is not decoded.
    """
    convert = _NVMM_TO_RGBA if decoder == "jetson" else _TO_RGB
    decode = "decodebin name=decode caps=video/x-raw(ANY) expose-all-streams=false"
    return f"filesrc name=source ! {decode} ! {convert} ! {FILE_SINK}"
