"""Bad input through the real command line: each ends with the right exit code and one clear message.

A camera that cannot be reached, or refuses the password, is no bad input to a running service: it goes on. And
wherever a password went in, it does not come out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from barnsightd.cli import main

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "engines/nano"
PASSWORD = "S3cret-w0rd"
DEADLINE_S = 120

PEN = """\
version: 1
name: pen-3
source: rtsp://${credential:pen-3}@127.0.0.1:9/pen
species: pig
zones: {feeder: [[0.1, 0.0], [0.3, 0.0], [0.3, 0.2]]}
"""

needs_models = pytest.mark.skipif(not (NANO / "manifest.json").exists(), reason="engines/nano is not there yet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site with one pen, whose camera nobody answers for."""
    (tmp_path / "cameras.d").mkdir()
    (tmp_path / "cameras.d/pen-3.yaml").write_text(PEN)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/pen-3").write_text(f"admin:{PASSWORD}\n")
    (tmp_path / "credentials/pen-3").chmod(0o600)
    write_site(tmp_path)
    return tmp_path


def write_site(folder: Path, models: Path = NANO, store: Path | None = None) -> None:
    text = f"version: 1\nmodels: {{path: {models}}}\nstorage: {{path: {store or folder / 'store'}}}\nweb: {{port: 0}}\n"
    (folder / "barnsight.yaml").write_text(text)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for index in range(2):
        cv2.imwrite(str(path / f"{index}.png"), np.full((120, 160, 3), 90, np.uint8))
    return path


