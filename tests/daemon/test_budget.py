"""Memory: refused before it is short, shed in order when it gets short, taken back when there is plenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from barnsightd.errors import BarnsightError
from barnsightd.runtime.budget import MemoryBudget, Pressure, Thresholds, available_bytes

MB = 1_000_000


def machine(root: Path, available_mb: int) -> Path:
    meminfo = root / "proc" / "meminfo"
    meminfo.parent.mkdir(exist_ok=True)
    kib = available_mb * MB // 1024 + 1
    meminfo.write_text(f"MemTotal:       16000000 kB\nMemFree:           12345 kB\nMemAvailable:   {kib} kB\n")
    return root


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, 2000)) == pytest.approx(2000 * MB, abs=1024)
    assert available_bytes(tmp_path / "no-such-machine") is None


def test_load_is_shed_in_order_and_comes_back_only_with_a_margin(tmp_path: Path) -> None:
    budget = MemoryBudget(Thresholds(600 * MB, 250 * MB, recovery=1.25), root=tmp_path)
    story = [(2000, 0), (599, 1), (601, 1), (700, 1), (751, 0), (240, 2), (300, 2), (320, 1), (2000, 0)]
    for available_mb, level in story:
        machine(tmp_path, available_mb)
        assert budget.pressure() == level, available_mb


def test_masks_go_first_and_then_every_second_frame() -> None:
    shed = [(pressure.keeps_masks, pressure.frame_stride) for pressure in Pressure]
    assert shed == [(True, 1), (False, 1), (False, 2)]


def test_what_does_not_fit_is_refused_with_the_figures(tmp_path: Path) -> None:
    budget = MemoryBudget(Thresholds(600 * MB, 250 * MB), root=machine(tmp_path, 1000))
    budget.admit("the model set 'nano'", 700 * MB)
    with pytest.raises(BarnsightError, match="'orin' needs 4000 MB and 750 MB can be spared of 1000 MB"):
        budget.admit("the model set 'orin'", 4000 * MB)


def test_a_machine_that_does_not_tell_is_never_short(tmp_path: Path) -> None:
    budget = MemoryBudget(root=tmp_path)
    budget.admit("anything", 10**15)
    assert budget.pressure() is Pressure.OK
