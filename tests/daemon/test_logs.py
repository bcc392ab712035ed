"""The log: readable by people and machines, without secrets, never longer than it should be."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from barnsightd.runtime.logs import MAX_TEXT, configure_logs, mask

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process' logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_json_lines_carry_the_event_its_level_and_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", json=True)
    log = structlog.get_logger("barnsightd.app")
    log.info("camera up", camera="pen-3", fps=12.5)
    log.debug("not at this level")
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["logger"]) == ("camera up", "info", "barnsightd.app")
    assert (event["camera"], event["fps"]) == ("pen-3", 12.5)
    assert event["timestamp"].endswith("Z")


def test_people_get_text_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", json=False)
    structlog.get_logger("x").warning("disk is nearly full", free_bytes=5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "disk is nearly full" in captured.err
    assert "free_bytes=5" in captured.err


def test_the_journal_gets_the_priority_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        monkeypatch.setattr("sys.stdout", stream)
        configure_logs("info")
        structlog.get_logger("x").error("engine failed")
        stream.seek(0)
        assert stream.read().startswith('<3>{"event": "engine failed"')


@pytest.mark.parametrize("as_json", [True, False])
def test_no_password_gets_through_anywhere(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    configure_logs("debug", json=as_json)
    url = f"rtsp://admin:{SECRET}@10.0.0.13/stream1"
    log = structlog.get_logger("x")
    log.info(f"connecting to {url}", source=url, nested={"urls": [url], "password": SECRET})
    log.warning(
        "pipeline",
        description=f'rtspsrc user-id=admin user-pw="{SECRET}"',
        header=f"Authorization: Basic {SECRET}",
    )
    logging.getLogger("library").warning("cannot open %s", url)
    try:
        raise ValueError(f"bad url {url}")
    except ValueError:
        log.exception("camera failed")
        logging.getLogger("library").exception("failed")
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert SECRET not in text
    assert text.count("rtsp://***@10.0.0.13/stream1") >= 6
    assert "ValueError" in text


def test_passwords_with_odd_characters_are_masked_whole() -> None:
    assert mask("rtsp://u:p@ss/w0rd@10.0.0.13/s") == "rtsp://***@10.0.0.13/s"
    assert mask("no secret at http://host/path, mail me@farm") == "no secret at http://host/path, mail me@farm"


def test_a_line_has_a_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", json=True)
    structlog.get_logger("x").info("dump", text="y" * 1_000_000, items=["z"] * 10_000)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) < 2 * MAX_TEXT
    assert "cut from 1000000 characters" in line


def test_warnings_of_libraries_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", json=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old interface", DeprecationWarning, stacklevel=1)
    event = json.loads(capsys.readouterr().out)
    assert event["logger"] == "py.warnings"
    assert "old interface" in event["event"]
