"""A store keeps what was flushed: through clock jumps, full disks, damage and being killed between any two steps."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
from collections import namedtuple
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

import barnsightd.store.database as database
import barnsightd.store.records as records
from barnsightd.errors import StoreAccessError, StoreError
from barnsightd.store.database import Database
from barnsightd.store.files import StoreWriteError
from barnsightd.store.layout import DATABASE, NS_PER_HOUR, NS_PER_S, QUARANTINE
from barnsightd.store.reader import read_observations
from barnsightd.store.records import Store, StoreSettings
from barnsightd.types import Observation, TrackSource, TrackState

NOON_NS = 1_793_880_000 * NS_PER_S  # 2026-11-05 12:00 UTC
SETTINGS = StoreSettings(flush_seconds=2, seal_minutes=60, quota_bytes=10**9, reserve_bytes=0)
Usage = namedtuple("Usage", "total used free")


def seen(frame: int, *, camera: str = "pen-3", at_ns: int = NOON_NS, session: int = 1) -> Observation:
    return Observation(
        camera=camera,
        captured_ns=at_ns + frame * 1_000_000,
        frame=frame,
        session=session,
        track=frame % 2,
        animal=None,
        box_px=(1.0, 2.0, 30.0, 40.0),
        area_px=800.0,
        mask_rle=b"",
        mask_size=(720, 1280),
        score=0.5,
        state=TrackState.CONFIRMED,
        source=TrackSource.DETECTED,
        behavior=None,
        model_set="0123456789ab",
    )


def frames(path: Path, **selection: Any) -> list[int]:
    return [int(frame) for frame in read_observations(path, **selection)["frame"].to_pylist()]


def sealed(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.glob("observations/*/*/*.parquet"))


def open_segments(path: Path) -> list[Path]:
    return sorted(path.glob("segments/*/*.seg"))


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW o AS FROM read_parquet('{path}/observations/*/*/*.parquet')")
        return connection.sql(sql).fetchall()


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> Callable[[], None]:
    """Let a call of `os` fail with an error number until the returned function is called."""
    working = getattr(os, name)

    def fails(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fails)
    return lambda: monkeypatch.setattr(os, name, working)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the store catches it, and the store is abandoned as it is."""


def killed_here(*_: object) -> None:
    raise Killed


def abandon(store: Store) -> None:
    """Let go of the lock as a killed process does, and of nothing else."""
    os.close(store._lock)


def test_a_flush_is_due_within_flush_seconds_and_not_before_there_is_something(tmp_path: Path) -> None:
    store = Store.open(tmp_path, SETTINGS)
    store.maintain(0)
    store.append([seen(0)], now_ns=100 * NS_PER_S)
    store.maintain(101 * NS_PER_S)
    assert frames(tmp_path) == []

    store.maintain(102 * NS_PER_S)
    assert frames(tmp_path) == [0]
    assert store.usage().observations == 1
    store.close()


def test_a_killed_process_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    killed = Store.open(tmp_path, SETTINGS)
    killed.append([seen(0)])
    killed.flush()
    killed.append([seen(1)])
    abandon(killed)

    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(2)])
    assert frames(tmp_path) == [0, 2]
    assert len(open_segments(tmp_path)) == 1


def test_hours_are_sealed_one_by_one_and_the_open_one_is_read_too(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        for hour in range(3):
            store.append([seen(hour, at_ns=NOON_NS + hour * NS_PER_HOUR)])
            store.flush()
            store.maintain()
    assert sealed(tmp_path) == [
        "observations/camera=pen-3/date=2026-11-05/12-00000001.parquet",
        "observations/camera=pen-3/date=2026-11-05/13-00000002.parquet",
    ]
    assert len(open_segments(tmp_path)) == 1
    assert frames(tmp_path) == [0, 1, 2]
    assert frames(tmp_path, start_ns=NOON_NS + NS_PER_HOUR) == [1, 2]
    assert frames(tmp_path, end_ns=NOON_NS + NS_PER_HOUR) == [0]
    assert frames(tmp_path, camera="pen-4") == []


def test_a_quiet_camera_is_sealed_by_age(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(0)], now_ns=0)
        store.maintain(2 * NS_PER_S)
        store.maintain(3600 * NS_PER_S)
        assert sealed(tmp_path) == []
        store.maintain(3605 * NS_PER_S)
    assert len(sealed(tmp_path)) == 1
    assert open_segments(tmp_path) == []


