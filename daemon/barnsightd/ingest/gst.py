"""The door to GStreamer: imported when a stream is opened, not before, and the few things asked of it everywhere."""

from __future__ import annotations

import threading
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from barnsightd.errors import SourceError

_CHANNELS = {"RGB": 3, "RGBA": 4}
_CODEC_NAMES = {"x-h264": "H.264", "x-h265": "H.265", "jpeg": "JPEG", "x-gif": "GIF"}


@cache
def gstreamer() -> Any:
    """The initialized GStreamer module. Raises SourceError where GStreamer or its Python bindings are missing."""
    # GStreamer brings libunwind, and a C++ library that is loaded after it unwinds its exceptions through that: ONNX
    # Runtime then aborts the process where it should raise. Loaded before, it keeps its own unwinder.
    with suppress(ImportError):
        import onnxruntime  # noqa: F401
    try:
        import gi

        for library in ("Gst", "GstApp", "GstVideo"):
            gi.require_version(library, "1.0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # PyGObject before 3.44 has an importer of the old kind.
            from gi.repository import GLib, Gst, GstApp, GstVideo  # noqa: F401 - appsink and buffers get methods
    except (ImportError, ValueError) as error:
        packages = "python3-gst-1.0 gir1.2-gst-plugins-base-1.0, and use the system's Python"
        raise SourceError(f"GStreamer cannot be used from Python ({error}); install {packages}") from None
    Gst.init(None)
    return Gst


def is_installed(element: str) -> bool:
    """Whether GStreamer has this element."""
    return gstreamer().ElementFactory.find(element) is not None


def build(description: str, *, open_ends: bool = False) -> Any:
    """The element or pipeline described; with `open_ends` a bin whose pads are the ends that link to nothing.

    Raises SourceError where an element is not installed.
    """
    Gst = gstreamer()
    from gi.repository import GLib

    try:
        return Gst.parse_bin_from_description(description, True) if open_ends else Gst.parse_launch(description)
    except GLib.Error as error:
        packages = "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav"
        raise SourceError(f"GStreamer cannot build a pipeline ({error.message}); install {packages}") from None


def request_state(pipeline: Any, state: Any) -> threading.Thread:
    """Ask for a state on a thread of its own: a driver that hangs costs that thread and never the caller's."""
    name = f"gst-{state.value_nick}"
    thread = threading.Thread(target=pipeline.set_state, args=(state,), name=name, daemon=True)
    thread.start()
    return thread


def set_state(pipeline: Any, state: Any, deadline_s: float) -> bool:
    """Ask for a state; returns False where GStreamer has not answered at the deadline."""
    thread = request_state(pipeline, state)
    thread.join(deadline_s)
    return not thread.is_alive()


def to_image(sample: Any) -> NDArray[np.uint8]:
    """The picture of an appsink's sample, copied once: (H, W, 3) uint8 RGB. Raises ValueError if cut short."""
    from gi.repository import GstVideo

    Gst = gstreamer()
    buffer, info = sample.get_buffer(), GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    channels = _CHANNELS[sample.get_caps().get_structure(0).get_string("format")]
    meta = GstVideo.buffer_get_video_meta(buffer)
    stride = meta.stride[0] if meta else info.stride[0]
    mapped, memory = buffer.map(Gst.MapFlags.READ)
    if not mapped:
        raise ValueError("the decoder's memory cannot be read")
    try:
        view = np.ndarray(  # rows of whole pixels, padded to `stride` bytes
            (info.height, info.width, channels), np.uint8, buffer=memory.data, strides=(stride, channels, 1)
        )
        return view.copy() if channels == 3 else _rgba_to_rgb(view)
    except TypeError:
        raise ValueError(f"a picture of {info.width}x{info.height} has only {memory.size} bytes") from None
    finally:
        buffer.unmap(memory)


def _rgba_to_rgb(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(view, cv2.COLOR_RGBA2RGB), np.uint8)


def video_decoder(pipeline: Any) -> tuple[str, str]:
    """The codec and the element that decodes it, such as ("H.264", "avdec_h264"); ("", "") before there is one."""
    Gst = gstreamer()
    found = []

    def look(element: Any) -> None:
        kind = element.get_factory().get_metadata("klass") or ""
        if "Decoder" in kind and ("Video" in kind or "Image" in kind):
            found.append(element)

    iterator = pipeline.iterate_recurse()
    while iterator.foreach(look) == Gst.IteratorResult.RESYNC:
        found.clear()
        iterator.resync()
    for element in found:
        caps = element.get_static_pad("sink").get_current_caps()
        if caps is not None:
            media = caps.get_structure(0).get_name().partition("/")[2]
            return _CODEC_NAMES.get(media, media), element.get_factory().get_name()
    return "", ""
