"""The command `barnsight-export`: light until it works, and every end has its exit code and one line."""

from __future__ import annotations

import argparse
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from barnsight_engines.errors import ModelSetMissingError
from barnsight_export import cli
from barnsight_export.errors import DataError, DataMissingError, OutputError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A command `fail` that raises what the test puts under "error"."""
    outcome: dict[str, Any] = {}

    def add_parser(subparsers: Any) -> None:
        subparsers.add_parser("fail").add_argument("--number", type=int)

    def run(args: argparse.Namespace) -> int:
        outcome["args"] = args
        if "error" in outcome:
            raise outcome["error"]
        return 0

    module = ModuleType("barnsight_export.commands.fail")
    vars(module).update(add_parser=add_parser, run=run)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fail",))
    return outcome


def test_a_command_gets_its_arguments(command: dict[str, Any]) -> None:
    assert cli.main(["fail", "--number", "3"]) == 0
    assert command["args"].number == 3


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("gt.txt:3: not a number"), 65, "gt.txt:3: not a number"),
        (DataMissingError("gt.txt does not exist"), 66, "gt.txt does not exist"),
        (OutputError("out: read-only"), 73, "out: read-only"),
        (ModelSetMissingError("nano: no manifest"), 66, "nano: no manifest"),
        (
            ModuleNotFoundError(name="torch"),
            69,
            "torch is not installed; run `make install-dev` in the clone, or `pip install '.[export]'`",
        ),
        (ValueError("a\nb"), 70, "internal error: ValueError: a b; run again with --debug and report it"),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(
    command: dict[str, Any], capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    command["error"] = error
    assert cli.main(["fail"]) == code
    assert capsys.readouterr().err == f"barnsight-export: error: {line}\n"
    assert cli.main(["fail", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["fail", "--number", "many"], ["fail", "--speed"]])
def test_a_wrong_command_line_ends_with_64(
    command: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.main(arguments) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("barnsight-export: error: ")


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, atexit; from barnsight_export.cli import main; heavy = {'torch', 'transformers', 'onnx', 'gi'};"
        "atexit.register(lambda: print('heavy:', sorted(heavy & sys.modules.keys()))); main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert all(command in done.stdout for command in cli.COMMANDS)
    assert done.stdout.endswith("heavy: []\n")
