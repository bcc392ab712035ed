"""The doctor looks at a machine and says what is missing and what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from barnsightd import doctor
from barnsightd.errors import SourceError

PEN = "version: 1\nname: pen-3\nsource: rtsp://admin:S3cret@127.0.0.1:{port}/s\nspecies: pig\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path, tmp_path / "store", storage=", quota_gb: 1")  # fits wherever tests run


def write_site(folder: Path, store: Path, port: int = 9, storage: str = "") -> Path:
    (folder / "cameras.d").mkdir(exist_ok=True)
    (folder / "cameras.d/pen-3.yaml").write_text(PEN.format(port=port))
    path = folder / "barnsight.yaml"
    path.write_text(f"version: 1\nmodels: {{path: nano}}\nstorage: {{path: {store}{storage}}}\n")
    return path


def found(report: doctor.Report, name: str) -> tuple[str, str]:
    check = next(check for check in report.checks if check.name == name)
    return check.outcome, str(check)


def test_a_report_names_each_part_and_fails_as_a_whole(site: Path, tmp_path: Path) -> None:
    report = doctor.examine(site, root=tmp_path)

    assert found(report, "python")[0] == found(report, "onnxruntime")[0] == "ok"
    assert found(report, "model set")[0] == "fail"
    assert "manifest.json: No such file or directory" in found(report, "model set")[1]
    assert found(report, "store")[0] == "ok"
    assert found(report, "memory")[0] == found(report, "systemd")[0] == "warn"
    assert report.exit_code == 69
    assert json.loads(report.to_json())["ok"] is False
    assert len(str(report).splitlines()) == len(report.checks)
    assert "S3cret" not in str(report) + repr(report)
    assert not (tmp_path / "store").exists(), "a doctor leaves nothing behind"


def test_warnings_alone_do_not_fail() -> None:
    warned = doctor.Check("clock", "warn", "not synchronized", "turn it on")
    assert doctor.Report((warned,)).exit_code == 0
    assert doctor.Report((warned, doctor.Check("store", "fail", "read-only"))).exit_code == 69
    assert str(warned) == "warn  clock: not synchronized; turn it on"


def test_a_camera_that_answers_and_one_that_does_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        report = doctor.examine(write_site(tmp_path, tmp_path, port), root=tmp_path)
        assert found(report, "camera pen-3")[0] == "ok"
    report = doctor.examine(write_site(tmp_path, tmp_path, port), root=tmp_path)
    outcome, line = found(report, "camera pen-3")
    assert outcome == "warn"
    assert f"127.0.0.1:{port} does not answer" in line


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for store in (tmp_path / "file/store", Path("/proc/store")):
        outcome, line = found(doctor.examine(write_site(tmp_path, store), root=tmp_path), "store")
        assert outcome == "fail"
        assert f"{store} cannot be written: " in line


def test_a_disk_without_the_room_that_was_promised(tmp_path: Path) -> None:
    tight = write_site(tmp_path, tmp_path, storage=", quota_gb: 1000000, reserve_gb: 0")
    assert found(doctor.examine(tight, root=tmp_path), "store")[0] == "warn"
    full = write_site(tmp_path, tmp_path, storage=", reserve_gb: 1000000")
    assert found(doctor.examine(full, root=tmp_path), "store")[0] == "fail"


def test_a_configuration_that_cannot_be_read_is_one_finding_per_problem(tmp_path: Path) -> None:
    site = tmp_path / "barnsight.yaml"
    site.write_text("version: 2\nmodls: {path: nano}\n")
    report = doctor.examine(site, root=tmp_path)
    assert [check.outcome for check in report.checks if check.name == "configuration"] == ["fail"] * 3
    assert "did you mean 'models'?" in str(report)


def test_gstreamer_that_is_not_there(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda element: not element.startswith(("avdec", "nvv4l2")))
    outcome, line = found(doctor.examine(site), "video decoder")
    assert outcome == "fail"
    assert line.endswith("no avdec_h264, avdec_h265; run: apt install gstreamer1.0-libav")

    def missing() -> None:
        raise SourceError("GStreamer cannot be used from Python; install python3-gi")

    monkeypatch.setattr(doctor, "gstreamer", missing)
    assert "install python3-gi" in found(doctor.examine(site), "gstreamer")[1]


def test_a_machine_with_systemd_and_memory(site: Path, tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    report = doctor.examine(site, root=tmp_path)
    assert found(report, "memory") == ("ok", "ok    memory: 8.2 GB available")
    assert found(report, "systemd")[1].endswith("is not installed; run: make install-systemd")

    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/barnsight.service").touch()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 200000 kB\n")
    report = doctor.examine(site, root=tmp_path)
    assert found(report, "systemd")[0] == "ok"
    assert found(report, "memory")[0] == "warn"


def test_a_clock_that_lies_before_the_installation(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    outcome, line = found(doctor.examine(site), "clock")
    assert outcome == "fail"
    assert "lies before this installation; turn time synchronization on" in line