@pytest.mark.parametrize("jump_ns", [-NS_PER_HOUR, NS_PER_HOUR, -8766 * NS_PER_HOUR, 8766 * NS_PER_HOUR])
def test_a_clock_jump_and_its_return_lose_and_overwrite_nothing(tmp_path: Path, jump_ns: int) -> None:
    moments = [NOON_NS, NOON_NS + jump_ns, NOON_NS, NOON_NS + jump_ns]
    with Store.open(tmp_path, SETTINGS) as store:
        for frame, at_ns in enumerate(moments):
            store.append([seen(frame, at_ns=at_ns)])
            store.flush()
        store.seal_all()
    assert sorted(frames(tmp_path)) == [0, 1, 2, 3]
    assert len(sealed(tmp_path)) == 4


def test_parquet_is_partitioned_compressed_and_says_its_schema(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(0), seen(1), replace(seen(0), camera="pen-4", mask_rle=b"rle")])
        store.seal_all()

    assert query(tmp_path, "SELECT camera, date::text, count(*) FROM o GROUP BY ALL ORDER BY ALL") == [
        ("pen-3", "2026-11-05", 2),
        ("pen-4", "2026-11-05", 1),
    ]
    with pq.ParquetFile(tmp_path / sealed(tmp_path)[0]) as file:
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert file.schema_arrow.metadata[b"barnsight.schema_version"] == b"1"
        assert file.schema_arrow.metadata[b"barnsight.camera"] == b"pen-3"


def test_the_query_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(0), seen(1), seen(2)])
        store.seal_all()
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    (sql,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    with duckdb.connect() as connection:
        (row,) = connection.sql(sql).fetchall()
    assert row == ("pen-3", datetime(2026, 11, 5, 12), 2, 0.5, 800.0)


@pytest.mark.parametrize("step", ["seal", "remove"])
def test_killed_between_any_two_steps_of_sealing_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    killed = Store.open(tmp_path, SETTINGS)
    killed.append([seen(0), seen(1)])
    with monkeypatch.context() as patch:
        patch.setattr(records, step, killed_here)
        with pytest.raises(Killed):
            killed.seal_all()
    abandon(killed)
    assert frames(tmp_path) == [0, 1]

    with Store.open(tmp_path, SETTINGS) as store:
        store.seal_all()
    assert frames(tmp_path) == [0, 1]
    assert len(sealed(tmp_path)) == 1
    assert open_segments(tmp_path) == []


def test_a_sealed_file_damaged_before_its_segment_was_deleted_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Store.open(tmp_path, SETTINGS)
    killed.append([seen(0)])
    with monkeypatch.context() as patch:
        patch.setattr(records, "remove", killed_here)
        with pytest.raises(Killed):
            killed.seal_all()
    abandon(killed)
    (tmp_path / sealed(tmp_path)[0]).write_bytes(b"PAR1 garbage")

    with Store.open(tmp_path, SETTINGS) as store:
        store.seal_all()
    assert frames(tmp_path) == [0]
    assert len(list((tmp_path / QUARANTINE).iterdir())) == 1


def test_a_segment_damaged_in_the_middle_is_kept_in_quarantine_and_the_rest_is_sealed(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        for frame in range(3):
            store.append([seen(frame)])
            store.flush()
    (segment,) = open_segments(tmp_path)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)

    with Store.open(tmp_path, SETTINGS) as store:
        store.seal_all()
        assert store.usage().damaged_spans == 1
    assert frames(tmp_path) == [0, 2]
    assert open_segments(tmp_path) == []
    (kept,) = (tmp_path / QUARANTINE).iterdir()
    assert kept.read_bytes() == data


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_refusing_disk_is_reported_and_everything_held_is_written_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store.open(tmp_path, SETTINGS)
    store.append([seen(0)], now_ns=0)
    store.maintain(2 * NS_PER_S)
    back = refuse(monkeypatch, "fsync", number)
    store.append([seen(1)], now_ns=2 * NS_PER_S)

    (fault,) = store.maintain(4 * NS_PER_S)
    assert (fault.op, fault.errno) == ("append", number)
    assert store.usage().degraded
    assert store.maintain(5 * NS_PER_S) == ()  # waits before it tries again

    back()
    store.append([seen(2)], now_ns=5 * NS_PER_S)
    assert store.maintain(6 * NS_PER_S) == ()
    assert not store.usage().degraded
    store.close()
    assert frames(tmp_path) == [0, 1, 2]


def test_a_store_that_cannot_write_takes_a_bounded_number_and_drops_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PENDING_OBSERVATIONS", 3)
    store = Store.open(tmp_path, SETTINGS)
    back = refuse(monkeypatch, "pwrite", errno.ENOSPC)
    taken = [store.append([seen(frame)]) for frame in range(5)]
    assert taken == [True, True, True, False, False]
    assert store.usage().dropped == 2

    back()
    store.close()
    assert frames(tmp_path) == [0, 1, 2]


def test_the_reserve_is_not_written_into_and_no_record_is_deleted_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path, replace(SETTINGS, reserve_bytes=1000)) as store:
        store.append([seen(0)])
        store.seal_all()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda *_: Usage(10**9, 10**9, 900))
            store.append([seen(1)], now_ns=0)
            (fault,) = store.maintain(2 * NS_PER_S)
            assert (fault.op, fault.errno) == ("flush", errno.ENOSPC)
            assert len(sealed(tmp_path)) == 1
    assert frames(tmp_path) == [0, 1]


