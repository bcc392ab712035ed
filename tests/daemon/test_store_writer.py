"""The writer never makes its callers wait, and stops only when everything is on disk."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import barnsightd.store.records as records
from barnsightd.store.files import StoreWriteError
from barnsightd.store.layout import RecordName
from barnsightd.store.reader import read_observations
from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.sealing import seal
from barnsightd.store.segments import Scan
from barnsightd.store.writer import Writer
from barnsightd.types import Observation, TrackSource, TrackState

WAIT_S = 30.0
SETTINGS = StoreSettings(flush_seconds=0.1, reserve_bytes=0)


def seen(frame: int) -> tuple[Observation, ...]:
    observation = Observation(
        camera="pen-3",
        captured_ns=1_793_880_000_000_000_000 + frame,
        frame=frame,
        session=1,
        track=1,
        animal=None,
        box_px=(1.0, 2.0, 3.0, 4.0),
        area_px=4.0,
        mask_rle=b"",
        mask_size=(720, 1280),
        score=0.5,
        state=TrackState.CONFIRMED,
        source=TrackSource.DETECTED,
        behavior=None,
        model_set="abc",
    )
    return (observation,)


def ignore(op: str, number: int) -> None:
    """Listen to no faults."""


def test_everything_that_was_queued_is_on_disk_after_stop(tmp_path: Path) -> None:
    writer = Writer(Store.open(tmp_path, SETTINGS), on_error=ignore)
    writer.start()
    assert all(writer.submit(seen(frame)) for frame in range(100))
    assert writer.stop(WAIT_S)
    assert read_observations(tmp_path)["frame"].to_pylist() == list(range(100))
    assert writer.fatal is None


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    writer = Writer(Store.open(tmp_path, SETTINGS), on_error=ignore, capacity_frames=2)
    assert [writer.submit(seen(frame)) for frame in range(3)] == [True, True, False]
    assert writer.queue_length == 2
    writer.start()
    assert writer.stop(WAIT_S)
    assert read_observations(tmp_path)["frame"].to_pylist() == [0, 1]


def test_progress_advances_while_nothing_arrives(tmp_path: Path) -> None:
    writer = Writer(Store.open(tmp_path, SETTINGS), on_error=ignore)
    before = writer.progress_monotonic_ns
    writer.start()
    idle = threading.Event()
    for _ in range(300):
        if writer.progress_monotonic_ns > before:
            break
        idle.wait(0.1)
    assert writer.progress_monotonic_ns > before
    assert writer.stop(WAIT_S)


def test_a_full_disk_is_reported_and_the_writer_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PENDING_OBSERVATIONS", 2)
    monkeypatch.setattr(records, "RETRY_NS", 1)
    faults: list[tuple[str, int]] = []
    reported = threading.Event()

    def note(op: str, number: int) -> None:
        faults.append((op, number))
        reported.set()

    def disk_full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = Writer(Store.open(tmp_path, SETTINGS), on_error=note, capacity_frames=3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk_full)
        assert [writer.submit(seen(frame)) for frame in range(3)] == [True] * 3
        writer.start()
        assert reported.wait(WAIT_S)
        assert writer.alive
        assert writer.usage().degraded
    assert writer.stop(WAIT_S)
    assert set(faults) == {("append", errno.ENOSPC)}
    kept = read_observations(tmp_path)["frame"].to_pylist()
    assert kept == list(range(len(kept)))
    assert len(kept) + writer.usage().dropped == 3


def test_a_disk_that_refuses_the_last_flush_is_not_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "pwrite", read_only)
    writer = Writer(Store.open(tmp_path, SETTINGS), on_error=ignore)
    writer.submit(seen(0))
    writer.start()
    with pytest.raises(StoreWriteError, match="EROFS"):
        writer.stop(WAIT_S)
    assert writer.usage().dropped == 1


def test_while_segments_are_sealed_no_frame_is_refused_and_none_waits_for_more_than_one_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras, frames_per_seal = 4, 20
    submitted: list[bool] = []
    missing: list[int] = []
    ended = threading.Event()

    def submit(count: int, hour: int) -> None:
        for _ in range(count):
            camera = f"pen-{len(submitted) % cameras}"
            (observation,) = seen(len(submitted))
            moved = replace(observation, camera=camera, captured_ns=observation.captured_ns + hour * 3600 * 10**9)
            submitted.append(writer.submit((moved,)))

    def slow_seal(root: Path, name: RecordName, content: Scan) -> int:
        """Stand for a seal in which `frames_per_seal` frames arrive."""
        missing.append(len(submitted) - len(read_observations(root)))
        submit(frames_per_seal, hour=1)
        if len(missing) == cameras:
            ended.set()
        return seal(root, name, content)

    monkeypatch.setattr(records, "seal", slow_seal)
    store = Store.open(tmp_path, SETTINGS)
    store.append([replace(seen(0)[0], camera=f"pen-{camera}") for camera in range(cameras)])
    store.flush()
    submitted += [True] * cameras
    writer = Writer(store, on_error=ignore, capacity_frames=2 * frames_per_seal)
    submit(cameras, hour=1)
    writer.start()
    assert ended.wait(WAIT_S)
    assert writer.stop(WAIT_S)
    assert all(submitted)
    assert missing == [0] * cameras
    assert len(read_observations(tmp_path)) == len(submitted)
