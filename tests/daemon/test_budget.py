"""Memory: refused before it is short, shed in order when it gets short, taken back when there is plenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from barnsightd.errors import MachineError
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


def in_group(root: Path, limit: str, used_mb: int, inactive_mb: int) -> Path:
    """Put the process into a control group of its own, as systemd does."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("1:name=systemd:/old\n0::/system.slice/barnsight.service\n")
    folder = root / "sys/fs/cgroup/system.slice/barnsight.service"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used_mb * MB}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_mb * MB}\nactive_file 2\n")
    return root


@pytest.mark.parametrize(
    ("limit", "used_mb", "inactive_mb", "level"),
    [("max", 1900, 0, 0), (str(2000 * MB), 1500, 0, 1), (str(2000 * MB), 1900, 0, 2), (str(2000 * MB), 1900, 600, 0)],
    ids=["no limit", "tight", "critical", "full of pages that can be dropped"],
)
def test_the_units_own_limit_counts_where_the_machine_has_plenty(
    tmp_path: Path, limit: str, used_mb: int, inactive_mb: int, level: int
) -> None:
    budget = MemoryBudget(Thresholds(600 * MB, 250 * MB), root=in_group(tmp_path, limit, used_mb, inactive_mb))
    machine(tmp_path, 8000)
    assert budget.pressure() == level


def test_masks_go_first_and_then_every_second_frame() -> None:
    shed = [(pressure.keeps_masks, pressure.frame_stride) for pressure in Pressure]
    assert shed == [(True, 1), (False, 1), (False, 2)]


def test_what_does_not_fit_is_refused_with_the_figures(tmp_path: Path) -> None:
    budget = MemoryBudget(Thresholds(600 * MB, 250 * MB), root=machine(tmp_path, 1000))
    budget.admit("the model set 'nano'", 700 * MB)
    with pytest.raises(MachineError, match="'orin' needs 4000 MB and 750 MB can be spared of 1000 MB") as refused:
        budget.admit("the model set 'orin'", 4000 * MB)
    assert refused.value.exit_code == 69


def test_a_machine_that_does_not_tell_is_never_short(tmp_path: Path) -> None:
    budget = MemoryBudget(root=tmp_path)
    budget.admit("anything", 10**15)
    assert budget.pressure() is Pressure.OK
