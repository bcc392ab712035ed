"""Reading observations back, sealed or not, while the service may be writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from barnsightd.store.layout import NS_PER_HOUR, RecordName, parquet_files, segments
from barnsightd.store.schema import join
from barnsightd.store.sealing import read_sealed
from barnsightd.store.segments import scan


def read_observations(
    path: Path, camera: str | None = None, start_ns: int | None = None, end_ns: int | None = None
) -> pa.Table:
    """Return the observations of `camera` (all if None) with start_ns <= captured_ns < end_ns, oldest first.

    The columns are those of `schema.SCHEMA` after `camera`. Damaged records are left out, as they are by sealing;
    a damaged sealed file raises pyarrow.ArrowInvalid or OSError.
    """

    def wanted(name: RecordName) -> bool:
        return (
            (camera is None or name.camera == camera)
            and (start_ns is None or (name.hour + 1) * NS_PER_HOUR > start_ns)
            and (end_ns is None or name.hour * NS_PER_HOUR < end_ns)
        )

    tables = [_with_camera(name.camera, table) for name, table in _tables(path, wanted)]
    observations = join(tables) if tables else _with_camera("", join([]))
    if start_ns is not None:
        observations = observations.filter(pc.greater_equal(observations["captured_ns"], start_ns))
    if end_ns is not None:
        observations = observations.filter(pc.less(observations["captured_ns"], end_ns))
    return observations.sort_by([("captured_ns", "ascending"), ("camera", "ascending"), ("track", "ascending")])


def _tables(root: Path, wanted: Callable[[RecordName], bool]) -> Iterator[tuple[RecordName, pa.Table]]:
    """Read each wanted record once, though it may be sealed meanwhile: segments first, then sealed files."""
    read = set()
    for name in filter(wanted, segments(root)):
        try:
            content = scan((root / name.segment).read_bytes())
        except FileNotFoundError:  # sealed since it was listed
            continue
        read.add(name)
        yield name, content.table()
    for name in filter(wanted, parquet_files(root)):
        if name not in read:
            with suppress(FileNotFoundError):  # evicted since it was listed
                yield name, read_sealed(root / name.parquet)


def _with_camera(camera: str, table: pa.Table) -> pa.Table:
    return table.add_column(0, "camera", pa.array([camera] * len(table), pa.string()))
