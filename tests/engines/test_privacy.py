"""A barn has no cloud: no library that comes with Barnsight reports anything to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENCODER = Path(__file__).parents[2] / "engines" / "nano" / "encoder.onnx"
RUNS_AN_ENGINE = f"""
import {{package}}
import onnxruntime
onnxruntime.InferenceSession({str(ENCODER)!r}, providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("package", ["barnsight_engines", "barnsightd", "barnsight_export"])
def test_onnx_runtime_reports_to_nobody(package: str, tmp_path: Path) -> None:
    """Where it reports, it leaves a device number and a queue of events below the home folder; in CI it does not."""
    hushed = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in hushed} | {"HOME": str(tmp_path)}
    program = [sys.executable, "-c", RUNS_AN_ENGINE.format(package=package)]
    subprocess.run(program, env=environment, check=True, timeout=120)
    assert not list(tmp_path.rglob("deviceid"))
    assert not list(tmp_path.rglob("onnxruntime.db"))
