"""What can go wrong with a stream: a small fixed set of reasons, which are metric labels, and a sentence each."""

from __future__ import annotations

from typing import Literal

from barnsightd.errors import SourceAccessError, SourceDataError, SourceError, SourceMissingError

FaultReason = Literal[
    "connect",  # nothing answers at the address, or no frame came in time
    "unauthorized",  # user name or password are refused
    "not_found",  # the server, or the disk, has no such stream or file
    "not_video",  # there is something, and it is not video that can be decoded
    "silence",  # the stream plays and sends no more frames
    "eos",  # the other side ended the stream
    "error",  # anything else that GStreamer reports
]
DropReason = Literal[
    "rate",  # the camera sends more frames a second than its configuration asks for
    "superseded",  # a newer frame came before inference took this one
    "corrupt",  # the decoder marked it as damaged
]

_ERRORS: dict[FaultReason, type[SourceError]] = {
    "unauthorized": SourceAccessError,
    "not_found": SourceMissingError,
    "not_video": SourceDataError,
}
# Codes of gst-resource-error-quark and gst-stream-error-quark (GstResourceError, GstStreamError).
_RESOURCE: dict[int, FaultReason] = {
    3: "not_found",
    5: "connect",
    6: "connect",
    7: "connect",
    15: "unauthorized",
}
_STREAM: dict[int, FaultReason] = dict.fromkeys((3, 4, 5, 6, 7, 9, 10), "not_video")
_MISSING_PLUGIN = ("gst-core-error-quark", 12)

_ADVICE: dict[FaultReason, str] = {
    "connect": "cannot connect; check that the camera is on, its address and its port",
    "unauthorized": "refuses the user name or password; check the camera's credential",
    "not_found": "does not exist on the camera; check the path of the address",
    "not_video": "sends no video that can be decoded; set the camera to H.264",
    "error": "failed; look at the camera and its network",
}


class StreamError(Exception):
    """A stream that failed: `reason` for machines, the message for people. Holds no secret."""

    def __init__(self, reason: FaultReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of(cls, error: SourceError) -> StreamError:
        """The fault that a source error of a file amounts to."""
        reason = next((reason for reason, kind in _ERRORS.items() if isinstance(error, kind)), None)
        return cls(reason or "error", str(error))

    def as_error(self) -> SourceError:
        """The error that ends a command with the exit code of this fault."""
        return _ERRORS.get(self.reason, SourceError)(str(self))


def reason_of(domain: str, code: int) -> FaultReason:
    """What a GStreamer error (domain and code of its GError) amounts to."""
    if (domain, code) == _MISSING_PLUGIN:
        return "not_video"
    codes = {"gst-resource-error-quark": _RESOURCE, "gst-stream-error-quark": _STREAM}.get(domain, {})
    return codes.get(code, "error")


def describe(reason: FaultReason, source: str, detail: str) -> str:
    """One sentence: what failed, what to do, and GStreamer's own words."""
    return f"{source} {_ADVICE.get(reason, _ADVICE['error'])} (GStreamer: {' '.join(detail.split()).rstrip('.')})"
