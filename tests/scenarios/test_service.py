"""The service as a whole, from its command line: a camera in, records and metrics out, reload, stop, faults."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from barnsight_engines.manifest import read_manifest
from barnsightd.store.reader import read_observations

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "engines" / "nano"
BARNSIGHT = Path(sys.executable).parent / "barnsight"
DEADLINE_S = 60.0
# Doubtful detections too become tracks: what is kept of them is the question here, not how good they are.
EAGER = {"min_score": 0.1, "new_score": 0.1}
FLUSH_S = 2.0  # the stated bound: storage.flush_seconds as shipped


class Site:
    """A configuration folder and the service that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cameras.d").mkdir()
        self.process: subprocess.Popen[str] | None = None
        site = {"version": 1, "models": {"path": str(MODELS)}, "web": {"port": 0}}
        site["storage"] = {"path": str(folder / "records"), "quota_gb": 1, "reserve_gb": 0.01}
        (folder / "barnsight.yaml").write_text(yaml.safe_dump(site))

    def write_camera(self, name: str, **settings: Any) -> None:
        camera = {"version": 1, "name": name, "species": "pig", "fps": 6, **settings}
        (self.folder / "cameras.d" / f"{name}.yaml").write_text(yaml.safe_dump(camera))

    def start(self) -> str:
        """Start the service; gives its web address once it is up."""
        with (self.folder / "log").open("w") as log:
            command = [BARNSIGHT, "run", "--config", self.folder / "barnsight.yaml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        address = re.search(r"web=(\S+)", self.wait_for_log("service up"))
        assert address
        return address[1]

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """The service, up, and stopped in the end; gives its web address."""
        try:
            yield self.start()
        finally:
            assert self.process is not None
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    def wait_for_log(self, event: str) -> str:
        """The first line of the log that tells of `event`."""

        def look() -> str | None:
            assert self.process is None or self.process.poll() is None, self.read_log()
            return next((line for line in self.read_log().splitlines() if event in line), None)

        return str(wait_for(look))

    def read_log(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", (self.folder / "log").read_text())


def wait_for(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := look():
                return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode(errors="replace"))


def camera_status(address: str, name: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(get(f"{address}/status"))["cameras"][name]
    return status


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures: it serves as a camera that needs no server."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(30):
        picture = random.integers(0, 255, (180, 320, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index:03d}.png"), picture)
    return folder


def test_frames_go_through_and_the_figures_say_so(site: Site, pictures: Path) -> None:
    site.write_camera("pen", source=str(pictures))
    with site.running() as address:
        wait_for(lambda: camera_status(address, "pen")["frames"] >= 5)
        assert get(f"{address}/readyz") == "ready\n"
        assert get(f"{address}/healthz") == "ok\n"
        metrics = get(f"{address}/metrics")
        assert 'barnsight_camera_up{camera="pen"} 1.0' in metrics
        assert 'barnsight_stage_duration_seconds_count{stage="encoder"}' in metrics
        assert get(f"{address}/preview/pen.jpg")[1:10].find("JFIF") > 0
    assert site.process is not None
    assert site.process.returncode == 0


def test_a_camera_that_cannot_be_reached_ends_nothing(site: Site, pictures: Path) -> None:
    site.write_camera("pen", source=str(pictures))
    site.write_camera("dead", source="rtsp://127.0.0.1:9/stream")
    with site.running() as address:
        wait_for(lambda: camera_status(address, "dead")["reconnects"] >= 2)
        wait_for(lambda: camera_status(address, "pen")["frames"] >= 5)
        dead = camera_status(address, "dead")
        assert dead["frames"] == 0
        assert "127.0.0.1" in dead["last_error"]
        assert get(f"{address}/healthz") == "ok\n"


def test_reload_applies_cameras_and_refuses_a_wrong_file(site: Site, pictures: Path) -> None:
    site.write_camera("pen", source=str(pictures))
    with site.running() as address:
        assert site.process is not None
        wait_for(lambda: camera_status(address, "pen")["frames"] >= 1)

        site.write_camera("pen-2", source=str(pictures), fsp=6)
        site.process.send_signal(signal.SIGHUP)
        refused = site.wait_for_log("reload refused, everything goes on as it was")
        assert "fsp" in refused
        assert list(json.loads(get(f"{address}/status"))["cameras"]) == ["pen"]

        site.write_camera("pen-2", source=str(pictures))
        site.process.send_signal(signal.SIGHUP)
        site.wait_for_log("reloaded")
        wait_for(lambda: camera_status(address, "pen-2")["frames"] >= 1)

        (site.folder / "cameras.d" / "pen.yaml").unlink()
        site.process.send_signal(signal.SIGHUP)
        wait_for(lambda: list(json.loads(get(f"{address}/status"))["cameras"]) == ["pen-2"])
        wait_for(lambda: 'camera="pen"' not in get(f"{address}/metrics"))


def test_a_port_that_is_taken_is_refused_with_a_clear_line(site: Site, pictures: Path) -> None:
    site.write_camera("pen", source=str(pictures))
    with site.running() as address:
        port = int(address.rsplit(":", 1)[1])
        second = yaml.safe_load((site.folder / "barnsight.yaml").read_text())
        second["web"]["port"] = port
        second["storage"]["path"] = str(site.folder / "other")
        (site.folder / "barnsight.yaml").write_text(yaml.safe_dump(second))
        command = [BARNSIGHT, "run", "--config", site.folder / "barnsight.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == os.EX_UNAVAILABLE
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.fixture(scope="module")
def pen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of three simulated pigs, three seconds long."""
    made = tmp_path_factory.mktemp("pen")
    simulate = [BARNSIGHT.with_name("barnsight-export"), "simulate", "--seed", "11", "--animals", "3", "--seconds", "3"]
    subprocess.run([*simulate, "--fps", "6", "--width", "640", "--height", "360", "--out", made], check=True)
    return made / "clip.mp4"


def test_what_was_seen_is_on_disk_after_the_stop(site: Site, pen: Path) -> None:
    site.write_camera("pen", source=str(pen), tracking=EAGER)
    with site.running() as address:
        wait_for(lambda: (camera_status(address, "pen")["animals"] or 0) > 0)
        wait_for(lambda: json.loads(get(f"{address}/status"))["store"]["observations"] > 10)
    kept = read_observations(site.folder / "records", camera="pen")
    assert kept.num_rows > 10
    assert set(kept["model_set"].to_pylist()) == {read_manifest(MODELS)[1]}


@pytest.mark.slow
def test_killed_twenty_times_it_loses_no_more_than_it_states(site: Site, pen: Path) -> None:
    random, kept_before = np.random.default_rng(7), 0
    site.write_camera("pen", source=str(pen), tracking=EAGER)
    for _ in range(20):
        address = site.start()
        assert site.process is not None
        wait_for(lambda address=address: (camera_status(address, "pen")["animals"] or 0) > 0)
        time.sleep(random.uniform(0, 2))
        handed_over = read_metric(get(f"{address}/metrics"), "barnsight_observations_total")
        time.sleep(FLUSH_S)
        site.process.kill()
        site.process.wait(DEADLINE_S)
        kept = read_observations(site.folder / "records", camera="pen").num_rows
        assert kept >= kept_before + handed_over
        kept_before = kept
    checked = subprocess.run([BARNSIGHT, "db", "check", site.folder / "records"], check=False, timeout=DEADLINE_S)
    assert checked.returncode == 0
    with site.running():
        pass
    repaired = subprocess.run([BARNSIGHT, "db", "check", site.folder / "records"], check=False, timeout=DEADLINE_S)
    assert repaired.returncode == 0


def read_metric(text: str, name: str) -> float:
    """The value of the first series of a metric."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line.rsplit(" ", 1)[1])
