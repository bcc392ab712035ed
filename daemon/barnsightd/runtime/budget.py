"""Keeps the machine from running out of memory: no start without room, and load is shed before the kernel kills.

On a Jetson the processor and the GPU share one memory, so `MemAvailable` of /proc/meminfo counts for both. Where the
unit or the container has a limit of its own (`MemoryMax=`), what is left of that counts if it is less. Load is shed in
a declared order and taken back in the opposite one:

    ok        everything
    tight     masks are not kept in the records
    critical  also, only every second frame is processed
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from barnsightd.errors import MachineError

BYTES_PER_MB = 1_000_000
BYTES_PER_KIB = 1024


class Pressure(IntEnum):
    """How short memory is, in the order in which load is shed."""

    OK = 0
    TIGHT = 1
    CRITICAL = 2

    @property
    def keeps_masks(self) -> bool:
        """Whether masks go into the records."""
        return self < Pressure.TIGHT

    @property
    def frame_stride(self) -> int:
        """Process every n-th frame."""
        return 2 if self >= Pressure.CRITICAL else 1


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Available bytes below which each pressure begins; it ends `recovery` times higher, lest it flutter."""

    tight_bytes: int = 600 * BYTES_PER_MB
    critical_bytes: int = 250 * BYTES_PER_MB
    recovery: float = 1.25


class MemoryBudget:
    """Watches the memory that is available to this process: the machine's, or what its control group leaves."""

    def __init__(self, thresholds: Thresholds | None = None, *, root: Path = Path("/")) -> None:
        """`root` is where /proc and /sys are looked for."""
        self._thresholds = thresholds or Thresholds()
        self._root = root
        self._pressure = Pressure.OK

    def admit(self, what: str, needed_bytes: int) -> None:
        """Check that `what` fits beside everything else; raises MachineError with the figures if it does not."""
        available = spare_bytes(self._root)
        if available is None:
            return
        spare = available - self._thresholds.critical_bytes
        if needed_bytes > spare:
            raise MachineError(
                f"memory: {what} needs {needed_bytes // BYTES_PER_MB} MB and "
                f"{max(spare, 0) // BYTES_PER_MB} MB can be spared of {available // BYTES_PER_MB} MB available; "
                "stop other programs, use fewer cameras or a smaller model set"
            )

    def pressure(self) -> Pressure:
        """Measure again and say how short memory is; a machine that does not tell is never short."""
        available = spare_bytes(self._root)
        if available is None:
            return Pressure.OK
        entered = self._level(available)
        left = self._level(int(available / self._thresholds.recovery))
        # Worse is taken at once, better only with the margin.
        self._pressure = max(entered, min(self._pressure, left))
        return self._pressure

    def _level(self, available: int) -> Pressure:
        if available < self._thresholds.critical_bytes:
            return Pressure.CRITICAL
        if available < self._thresholds.tight_bytes:
            return Pressure.TIGHT
        return Pressure.OK


def spare_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take, None where nothing tells: of the machine, and of its own control group."""
    known = [spare for spare in (available_bytes(root), group_bytes(root)) if spare is not None]
    return min(known, default=None)


def group_bytes(root: Path = Path("/")) -> int | None:
    """What the process's own control group (cgroup v2) leaves below its `memory.max`, None where it has no limit.

    Pages of files that were not used lately do not count: the kernel drops them before it kills.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        own = next(line.removeprefix("0::/") for line in groups if line.startswith("0::/"))
        folder = root / "sys/fs/cgroup" / own
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        figures = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, StopIteration):
        return None
    return None if limit == "max" else int(limit) - int(used) + int(figures["inactive_file"])


def available_bytes(root: Path = Path("/")) -> int | None:
    """Read `MemAvailable` below `root`, None where there is no such figure."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * BYTES_PER_KIB
    return None
