"""GStreamer's errors become one of a few reasons, and the error with the right exit code."""

from __future__ import annotations

import pytest

from barnsightd.errors import SourceAccessError, SourceDataError, SourceError, SourceMissingError
from barnsightd.ingest.faults import FaultReason, StreamError, describe, reason_of


@pytest.mark.parametrize(
    ("domain", "code", "reason"),
    [
        ("gst-resource-error-quark", 15, "unauthorized"),
        ("gst-resource-error-quark", 3, "not_found"),
        ("gst-resource-error-quark", 7, "connect"),
        ("gst-stream-error-quark", 4, "not_video"),
        ("gst-core-error-quark", 12, "not_video"),
        ("gst-stream-error-quark", 1, "error"),
        ("gst-library-error-quark", 1, "error"),
    ],
)
def test_each_error_of_gstreamer_has_a_reason(domain: str, code: int, reason: str) -> None:
    assert reason_of(domain, code) == reason


@pytest.mark.parametrize(
    ("reason", "error", "exit_code"),
    [
        ("unauthorized", SourceAccessError, 77),
        ("not_found", SourceMissingError, 66),
        ("not_video", SourceDataError, 65),
        ("connect", SourceError, 69),
    ],
)
def test_a_fault_ends_a_command_with_its_own_exit_code(
    reason: FaultReason, error: type[SourceError], exit_code: int
) -> None:
    raised = StreamError(reason, "rtsp://10.0.0.13/s: something").as_error()

    assert type(raised) is error
    assert raised.exit_code == exit_code
    assert StreamError.of(raised).reason == (reason if reason != "connect" else "error")


def test_a_message_is_one_line_with_source_and_next_step() -> None:
    text = describe("connect", "rtsp://10.0.0.13/s", "Could not open resource.\nFailed to connect.")
    assert text == (
        "rtsp://10.0.0.13/s cannot connect; check that the camera is on, its address and its port "
        "(GStreamer: Could not open resource. Failed to connect)"
    )