def barnsight(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and what was printed; `--config` is not added."""
    command = [sys.executable, "-m", "barnsightd", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stdout + done.stderr).strip()


def refused(text: str) -> str:
    """The one line of an error."""
    (line,) = [line for line in text.splitlines() if line.startswith("barnsight: error: ")]
    return line.removeprefix("barnsight: error: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("species", "spieces", "cameras.d/pen-3.yaml:4: spieces: is no setting; did you mean 'species'?"),
        ("species: pig", "species: pig\nfps: fast", "cameras.d/pen-3.yaml:5: fps: must be a number from 1 to 60"),
        ("0.3, 0.2", "0.3, 2.0", "cameras.d/pen-3.yaml:5: zones.feeder: must lie inside the image, 0 to 1"),
        ("species: pig", "species: pig\nname: pen-3", "cameras.d/pen-3.yaml:5: name: is given twice, first on line 2"),
        ("credential:pen-3", "credential:pen-4", "cameras.d/pen-3.yaml:3: source: names the credential 'pen-4', which"),
    ],
    ids=["typo in a key", "wrong type", "polygon outside the image", "duplicate key", "missing credential"],
)
def test_a_wrong_configuration(
    folder: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cameras.d/pen-3.yaml").write_text(PEN.replace(old, new, 1))
    before = {path: path.read_bytes() for path in folder.rglob("*.yaml")}

    for command in (["config", "check"], ["config", "show"], ["run"]):
        assert main([*command, "--config", str(folder / "barnsight.yaml")]) == 78
        captured = capsys.readouterr()
        assert f"barnsight: error: {message}" in captured.err
        assert not captured.out

    assert before == {path: path.read_bytes() for path in folder.rglob("*.yaml")}


def test_a_credential_that_everyone_can_read(folder: Path) -> None:
    (folder / "credentials/pen-3").chmod(0o644)
    code, text = barnsight("config", "check", "--config", folder / "barnsight.yaml")
    assert code == 78
    assert "which everyone can read; run: chmod 640" in refused(text)


def test_no_configuration_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", str(tmp_path / "barnsight.yaml")]) == 78
    error = refused(capsys.readouterr().err)
    assert error == f"{tmp_path}/barnsight.yaml: does not exist; name the site file with --config"


def test_no_model_set(folder: Path) -> None:
    write_site(folder, models=folder / "nowhere")
    code, text = barnsight("config", "check", "--config", folder / "barnsight.yaml")
    assert code == 78
    assert refused(text).startswith("barnsight.yaml:2: models.path: ")
    code, text = barnsight("run", "--config", folder / "barnsight.yaml")
    assert code == 66
    assert str(folder / "nowhere/manifest.json") in refused(text)


@needs_models
def test_not_a_video(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_text("not a video, whatever its name says")
    code, text = barnsight("replay", clip, "--out", tmp_path / "out", "--models", NANO)
    assert code == 65
    assert refused(text).startswith(f"{clip} is not a video")

    code, text = barnsight("replay", tmp_path / "gone.mp4", "--out", tmp_path / "out", "--models", NANO)
    assert code == 66
    assert refused(text).startswith(f"{tmp_path}/gone.mp4 does not exist")


@needs_models
def test_a_concept_that_the_models_do_not_know(folder: Path, pictures: Path) -> None:
    command = ("replay", pictures, "--out", folder / "out", "--models", NANO, "--species", "dragon")
    code, text = barnsight(*command)
    assert code == 78
    assert "dragon" in refused(text)
    (folder / "cameras.d/pen-3.yaml").write_text(PEN.replace("species: pig", "species: pigs"))
    code, text = barnsight("config", "check", "--config", folder / "barnsight.yaml")
    assert code == 78
    assert refused(text).endswith("is no concept of the model set, got 'pigs'; did you mean 'pig'?")


@needs_models
def test_a_model_set_with_a_wrong_hash(folder: Path, pictures: Path) -> None:
    models = shutil.copytree(NANO, folder / "nano")
    with (models / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    write_site(folder, models)
    for command in (
        ("replay", pictures, "--out", folder / "out", "--models", models),
        ("run", "--config", folder / "barnsight.yaml"),
    ):
        code, text = barnsight(*command)
        assert code == 65
        assert refused(text).startswith(f"{models}/encoder.onnx: SHA-256 must be ")
    assert not (folder / "out").exists()


@needs_models
def test_a_truncated_network_whose_hash_is_right(folder: Path, pictures: Path) -> None:
    models = shutil.copytree(NANO, folder / "nano")
    network = models / "detector.onnx"
    os.truncate(network, network.stat().st_size // 2)
    manifest = json.loads((models / "manifest.json").read_text())
    for engine in manifest["engines"]:
        if engine["role"] == "detector":
            engine["sha256"] = hashlib.sha256(network.read_bytes()).hexdigest()
    (models / "manifest.json").write_text(json.dumps(manifest))

    code, text = barnsight("replay", pictures, "--out", folder / "out", "--models", models)
    assert code == 65
    assert refused(text).startswith(f"{network}: ")


@needs_models
def test_a_store_that_cannot_be_written(folder: Path, pictures: Path) -> None:
    (folder / "file").write_text("not a folder")
    for store in (folder / "file/store", Path("/proc/store")):
        write_site(folder, store=store)
        code, text = barnsight("run", "--config", folder / "barnsight.yaml")
        assert code in (74, 77)
        assert refused(text).startswith(f"{store}: ")
    code, text = barnsight("replay", pictures, "--out", folder / "file/out", "--models", NANO)
    assert code == 74
    assert refused(text).startswith(f"{folder}/file/out: ")


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    code, text = barnsight("db", "check", tmp_path / "nowhere")
    assert code == 74
    assert refused(text).startswith(f"{tmp_path}/nowhere: ")


def test_a_camera_that_nobody_answers_for(folder: Path) -> None:
    code, text = barnsight("camera", "probe", "pen-3", "--timeout", "5", "--config", folder / "barnsight.yaml")
    assert code == 69
    assert "127.0.0.1:9/pen" in refused(text)


def test_an_address_that_is_a_secret_as_a_whole(folder: Path) -> None:
    (folder / "cameras.d/pen-3.yaml").write_text(re.sub("source: .*", "source: ${credential:pen-3}", PEN))
    (folder / "credentials/pen-3").write_text(f"rtsp://127.0.0.1:9/{PASSWORD}\n")
    code, text = barnsight("camera", "probe", "pen-3", "--timeout", "5", "--config", folder / "barnsight.yaml")
    assert code == 69
    assert refused(text).startswith("${credential:pen-3} cannot connect")


def test_a_camera_that_refuses_the_password(folder: Path) -> None:
    credential = ("--credential", folder / "credentials/pen-3", "--timeout", "10")
    with rtsp_server("--login", "admin:another") as url:
        code, text = barnsight("camera", "probe", url, *credential)
        assert code == 77
        assert "user name or password" in refused(text)
        (folder / "credentials/pen-3").write_text("admin:another")
        code, text = barnsight("camera", "probe", url, *credential)
        assert code == 0
        assert "H.264 320x240" in text


@needs_models
def test_a_camera_that_cannot_be_reached_never_ends_the_service_nor_shows_its_password(folder: Path) -> None:
    source = f"rtsp://admin:{PASSWORD}@127.0.0.1:9/pen?token={PASSWORD}"
    (folder / "cameras.d/pen-4.yaml").write_text(f"version: 1\nname: pen-4\nsource: {source}\nspecies: pig\n")
    with service(folder) as (process, web, log):
        wait_for(lambda: all(name in log.text() for name in ("pen-3", "pen-4")), "both cameras in the log")
        wait_for(lambda: b"reconnects_total" in fetch(f"{web}/metrics"), "the metrics")
        seen = b"".join(fetch(f"{web}{path}") for path in ("/metrics", "/status", "/healthz", "/readyz"))
        seen += Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert process.poll() is None

        (folder / "cameras.d/pen-4.yaml").write_text("name: [broken")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload refused" in log.text(), "the answer to the reload")
        assert process.poll() is None

        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0

    stored = b"".join(path.read_bytes() for path in (folder / "store").rglob("*") if path.is_file())
    assert PASSWORD not in log.text()
    assert PASSWORD.encode() not in seen + stored


class Log:
    """What a process writes, gathered as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._lines.extend, args=(process.stderr,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        return "".join(self._lines)


@contextmanager
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, Log]]:
    """A running service, its web address and its log."""
    command = [sys.executable, "-m", "barnsightd", "run", "--config", str(folder / "barnsight.yaml")]
    environment = {name: value for name, value in os.environ.items() if name not in ("JOURNAL_STREAM", "NOTIFY_SOCKET")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            log = Log(process)
            wait_for(lambda: process.poll() is not None or "service up" in log.text(), "the service")
            address = re.search(r"http://127\.0\.0\.1:\d+", log.text())
            assert address, log.text()
            yield process, address[0], log
        finally:
            process.kill()


@contextmanager
def rtsp_server(*options: str) -> Iterator[str]:
    """The address of a camera of our own."""
    command = [sys.executable, str(ROOT / "tests/rtsp_server.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = process.stdout.readline().split()[-1]
            yield f"rtsp://127.0.0.1:{port}/pen"
        finally:
            process.kill()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        content: bytes = answer.read()
        return content


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until `happened()`; fails at the deadline."""
    until = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.05)
