"""How much each kind of file may take, and what goes first when the disk is short.

Kinds are held in the order in which they give way. Each stays under its own quota by losing its oldest files. The
reserve that other programs and sealing need is restored from the kinds that may give way; records never do: a disk
that something else filled stops new records, it does not cost old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from barnsightd.store.files import writing
from barnsightd.store.layout import OBSERVATIONS, QUARANTINE


@dataclass(slots=True)
class Kind:
    """One kind of file. `used_bytes` is kept by who writes; `oldest_first` lists what may be deleted."""

    quota_bytes: int
    gives_way: bool
    oldest_first: Callable[[], Iterable[Path]]
    used_bytes: int = 0


def evict(kinds: Sequence[Kind], short_bytes: int) -> Iterator[Path]:
    """Delete until every kind is within its quota and `short_bytes` are freed as far as kinds give way.

    Yields each path once it is deleted and no longer counted; raises StoreWriteError.
    """
    for kind in kinds:
        over_quota = kind.used_bytes - kind.quota_bytes
        excess = max(over_quota, short_bytes) if kind.gives_way else over_quota
        for path in kind.oldest_first() if excess > 0 else ():
            with writing("retention", path):
                size = path.stat().st_size
                path.unlink()
            kind.used_bytes -= size
            short_bytes -= size
            excess -= size
            yield path
            if excess <= 0:
                break


def oldest_observations(root: Path) -> Iterator[Path]:
    """List the sealed files of all cameras, oldest hour first."""
    for date in sorted({folder.name for folder in root.glob(f"{OBSERVATIONS}/camera=*/date=*")}):
        files = list(root.glob(f"{OBSERVATIONS}/camera=*/{date}/*.parquet"))
        yield from sorted(files, key=lambda path: path.name)
        for folder in root.glob(f"{OBSERVATIONS}/camera=*/{date}"):
            if not any(folder.iterdir()):
                folder.rmdir()


def oldest_quarantined(root: Path) -> Iterator[Path]:
    """List what was set aside as damaged, oldest first: the names begin with the time."""
    yield from sorted((root / QUARANTINE).glob("*"))
