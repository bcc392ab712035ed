"""Keeps the machine from running out of memory: no start without room, and load is shed before the kernel kills.

On a Jetson the processor and the GPU share one memory, so `MemAvailable` of /proc/meminfo counts for both. Load is
shed in a declared order and taken back in the opposite one:

    ok        everything
    tight     masks are not kept in the records
    critical  also, only every second frame is processed
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from barnsightd.errors import BarnsightError

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
    """Watches the memory that is available to the whole machine."""

    def __init__(self, thresholds: Thresholds | None = None, *, root: Path = Path("/")) -> None:
        """`root` is where /proc is looked for."""
        self._thresholds = thresholds or Thresholds()
        self._root = root
        self._pressure = Pressure.OK

    def admit(self, what: str, needed_bytes: int) -> None:
        """Check that `what` fits beside everything else; raises BarnsightError with the figures if it does not."""
        available = available_bytes(self._root)
        if available is None:
            return
        spare = available - self._thresholds.critical_bytes
        if needed_bytes > spare:
            raise BarnsightError(
                f"memory: {what} needs {needed_bytes // BYTES_PER_MB} MB and "
                f"{max(spare, 0) // BYTES_PER_MB} MB can be spared of {available // BYTES_PER_MB} MB available; "
                "stop other programs, use fewer cameras or a smaller model set"
            )

    def pressure(self) -> Pressure:
        """Measure again and say how short memory is; a machine that does not tell is never short."""
        available = available_bytes(self._root)
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
