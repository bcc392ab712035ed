"""Segments give back every record that is whole, whatever happened to the bytes around it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnsightd.store.files import StoreWriteError
from barnsightd.store.layout import RecordName
from barnsightd.store.schema import to_batch
from barnsightd.store.segments import MAGIC, Segment, scan
from barnsightd.types import Observation, TrackSource, TrackState

NAME = RecordName("pen-3", hour=490_000, number=1)


def seen(frame: int, track: int = 1) -> Observation:
    return Observation(
        camera="pen-3",
        captured_ns=NAME.hour * 3600 * 10**9 + frame,
        frame=frame,
        session=1,
        track=track,
        animal=None,
        box_px=(1.0, 2.0, 30.5, 40.5),
        area_px=812.0,
        mask_rle=b"abc",
        mask_size=(720, 1280),
        score=0.75,
        state=TrackState.CONFIRMED,
        source=TrackSource.DETECTED,
        behavior="lying",
        model_set="0123456789ab",
    )


def written(root: Path, frames: int) -> bytes:
    """Return the bytes of a segment with one record for each frame."""
    segment = Segment.create(root, NAME, opened_ns=0)
    for frame in range(frames):
        segment.append(to_batch([seen(frame)]))
    segment.close()
    return segment.path.read_bytes()


def frames_of(data: bytes) -> list[int]:
    return [int(frame) for frame in scan(data).table()["frame"].to_pylist()]


@pytest.fixture(scope="module")
def three_records(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("segment"), frames=3)


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, NAME, opened_ns=0)
    segment.append(to_batch([seen(7, track=1), seen(7, track=2)]))
    segment.close()

    row = scan(segment.path.read_bytes()).table().to_pylist()[1]

    assert row == {
        "captured_ns": NAME.hour * 3600 * 10**9 + 7,
        "frame": 7,
        "session": 1,
        "track": 2,
        "animal": None,
        "x0_px": 1.0,
        "y0_px": 2.0,
        "x1_px": 30.5,
        "y1_px": 40.5,
        "area_px": 812.0,
        "mask_rle": b"abc",
        "mask_height_px": 720,
        "mask_width_px": 1280,
        "score": 0.75,
        "state": "confirmed",
        "source": "detected",
        "behavior": "lying",
        "model_set": "0123456789ab",
    }


def test_cut_at_any_byte_of_the_last_record_the_others_survive(three_records: bytes) -> None:
    ends = [len(MAGIC) + (len(three_records) - len(MAGIC)) // 3 * count for count in (1, 2, 3)]
    for size in range(ends[1] - 10, len(three_records) + 1):
        content = scan(three_records[:size])
        whole = sum(end <= size for end in ends)
        assert content.table()["frame"].to_pylist() == list(range(whole))
        assert content.sound_bytes == ([len(MAGIC), *ends])[whole]
        assert content.torn_bytes == size - content.sound_bytes
        assert content.damaged_spans == 0


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_costs_at_most_its_own_record(three_records: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(three_records) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(three_records)
    flipped[at] ^= 1 << bit

    content = scan(bytes(flipped))

    assert len(frames_of(bytes(flipped))) >= 2
    assert set(frames_of(bytes(flipped))) <= {0, 1, 2}
    assert content.damaged_bytes + content.torn_bytes > 0


def test_a_damaged_record_in_the_middle_is_skipped_and_counted(three_records: bytes) -> None:
    first = scan(three_records[: len(three_records) // 2]).sound_bytes
    damaged = bytearray(three_records)
    damaged[first + 40 : first + 48] = bytes(8)

    content = scan(bytes(damaged))

    assert frames_of(bytes(damaged)) == [0, 2]
    assert content.damaged_spans == 1
    assert content.damaged_bytes == (len(three_records) - len(MAGIC)) // 3
    assert content.torn_bytes == 0


@pytest.mark.parametrize("data", [b"", MAGIC[:3], MAGIC, bytes(4096)])
def test_a_file_without_records_is_empty(data: bytes) -> None:
    assert scan(data).rows == 0
    assert scan(data).damaged_spans == 0


def test_a_refused_write_is_tried_again_and_nothing_is_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment.create(tmp_path, NAME, opened_ns=0)
    segment.append(to_batch([seen(0)]))
    pwrite = os.pwrite

    def disk_full(descriptor: int, data: bytes, offset: int) -> int:
        pwrite(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", disk_full)
    with pytest.raises(StoreWriteError, match="ENOSPC") as refused:
        segment.append(to_batch([seen(1)]))
    assert (refused.value.op, refused.value.errno) == ("append", errno.ENOSPC)
    assert frames_of(segment.path.read_bytes()) == [0]

    monkeypatch.setattr(os, "pwrite", pwrite)
    segment.append(to_batch([seen(1)]))
    segment.close()
    assert frames_of(segment.path.read_bytes()) == [0, 1]
    assert scan(segment.path.read_bytes()).torn_bytes == 0


def test_resuming_cuts_the_torn_end(tmp_path: Path) -> None:
    whole = written(tmp_path, frames=2)
    path = tmp_path / NAME.segment
    path.write_bytes(whole[:-5])
    sound = scan(path.read_bytes()).sound_bytes

    segment = Segment.resume(tmp_path, NAME, sound, opened_ns=0)
    segment.append(to_batch([seen(9)]))
    segment.close()

    assert frames_of(path.read_bytes()) == [0, 9]
