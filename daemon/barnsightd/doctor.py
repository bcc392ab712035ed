"""What this machine has and what it lacks: one check per part that Barnsight stands on, each with the next step.

Nothing is changed and nothing waits longer than its deadline. Cameras are only knocked at (TCP), not opened.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from barnsight_engines.errors import EngineError
from barnsight_engines.loader import load_model_set
from barnsightd.config import CameraConfig, Config, check_references, load_config
from barnsightd.errors import ConfigError, SourceError
from barnsightd.ingest.gst import gstreamer, is_installed
from barnsightd.ingest.pipelines import choose_decoder
from barnsightd.runtime.budget import available_bytes

Outcome = Literal["ok", "warn", "fail"]

_CONNECT_S = 3.0
_MEMORY_BYTES = 600_000_000
_GB = 1_000_000_000
_CLOCK_UNSYNCHRONIZED = 5  # TIME_ERROR of adjtimex(2)

_PACKAGES = {
    "rtspsrc": "gstreamer1.0-plugins-good",
    "rtph264depay": "gstreamer1.0-plugins-good",
    "rtph265depay": "gstreamer1.0-plugins-good",
    "qtdemux": "gstreamer1.0-plugins-good",
    "h264parse": "gstreamer1.0-plugins-bad",
    "h265parse": "gstreamer1.0-plugins-bad",
    "decodebin": "gstreamer1.0-plugins-base",
    "appsink": "gstreamer1.0-plugins-base",
}
_SOFTWARE_PACKAGES = {
    "avdec_h264": "gstreamer1.0-libav",
    "avdec_h265": "gstreamer1.0-libav",
    "videoconvert": "gstreamer1.0-plugins-base",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it."""

    name: str
    outcome: Outcome
    found: str
    next_step: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:4}  {self.name}: {self.found}" + (f"; {self.next_step}" if self.next_step else "")


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, in the order in which a start needs them."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 unless something failed; 69 then."""
        return os.EX_UNAVAILABLE if any(check.outcome == "fail" for check in self.checks) else os.EX_OK

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"ok": self.exit_code == os.EX_OK, "checks": [asdict(check) for check in self.checks]})

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def examine(config_path: Path, *, root: Path = Path("/")) -> Report:
    """Check everything; `root` is where /proc, /run and /etc are looked for."""
    checks = [_python(), *_gstreamer(), _package("onnxruntime", "pip install onnxruntime")]
    try:
        config = load_config(config_path)
    except ConfigError as error:
        checks += [
            Check("configuration", "fail", line, "run: barnsight config check") for line in str(error).splitlines()
        ]
    else:
        checks += [*_configuration(config), _models(config), _store(config), *_cameras(config.cameras)]
    return Report((*checks, _memory(root), _clock(), _service_manager(root)))


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.machine()}, {sys.executable}")


def _package(name: str, next_step: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", next_step)


def _gstreamer() -> Iterator[Check]:
    try:
        yield Check("gstreamer", "ok", gstreamer().version_string())
    except SourceError as error:
        yield Check("gstreamer", "fail", str(error))
        return
    decoder = choose_decoder("auto", is_installed)
    packages = _PACKAGES if decoder == "jetson" else _PACKAGES | _SOFTWARE_PACKAGES
    missing = [element for element in packages if not is_installed(element)]
    if missing:
        step = f"run: apt install {' '.join(sorted({packages[element] for element in missing}))}"
        yield Check("video decoder", "fail", f"GStreamer has no {', '.join(missing)}", step)
    else:
        yield Check("video decoder", "ok", decoder)


def _configuration(config: Config) -> Iterator[Check]:
    problems = check_references(config)
    for problem in problems:
        yield Check("configuration", "fail", str(problem))
    for warning in config.warnings:
        yield Check("configuration", "warn", str(warning))
    if not problems:
        yield Check("configuration", "ok", f"{len(config.files)} files, {len(config.cameras)} cameras")


def _models(config: Config) -> Check:
    models = config.site.models
    try:
        with load_model_set(models.path, runtime=models.runtime, threads=models.threads) as model_set:
            return Check("model set", "ok", f"{model_set.manifest.name}@{model_set.hash} on {model_set.runtime}")
    except EngineError as error:
        return Check("model set", "fail", str(error))


def _store(config: Config) -> Check:
    """Try to write an unnamed file where the store is, or see whether its folder could be made."""
    storage = config.site.storage
    path = storage.path.absolute()
    folder = next(parent for parent in (path, *path.parents) if os.access(parent, os.F_OK))
    step = f"make {storage.path} writable for this user, or run as the service's user"
    try:
        with tempfile.TemporaryFile(dir=folder):
            free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("store", "fail", f"{storage.path} cannot be written: {error.strerror}", step)
    found = f"{storage.path}, {free_bytes / _GB:.1f} GB free"
    if free_bytes < storage.reserve_gb * _GB:
        return Check("store", "fail", f"{found}, reserve {storage.reserve_gb:g} GB", "free space or lower reserve_gb")
    if free_bytes < (storage.reserve_gb + storage.quota_gb) * _GB:
        return Check("store", "warn", found, f"the quota of {storage.quota_gb:g} GB does not fit; lower quota_gb")
    return Check("store", "ok", found)


def _cameras(cameras: tuple[CameraConfig, ...]) -> list[Check]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_camera, cameras))


def _camera(camera: CameraConfig) -> Check:
    """Knock at the camera's port; files were looked at with the configuration."""
    name = f"camera {camera.name}"
    endpoint = camera.source.endpoint
    if endpoint is None:
        return Check(name, "ok", str(camera.source))
    try:
        socket.create_connection(endpoint, timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        step = "check power, cable, address and port; the service keeps trying"
        return Check(name, "warn", f"{endpoint[0]}:{endpoint[1]} does not answer ({error})", step)
    return Check(name, "ok", f"{endpoint[0]}:{endpoint[1]} answers", f"run: barnsight camera probe {camera.name}")


def _memory(root: Path) -> Check:
    available = available_bytes(root)
    if available is None:
        return Check("memory", "warn", "the machine does not tell what is available")
    found = f"{available / _GB:.1f} GB available"
    if available < _MEMORY_BYTES:
        return Check(
            "memory",
            "warn",
            found,
            "stop other programs; on a Jetson without a screen: systemctl isolate multi-user",
        )
    return Check("memory", "ok", found)


def _clock() -> Check:
    """Records carry wall time: it must not lie before this program was installed, and should be synchronized."""
    step = "turn time synchronization on: timedatectl set-ntp true"
    if time.time() < Path(__file__).stat().st_mtime - 86_400:
        return Check("clock", "fail", f"{time.strftime('%Y-%m-%d %H:%M')} lies before this installation", step)
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # modes = 0: only reads
    if state == _CLOCK_UNSYNCHRONIZED:
        return Check("clock", "warn", "not synchronized", step)
    return Check("clock", "ok", "synchronized" if state >= 0 else "plausible; synchronization cannot be read here")


def _service_manager(root: Path) -> Check:
    if not (root / "run/systemd/system").is_dir():
        return Check("systemd", "warn", "not running here", "run `barnsight run` under a supervisor of your own")
    units = [root / folder / "barnsight.service" for folder in ("etc/systemd/system", "usr/lib/systemd/system")]
    if not any(unit.exists() for unit in units):
        return Check("systemd", "warn", "barnsight.service is not installed", "run: make install-systemd")
    return Check("systemd", "ok", "barnsight.service is installed")
