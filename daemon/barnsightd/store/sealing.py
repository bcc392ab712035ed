"""A segment that is complete becomes one Parquet file: zstd, page checksums, whole or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from barnsightd.store.files import publish
from barnsightd.store.layout import RecordName
from barnsightd.store.segments import Scan

ROWS_PER_GROUP = 65_536


def seal(root: Path, name: RecordName, content: Scan) -> int:
    """Write the observations of a segment to their Parquet file; return its size in bytes.

    The segment stays: who calls deletes it once this returned. Raises OSError.
    """
    table = content.table()
    metadata = {**(table.schema.metadata or {}), b"barnsight.camera": name.camera.encode()}

    def write(file: BinaryIO) -> None:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            file,
            compression="zstd",
            row_group_size=ROWS_PER_GROUP,
            write_page_checksum=True,
        )

    return publish(root / name.parquet, write)


def read_sealed(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a sealed file and check its pages; raises pyarrow.ArrowInvalid or OSError where it is damaged."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns)
