"""The command line: what is typed reaches the right module, and every end has its exit code and one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from barnsight_engines.errors import ModelSetDataError
from barnsightd import cli
from barnsightd.errors import BarnsightError, SourceAccessError, StoreError

PEN = "version: 1\nname: pen-3\nsource: rtsp://${credential:pen-3}@10.0.0.13/s\nspecies: pig\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "cameras.d").mkdir()
    (tmp_path / "cameras.d/pen-3.yaml").write_text(PEN)
    (tmp_path / "credentials").mkdir(mode=0o750)
    (tmp_path / "credentials/pen-3").write_text("admin:S3cret/w\n")
    (tmp_path / "credentials/pen-3").chmod(0o600)
    path = tmp_path / "barnsight.yaml"
    path.write_text(f"version: 1\nmodels: {{path: nano}}\nstorage: {{path: {tmp_path}/store}}\n")
    return path


class DamagedReport:
    exit_code = 65

    def __str__(self) -> str:
        return "damaged"

    def to_json(self) -> str:
        return '{"ok": false}'


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the modules that commands call, and keeps what they were called with."""
    calls: list[tuple[Any, ...]] = []
    report = DamagedReport()

    def keep(name: str, result: Any) -> Any:
        return lambda *args, **kwargs: calls.append((name, *args, kwargs)) or result

    for name, functions in {
        "app": {"run_service": keep("run_service", 0)},
        "replay": {"replay": keep("replay", 0)},
        "ingest.probe": {"probe": keep("probe", "H.264 320x240")},
        "store.repair": {"check": keep("check", report), "repair": keep("repair", report)},
    }.items():
        module = ModuleType(f"barnsightd.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_run_follows_the_site_file(called: list[tuple[Any, ...]], site: Path) -> None:
    assert cli.main(["run", "--config", str(site)]) == 0
    assert cli.main(["run"]) == 0
    assert called == [("run_service", site, {}), ("run_service", Path("/etc/barnsight/barnsight.yaml"), {})]


def test_replay_hands_over_every_option(called: list[tuple[Any, ...]]) -> None:
    options = "--species cow --models nano --fps 12.5 --no-masks --annotate --threads 2"
    assert cli.main(["replay", "clip.mp4", "--out", "out", *options.split()]) == 0
    assert called == [
        (
            "replay",
            Path("clip.mp4"),
            Path("out"),
            {
                "models": Path("nano"),
                "species": "cow",
                "fps": 12.5,
                "masks": False,
                "annotate": True,
                "threads": 2,
            },
        )
    ]


def test_the_database_commands_take_the_configured_store(
    called: list[tuple[Any, ...]], site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["db", "check", "--config", str(site), "--json"]) == 65
    assert json.loads(capsys.readouterr().out) == {"ok": False}
    assert cli.main(["db", "repair", "elsewhere"]) == 65
    assert capsys.readouterr().out == "damaged\n"
    assert called == [("check", site.parent / "store", {}), ("repair", Path("elsewhere"), {})]


class TestProbe:
    """A camera is probed by name, or by an address whose password is not on the command line."""

    def test_a_configured_camera_brings_its_credential_and_ingest(
        self, called: list[tuple[Any, ...]], site: Path
    ) -> None:
        with (site.parent / "cameras.d/pen-3.yaml").open("a") as pen:
            pen.write("ingest: {transport: udp}\n")
        assert cli.main(["camera", "probe", "pen-3", "--config", str(site)]) == 0
        ((_, source, timeout_s, ingest, _),) = called
        assert (source.reveal(), timeout_s) == ("rtsp://admin:S3cret%2Fw@10.0.0.13/s", 10.0)
        assert ingest.transport == "udp"

    @pytest.mark.parametrize("credential", ["pen-3", "{folder}/credentials/pen-3"])
    def test_an_address_takes_a_credential_by_name_or_file(
        self, called: list[tuple[Any, ...]], site: Path, credential: str
    ) -> None:
        options = ["--credential", credential.format(folder=site.parent), "--config", str(site), "--timeout", "3"]
        assert cli.main(["camera", "probe", "rtsp://h/s", *options]) == 0
        ((_, source, timeout_s, _, _),) = called
        assert (source.reveal(), timeout_s) == ("rtsp://admin:S3cret%2Fw@h/s", 3.0)

    def test_a_password_on_the_command_line_is_refused(
        self, called: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["camera", "probe", "rtsp://admin:S3cret@h/s"]) == 64
        error = capsys.readouterr().err
        assert "which `ps` shows to everyone" in error
        assert "--credential FILE" in error
        assert "S3cret" not in error
        assert not called

    def test_an_unknown_camera_is_answered_with_the_nearest(
        self, site: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["camera", "probe", "pen3", "--config", str(site)]) == 78
        assert capsys.readouterr().err == "barnsight: error: there is no camera 'pen3'; did you mean 'pen-3'?\n"


def test_show_masks_and_schema_is_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--config", str(site)]) == 0
    shown = capsys.readouterr().out
    assert "source: rtsp://${credential:pen-3}@10.0.0.13/s" in shown
    assert "S3cret" not in shown

    assert cli.main(["config", "schema"]) == 0
    assert "zones" in json.loads(capsys.readouterr().out)["properties"]
    assert cli.main(["config", "schema", "site"]) == 0
    assert "models" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; see barnsight --help"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--speed"], "unrecognized arguments: --speed"),
        (["replay", "clip.mp4"], "the following arguments are required: --out; see barnsight replay --help"),
        (["replay", "clip.mp4", "--out", "o", "--fps", "0"], "argument --fps: must be a number above 0, got 0"),
        (["replay", "clip.mp4", "--out", "o", "--fps", "many"], "argument --fps: invalid number value: 'many'"),
        (["replay", "clip.mp4", "--out", "o", "--threads", "1.5"], "argument --threads: invalid number value: '1.5'"),
        (["run", "rtsp://a:S3cret@h/s"], "unrecognized arguments: rtsp://***@h/s"),
    ],
)
def test_a_wrong_command_line_ends_with_64(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("barnsight: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StoreError("/srv: disk full; free space"), 74, "/srv: disk full; free space"),
        (SourceAccessError("rtsp://a:S3cret@h/s refuses the password"), 77, "rtsp://***@h/s refuses the password"),
        (ModelSetDataError("encoder.onnx: wrong hash"), 65, "encoder.onnx: wrong hash"),
        (BarnsightError("one\n  two"), 70, "one two"),
        (ZeroDivisionError("x"), 70, "internal error: ZeroDivisionError: x; run again with --debug and report it"),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    called: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    line: str,
) -> None:
    def fail(_path: Path) -> int:
        raise error

    monkeypatch.setattr(sys.modules["barnsightd.app"], "run_service", fail)
    assert cli.main(["run"]) == code
    assert capsys.readouterr().err == f"barnsight: error: {line}\n"

    assert cli.main(["run", "--debug"]) == code
    debug = capsys.readouterr().err
    assert "Traceback" in debug
    assert "S3cret" not in debug


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, called: list[tuple[Any, ...]]) -> None:
    def interrupt(_path: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["barnsightd.app"], "run_service", interrupt)
    assert cli.main(["run"]) == 130


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("barnsight 0.")


def test_a_reader_that_goes_away_is_no_internal_error(site: Path) -> None:
    command = f"{sys.executable} -m barnsightd config schema | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_commands_that_only_read_load_neither_engines_nor_gstreamer(site: Path) -> None:
    script = (
        "import sys; from barnsightd.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnxruntime', 'gi', 'cv2', 'pyarrow'} & sys.modules.keys();"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", script, "config", "show", "--config", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
