"""Append-only segments: one flush of observations per CRC-framed record, durable when `append` returns.

    segment  magic "BARNSEG1", records
    record   marker (4 bytes), payload length and CRC-32 of length and payload (uint32 each, little-endian), payload
    payload  one Arrow IPC stream, zstd: it carries its own schema, so old segments stay readable

Measured on 144 observations (2 s of a pen of 12): packed structs take 101 bytes each and 4 µs, Arrow with zstd
76 bytes and 24 µs. At a pen's 72 observations a second either cost is nothing, and Arrow is sealed into Parquet
without touching single rows. A reader that meets damage looks for the next marker whose CRC holds.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from barnsightd.store.files import fsync_folder, make_folder, writing
from barnsightd.store.layout import RecordName
from barnsightd.store.schema import join

MAGIC = b"BARNSEG1"
MARKER = b"\xf5OBS"
HEAD = struct.Struct("<4sII")
LENGTH = struct.Struct("<I")
ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds: its sound records, and how many bytes were not.

    `sound_bytes` is where the last sound record ends; `damaged_bytes` in `damaged_spans` lie before it,
    `torn_bytes` after it, left by a write that never finished.
    """

    batches: tuple[pa.RecordBatch, ...]
    sound_bytes: int
    damaged_bytes: int
    damaged_spans: int
    torn_bytes: int

    @property
    def rows(self) -> int:
        """Number of observations that can be read."""
        return sum(batch.num_rows for batch in self.batches)

    def table(self) -> pa.Table:
        """Join what can be read, also where the records are of several schema versions."""
        return join([pa.Table.from_batches([batch]) for batch in self.batches])


def scan(data: bytes) -> Scan:
    """Read every sound record of a segment's bytes, whatever lies between them."""
    batches: list[pa.RecordBatch] = []
    damaged_bytes = damaged_spans = 0
    sound_end = len(MAGIC) if data.startswith(MAGIC) else 0
    at = data.find(MARKER)
    while at >= 0:
        record = _record_at(data, at)
        if record is None:
            at = data.find(MARKER, at + 1)
            continue
        if at > sound_end:
            damaged_bytes += at - sound_end
            damaged_spans += 1
        batch, sound_end = record
        batches.append(batch)
        at = data.find(MARKER, sound_end)
    return Scan(tuple(batches), sound_end, damaged_bytes, damaged_spans, len(data) - sound_end)


def _record_at(data: bytes, at: int) -> tuple[pa.RecordBatch, int] | None:
    """Return the record that begins at `at` and where it ends; None where it is not whole."""
    if at + HEAD.size > len(data):
        return None
    _, length, checksum = HEAD.unpack_from(data, at)
    start, end = at + HEAD.size, at + HEAD.size + length
    if end > len(data):
        return None
    payload = memoryview(data)[start:end]
    if _checksum(payload) != checksum:
        return None
    try:
        with pa.ipc.open_stream(payload) as stream:
            return stream.read_next_batch(), end
    except (pa.ArrowInvalid, OSError, StopIteration):
        return None


def _frame(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=ZSTD) as stream:
        stream.write_batch(batch)
    payload = memoryview(sink.getvalue())
    return HEAD.pack(MARKER, len(payload), _checksum(payload)) + payload


def _checksum(payload: memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(LENGTH.pack(len(payload))))


class Segment:
    """A segment being written. A failed append leaves what was durable as it was, and may be tried again."""

    def __init__(self, root: Path, name: RecordName, descriptor: int, durable_bytes: int, opened_ns: int) -> None:
        self.name = name
        self.path = root / name.segment
        self.durable_bytes = durable_bytes
        self.opened_ns = opened_ns
        self._descriptor = descriptor
        self._torn = False

    @classmethod
    def create(cls, root: Path, name: RecordName, opened_ns: int) -> Segment:
        """Begin a segment where no file is; raises StoreWriteError."""
        path = root / name.segment
        with writing("append", path):
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        return cls(root, name, descriptor, 0, opened_ns)

    @classmethod
    def resume(cls, root: Path, name: RecordName, sound_bytes: int, opened_ns: int) -> Segment:
        """Go on with a segment that an earlier process left, cutting what follows its last sound record."""
        path = root / name.segment
        with writing("append", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(descriptor, sound_bytes)
            os.fsync(descriptor)
        return cls(root, name, descriptor, sound_bytes, opened_ns)

    def append(self, batch: pa.RecordBatch) -> int:
        """Write one record and wait until it is durable; return its size in bytes. Raises StoreWriteError."""
        data = _frame(batch)
        if not self.durable_bytes:
            data = MAGIC + data
        with writing("append", self.path):
            if self._torn:
                os.ftruncate(self._descriptor, self.durable_bytes)
            self._torn = True
            _write_all(self._descriptor, data, self.durable_bytes)
            os.fsync(self._descriptor)
            if not self.durable_bytes:
                fsync_folder(self.path.parent)
        self._torn = False
        self.durable_bytes += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
