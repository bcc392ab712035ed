"""`barnsight db check` and `barnsight db repair`: what is damaged in a store, and the store mended.

A check only reads, also beside a running service. An unfinished record at the end of a segment is no damage: every
power cut leaves one, and the next start cuts it off.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from barnsightd.errors import StoreError
from barnsightd.store.layout import DATABASE, OBSERVATIONS, SEGMENTS, RecordName, parquet_files, segments
from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.sealing import read_sealed
from barnsightd.store.segments import scan

UNLIMITED = StoreSettings(quota_bytes=2**63, reserve_bytes=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one file of the store, named relative to it; `damage` says whether records were lost."""

    file: str
    problem: str
    damage: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a store holds and what was found; `repaired` lists the damage that a repair dealt with."""

    path: str
    segments: int
    sealed_files: int
    observations: int
    findings: tuple[Finding, ...]
    repaired: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.damage for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 0 for a sound store, 65 for a damaged one."""
        return os.EX_OK if self.ok else os.EX_DATAERR

    def to_json(self) -> str:
        """Return the report as one JSON object on one line."""
        return json.dumps({**asdict(self), "ok": self.ok})

    def __str__(self) -> str:
        """Return the report as lines for a terminal."""
        holds = f"{self.observations} observations in {self.sealed_files} sealed files and {self.segments} segments"
        lines = [f"{self.path}: {holds}"]
        lines += [f"  repaired  {finding.file}: {finding.problem}" for finding in self.repaired]
        lines += [
            f"  {'DAMAGED' if finding.damage else 'note':<9} {finding.file}: {finding.problem}"
            for finding in self.findings
        ]
        lines.append("sound" if self.ok else "damaged: stop the service and, as its user, run `barnsight db repair`")
        return "\n".join(lines)


def check(path: Path) -> Report:
    """Read the whole store and report, changing nothing; raises StoreError where that is impossible."""
    if not (path / SEGMENTS).is_dir() and not (path / OBSERVATIONS).is_dir() and not (path / DATABASE).exists():
        raise StoreError(f"{path}: there is no store here; name the folder given as storage.path")
    findings: list[Finding] = []
    read: set[RecordName] = set()
    observations = sealed_count = 0
    try:
        for name in segments(path):
            file = name.segment.as_posix()
            try:
                content = scan((path / name.segment).read_bytes())
            except FileNotFoundError:  # sealed since it was listed
                continue
            read.add(name)
            observations += content.rows
            if content.damaged_spans:
                problem = f"{content.damaged_bytes} bytes in {content.damaged_spans} places cannot be read"
                findings.append(Finding(file, problem, damage=True))
            if content.torn_bytes:
                problem = f"{content.torn_bytes} bytes of an unfinished record at its end"
                findings.append(Finding(file, problem, damage=False))
        for name in parquet_files(path):
            try:
                rows = len(read_sealed(path / name.parquet))
            except FileNotFoundError:  # evicted since it was listed
                continue
            except (pa.ArrowInvalid, OSError) as error:
                reason = str(error).splitlines()[0]
                findings.append(Finding(name.parquet.as_posix(), f"cannot be read: {reason}", damage=True))
                rows = 0
            sealed_count += 1
            if name not in read:
                observations += rows
        findings.extend(_check_database(path))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error}; run as the service's user or check the disk") from error
    return Report(str(path), len(read), sealed_count, observations, tuple(findings))


def repair(path: Path) -> Report:
    """Set damaged files aside, seal every segment, rebuild the tables, and report on the store as it is then.

    Raises StoreError where the store is in use or the disk refuses.
    """
    before = check(path)
    damaged = [Path(finding.file) for finding in before.findings if finding.damage]
    with Store.open(path, UNLIMITED) as store:
        store.rebuild([file for file in damaged if file.parts[0] != SEGMENTS])
    after = check(path)
    return Report(
        after.path,
        after.segments,
        after.sealed_files,
        after.observations,
        after.findings,
        repaired=before.findings,
    )


def _check_database(root: Path) -> Iterator[Finding]:
    path = root / DATABASE
    if not path.exists():
        yield Finding(DATABASE, "not there; the next start makes it from the sealed files", damage=False)
        return
    # Without a write-ahead log nobody writes, and SQLite needs to leave nothing beside the file.
    mode = "mode=ro" if path.with_name(DATABASE + "-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as connection:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                yield Finding(DATABASE, verdict, damage=True)
                return
            absorbed = {file for (file,) in connection.execute("SELECT path FROM sealed")}
    except sqlite3.DatabaseError as error:
        yield Finding(DATABASE, str(error), damage=True)
        return
    missing = {name.parquet.as_posix() for name in parquet_files(root)} - absorbed
    if missing:
        yield Finding(DATABASE, f"{len(missing)} sealed files are not in its tables yet", damage=False)
