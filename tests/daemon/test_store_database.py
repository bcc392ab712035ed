"""The tables take every sealed file into account exactly once and survive an upgrade that fails."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import barnsightd.store.database as database
from barnsightd.errors import StoreDataError, StoreError
from barnsightd.store.database import Database
from barnsightd.store.layout import NS_PER_HOUR, RecordName

FIRST = RecordName("pen-3", hour=100, number=1)
SECOND = RecordName("pen-3", hour=101, number=2)


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def observed(session: int, track: int, captured_ns: list[int], score: float) -> pa.Table:
    count = len(captured_ns)
    return pa.table(
        {
            "session": [session] * count,
            "track": [track] * count,
            "captured_ns": captured_ns,
            "score": pa.array([score] * count, pa.float32()),
            "model_set": ["abc"] * count,
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "barnsight.sqlite3"


def test_a_track_over_two_hours_is_summed_and_the_same_file_counts_once(path: Path) -> None:
    tables = Database.open(path)
    tables.absorb(FIRST, observed(1, 5, [10, 20, 30], score=0.5))
    tables.absorb(FIRST, observed(1, 5, [10, 20, 30], score=0.5))
    tables.absorb(SECOND, observed(1, 5, [40], score=0.75))
    tables.close()
    assert rows(path, "SELECT * FROM tracks") == [("pen-3", 1, 5, 10, 40, 4, 0.5625)]


def test_a_session_known_only_from_observations_is_bounded_by_them(path: Path) -> None:
    tables = Database.open(path)
    tables.begin_session("pen-3", 1, 5, "abc")
    tables.absorb(FIRST, observed(1, 1, [10, 20], score=0.5))
    tables.absorb(SECOND, observed(2, 1, [30, 40], score=0.5))
    assert tables.last_sessions() == {"pen-3": 2}
    tables.close()
    assert rows(path, "SELECT session, started_ns, ended_ns, inferred FROM sessions") == [
        (1, 5, None, 0),
        (2, 30, 40, 1),
    ]


def test_a_session_ends_where_it_is_said_to_whatever_comes_after(path: Path) -> None:
    tables = Database.open(path)
    tables.begin_session("pen-3", 1, 10, "abc")
    tables.end_session("pen-3", 1, 20)
    tables.begin_session("pen-3", 2, 6000, "abc")
    tables.end_session("pen-3", 1, 7000)
    tables.close()
    assert rows(path, "SELECT session, ended_ns FROM sessions") == [(1, 20), (2, None)]


def test_a_session_that_nobody_ended_reaches_to_its_last_observation_and_over_no_outage(path: Path) -> None:
    tables = Database.open(path)
    tables.begin_session("pen-3", 1, 10, "abc")
    tables.absorb(FIRST, observed(1, 1, [20, 30], score=0.5))
    tables.begin_session("pen-3", 2, 6000, "abc")
    tables.end_left_open({("pen-3", 2): 6050})
    tables.absorb(SECOND, observed(1, 1, [40], score=0.5))
    tables.close()
    assert rows(path, "SELECT session, started_ns, ended_ns FROM sessions") == [(1, 10, 40), (2, 6000, 6050)]


def test_what_retention_deleted_is_forgotten_with_its_tracks(path: Path) -> None:
    tables = Database.open(path)
    hour_ns = FIRST.hour * NS_PER_HOUR
    tables.absorb(FIRST, observed(1, 1, [hour_ns], score=0.5))
    tables.absorb(SECOND, observed(2, 2, [hour_ns + NS_PER_HOUR], score=0.5))
    tables.forget(FIRST)
    assert tables.absorbed() == {SECOND.parquet.as_posix()}
    tables.close()
    assert rows(path, "SELECT track FROM tracks") == [(2,)]
    assert rows(path, "SELECT session FROM sessions") == [(2,)]


@pytest.mark.parametrize(
    ("hours", "gone", "kept"),
    [
        ([100, 101, 102], 1, [0, 1, 2]),  # taken from the middle: what is older is still there
        ([100, 100, 101], 0, [0, 1, 2]),  # one part of an hour: the tracks may be in the other
        ([100, 102, 104], 0, [1, 2]),
    ],
)
def test_a_track_is_forgotten_only_when_all_files_of_its_time_are_gone(
    path: Path, hours: list[int], gone: int, kept: list[int]
) -> None:
    tables = Database.open(path)
    names = [RecordName("pen-3", hour, number) for number, hour in enumerate(hours)]
    for number, name in enumerate(names):
        tables.absorb(name, observed(number, number, [name.hour * NS_PER_HOUR], score=0.5))
    tables.forget(names[gone])
    tables.close()
    assert rows(path, "SELECT track FROM tracks") == [(track,) for track in kept]
    assert rows(path, "SELECT session FROM sessions") == [(session,) for session in kept]


def test_a_configuration_is_kept_when_it_changed_and_only_the_newest_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "KEPT_CONFIGURATIONS", 2)
    tables = Database.open(path)
    for moment, config in enumerate(["a", "a", "b", "a", "c"]):
        tables.record_config(moment, config)
    tables.close()
    assert rows(path, "SELECT applied_ns, config FROM config_history") == [(3, "a"), (4, "c")]


def test_a_migration_leaves_a_backup_of_the_tables_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Database.open(path)
    tables.begin_session("pen-3", 1, 10, "abc")
    tables.close()
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN note TEXT;"))
    Database.open(path).close()

    assert rows(path, "SELECT session, note FROM sessions") == [(1, None)]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    backup = path.with_name("barnsight-v1.sqlite3")
    assert rows(backup, "SELECT session FROM sessions") == [(1,)]
    assert rows(backup, "PRAGMA user_version") == [(1,)]


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.open(path).close()
    broken = "ALTER TABLE sessions ADD COLUMN note TEXT; INSERT INTO nowhere VALUES (1);"
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, broken))
        with pytest.raises(StoreError, match="nowhere"):
            Database.open(path)
    assert rows(path, "PRAGMA user_version") == [(1,)]
    Database.open(path).close()


def test_tables_of_a_newer_version_are_refused_and_left_alone(path: Path) -> None:
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer Barnsight") as refused:
        Database.open(path)
    assert not isinstance(refused.value, StoreDataError)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_damage(path: Path) -> None:
    path.write_bytes(b"these are not the tables you are looking for" * 100)
    with pytest.raises(StoreDataError, match="db repair"):
        Database.open(path)
