"""The service from within, on scripted engines: what a reload changes, and how it stops."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from barnsight_engines.detector import Detections
from barnsight_engines.scripted_backend import scripted_model_set
from barnsightd import app
from barnsightd.app import Service
from barnsightd.config import load_config
from barnsightd.errors import StoreError
from barnsightd.runtime.watchdog import Notifier

WAIT_S = 60.0
SIZE = (320, 320)


def one_pig(_call: int) -> Detections:
    mask_logits = np.full((1, 80, 80), -5, np.float32)
    mask_logits[0, 10:20, 10:20] = 5
    return Detections(np.array([[40, 40, 80, 80]], np.float32), np.array([0.95], np.float32), mask_logits, SIZE)


class Site:
    """A configuration folder; its pen is a folder of pictures with one pig."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "barnsight.yaml"
        self.store = folder / "records"
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        (folder / "cameras.d").mkdir()
        for index in range(12):
            cv2.imwrite(str(self.pictures / f"{index:02d}.png"), np.zeros((*SIZE, 3), np.uint8))
        self.write_site()
        self.write_pen(source=str(self.pictures))

    def write_site(self, **storage: Any) -> None:
        storage = {"path": str(self.store), "quota_gb": 1, "reserve_gb": 0.01, **storage}
        site = {"version": 1, "models": {"path": "nano"}, "web": {"port": 0}, "storage": storage}
        self.path.write_text(yaml.safe_dump(site))

    def write_pen(self, **settings: Any) -> None:
        pen = {"version": 1, "name": "pen", "species": "pig", "fps": 6, **settings}
        (self.path.parent / "cameras.d/pen.yaml").write_text(yaml.safe_dump(pen))

    def service(self) -> Service:
        return Service(load_config(self.path), Notifier(None))

    def sessions(self) -> list[tuple[int, int | None]]:
        """Number and end of each session that the store knows."""
        connection = sqlite3.connect(self.store / "barnsight.sqlite3")
        try:
            return connection.execute("SELECT session, ended_ns FROM sessions ORDER BY session").fetchall()
        finally:
            connection.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(app, "load_model_set", lambda *_args, **_kwargs: scripted_model_set(one_pig))
    return Site(tmp_path)


def wait_for(happened: Callable[[], object]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def metric(service: Service, name: str) -> float:
    """A figure of the pen, as Prometheus reads it."""
    web = service.summary().split()[-1].removesuffix("/status")
    with urllib.request.urlopen(f"{web}/metrics", timeout=WAIT_S) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f'{name}{{camera="pen"}}'))
    return float(line.split()[-1])


def test_a_camera_that_is_pointed_elsewhere_is_down_and_its_session_over(site: Site) -> None:
    with site.service() as service:
        wait_for(lambda: metric(service, "barnsight_tracks_active") == 1)
        site.write_pen(source="rtsp://127.0.0.1:9/nobody")
        service.reload(site.path)
        wait_for(lambda: metric(service, "barnsight_tracks_active") == 0)
        assert metric(service, "barnsight_camera_up") == 0
        wait_for(lambda: [ended_ns for _, ended_ns in site.sessions() if ended_ns])


def test_a_session_that_runs_at_the_stop_ends_with_its_last_frame(site: Site) -> None:
    before_ns = time.time_ns()
    with site.service() as service:
        wait_for(lambda: metric(service, "barnsight_tracks_active") == 1)
    *_, (_, ended_ns) = site.sessions()
    assert ended_ns is not None
    assert before_ns < ended_ns < time.time_ns()


def test_what_waits_for_a_restart_is_told_at_every_reload_until_then(site: Site) -> None:
    with site.service() as service, capture_logs() as logs:
        site.write_site(masks_every_s=5.0)
        for _ in range(2):
            service.reload(site.path)
    reloads = [entry for entry in logs if entry["event"] == "reloaded"]
    assert [entry["needs_restart"] for entry in reloads] == [("storage",)] * 2
    with sqlite3.connect(site.store / "barnsight.sqlite3") as connection:
        kept = [config for (config,) in connection.execute("SELECT config FROM config_history")]
    connection.close()
    assert len(kept) == 1, "what does not apply yet was never in force"


def test_a_last_flush_that_fails_is_no_clean_stop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    service = site.service().__enter__()
    wait_for(lambda: metric(service, "barnsight_tracks_active") == 1)
    monkeypatch.setattr(os, "pwrite", broken)
    with capture_logs() as logs, pytest.raises(StoreError) as failed:
        service.__exit__(None, None, None)
    assert failed.value.exit_code == os.EX_IOERR
    events = [entry["event"] for entry in logs]
    assert "did not stop in time" not in events
    assert "stopped with an error" in events