def test_over_the_quota_the_oldest_hour_of_any_camera_goes_first(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        for hour, camera in enumerate(["pen-4", "pen-3", "pen-4", "pen-3"]):
            store.begin_session(camera, NOON_NS)
            store.append([seen(hour, camera=camera, at_ns=NOON_NS + hour * NS_PER_HOUR, session=hour)])
            store.seal_all()
        used = store.usage().used_bytes
    assert used == sum((tmp_path / file).stat().st_size for file in sealed(tmp_path))

    with Store.open(tmp_path, replace(SETTINGS, quota_bytes=used * 5 // 8)) as store:
        store.maintain()
        assert store.usage().used_bytes <= store.usage().quota_bytes
    assert frames(tmp_path) == [2, 3]


def test_a_locked_database_costs_no_more_than_the_files_over_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.0)
    with Store.open(tmp_path, SETTINGS) as store:
        for hour in range(4):
            store.append([seen(hour, at_ns=NOON_NS + hour * NS_PER_HOUR)])
            store.seal_all()
        used = store.usage().used_bytes

    with Store.open(tmp_path, replace(SETTINGS, quota_bytes=used - 1)) as store:
        with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for second in range(0, 30, 3):
                faults = store.maintain(second * NS_PER_S)
                assert {(fault.op, fault.errno) for fault in faults} == {("database", errno.EBUSY)}
        assert len(sealed(tmp_path)) == 3
        assert store.usage().used_bytes == sum((tmp_path / file).stat().st_size for file in sealed(tmp_path))
        assert store.maintain(60 * NS_PER_S) == ()
        with closing(sqlite3.connect(tmp_path / DATABASE)) as tables:
            assert sorted(file for (file,) in tables.execute("SELECT path FROM sealed")) == sealed(tmp_path)


def test_a_busy_hour_has_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SEGMENT_BYTES", 1)
    with Store.open(tmp_path, SETTINGS) as store:
        for frame in range(0, 6, 2):
            store.append([seen(frame)])
            store.flush()
        store.maintain()
        assert frames(tmp_path) == [0, 2, 4]
        store.seal_all()
        parts = sealed(tmp_path)
        used = store.usage().used_bytes
    assert [part[-16:] for part in parts] == ["00000001.parquet", "00000002.parquet", "00000003.parquet"]
    assert tracks_of(tmp_path) == [("pen-3", 1, 0, 3, 0.5)]

    with Store.open(tmp_path, replace(SETTINGS, quota_bytes=used - 1)) as store:
        store.maintain()
    assert sealed(tmp_path) == parts[1:]
    assert len(tracks_of(tmp_path)) == 1


def test_a_quota_that_segments_alone_use_up_stops_writing(tmp_path: Path) -> None:
    store = Store.open(tmp_path, replace(SETTINGS, quota_bytes=100))
    store.append([seen(0)])
    store.flush()
    store.append([seen(1)], now_ns=0)
    (fault,) = store.maintain(2 * NS_PER_S)
    assert fault.errno == errno.EDQUOT
    abandon(store)
    assert frames(tmp_path) == [0]


def test_sessions_are_numbered_per_camera_across_restarts(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        assert [store.begin_session(camera, NOON_NS) for camera in ("pen-3", "pen-3", "pen-4")] == [1, 2, 1]
    with Store.open(tmp_path, SETTINGS) as store:
        assert [store.begin_session(camera, NOON_NS) for camera in ("pen-3", "pen-4")] == [3, 2]
        with pytest.raises(StoreError, match="rename the camera"):
            store.begin_session("../pen", NOON_NS)


def test_a_session_number_is_not_given_again_when_only_its_observations_survived(tmp_path: Path) -> None:
    killed = Store.open(tmp_path, SETTINGS)
    killed.append([seen(0, session=7), seen(0, camera="pen-4", session=4)])
    killed.seal_all()
    killed.append([seen(0, session=8)])
    killed.flush()
    abandon(killed)
    (tmp_path / DATABASE).write_bytes(b"not a database" * 100)

    with Store.open(tmp_path, SETTINGS) as store:
        assert [store.begin_session(camera, NOON_NS) for camera in ("pen-3", "pen-4")] == [9, 5]


def test_a_session_ends_where_it_is_said_to_and_a_killed_one_at_its_last_observation(tmp_path: Path) -> None:
    killed = Store.open(tmp_path, SETTINGS)
    for camera in ("pen-3", "pen-4"):
        killed.begin_session(camera, NOON_NS)
        killed.append([seen(7, camera=camera)])
    killed.end_session("pen-4", 1, NOON_NS + 9)
    killed.maintain()
    killed.flush()
    abandon(killed)

    with Store.open(tmp_path, SETTINGS) as store:
        store.begin_session("pen-3", NOON_NS + 6 * NS_PER_HOUR)
        store.maintain()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as tables:
        assert tables.execute("SELECT camera, session, ended_ns FROM sessions").fetchall() == [
            ("pen-3", 1, NOON_NS + 7_000_000),
            ("pen-3", 2, None),
            ("pen-4", 1, NOON_NS + 9),
        ]


def test_a_disk_that_is_full_at_the_start_does_not_hinder_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.begin_session("pen-3", NOON_NS)
        store.append([seen(0)])
        store.seal_all()

    def full(path: Path) -> Database:
        raise StoreWriteError("database", path, OSError(errno.ENOSPC, "database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(Database, "open", full)
        store = Store.open(tmp_path, SETTINGS)
        assert store.begin_session("pen-3", NOON_NS + NS_PER_HOUR) == 2
        assert {fault.op for fault in store.maintain(0)} == {"database"}
        assert store.usage().degraded
    assert store.maintain(3 * NS_PER_S) == ()
    assert not store.usage().degraded
    store.close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as tables:
        assert tables.execute("SELECT session FROM sessions").fetchall() == [(1,), (2,)]
    assert len(tracks_of(tmp_path)) == 1


def test_a_segment_that_the_disk_cannot_read_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(0), seen(1, camera="pen-4")])
    unreadable, _ = open_segments(tmp_path)
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with Store.open(tmp_path, SETTINGS) as store:
        assert store.maintain() == ()
        assert store.usage().damaged_spans == 1
    assert frames(tmp_path) == [1]
    assert len(list((tmp_path / QUARANTINE).iterdir())) == 1


def test_a_disk_that_fails_while_the_store_is_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        store.append([seen(0)])
        store.seal_all()
    (file,) = (tmp_path / name for name in sealed(tmp_path))
    stat = Path.stat

    def fails(path: Path, **options: bool) -> os.stat_result:
        if path == file:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fails)
    with pytest.raises(StoreError, match=rf"Input/output error \({file}\).*working disk"):
        Store.open(tmp_path, SETTINGS)


def test_a_damaged_database_is_set_aside_and_rebuilt_from_what_is_sealed(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS) as store:
        for hour in range(2):
            store.append([seen(2 * hour, at_ns=NOON_NS + hour * NS_PER_HOUR)])
            store.seal_all()
    tables = tmp_path / DATABASE
    damaged = bytearray(tables.read_bytes())
    damaged[4096:12288] = bytes([0xA5]) * 8192
    tables.write_bytes(damaged)

    with Store.open(tmp_path, SETTINGS) as store:
        store.maintain()
        store.maintain()
    assert any(DATABASE in kept.name for kept in (tmp_path / QUARANTINE).iterdir())
    assert tracks_of(tmp_path) == [("pen-3", 1, 0, 2, 0.5)]


def tracks_of(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path / DATABASE)) as connection:
        return connection.execute("SELECT camera, session, track, frames, mean_score FROM tracks").fetchall()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Store.open(tmp_path, SETTINGS), pytest.raises(StoreError, match="already in use"):
        Store.open(tmp_path, SETTINGS)
    Store.open(tmp_path, SETTINGS).close()


def test_a_folder_that_may_not_be_written_ends_with_its_name_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreAccessError, match=rf"{tmp_path}.*storage\.path") as refused:
        Store.open(tmp_path, SETTINGS)
    assert refused.value.exit_code == os.EX_NOPERM


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used as the store"):
        Store.open(tmp_path / "file" / "store", SETTINGS)
