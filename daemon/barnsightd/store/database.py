"""The SQLite file of a store: sessions, tracks, which files they were taken from, and configuration history.

Sessions and tracks can be rebuilt from the sealed observations; `absorb` takes one sealed file into account
exactly once, in daily work as in a rebuild. WAL with `synchronous=NORMAL`: a power cut may lose the newest commits
and never damages the file, and what is lost is absorbed again at the next start.
"""

from __future__ import annotations

import errno as errnos
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from barnsightd.errors import StoreDataError, StoreError
from barnsightd.store.files import StoreWriteError, fsync_folder
from barnsightd.store.layout import NS_PER_HOUR, RecordName, parquet_name

BUSY_TIMEOUT_S = 0.5
KEPT_CONFIGURATIONS = 1000
ABSORBED_COLUMNS = ["session", "track", "captured_ns", "score", "model_set"]

MIGRATIONS = (
    """
    CREATE TABLE sessions (
        camera TEXT NOT NULL, session INTEGER NOT NULL,
        started_ns INTEGER NOT NULL, ended_ns INTEGER,
        model_set TEXT NOT NULL,
        inferred INTEGER NOT NULL,  -- 1: known only from its observations, which also bound its times
        PRIMARY KEY (camera, session)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE tracks (
        camera TEXT NOT NULL, session INTEGER NOT NULL, track INTEGER NOT NULL,
        first_seen_ns INTEGER NOT NULL, last_seen_ns INTEGER NOT NULL,
        frames INTEGER NOT NULL, mean_score REAL NOT NULL,
        PRIMARY KEY (camera, session, track)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE sealed (path TEXT PRIMARY KEY, observations INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE config_history (
        applied_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, config TEXT NOT NULL
    ) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('created', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
    """,
)

END_AT_LAST_OBSERVATION = """
    UPDATE sessions SET ended_ns = max(started_ns, coalesce((
        SELECT max(last_seen_ns) FROM tracks
        WHERE tracks.camera = sessions.camera AND tracks.session = sessions.session
    ), started_ns))
    WHERE ended_ns IS NULL
"""

# SQLite reports these in words only; the names are those of the disk's own faults.
_ERRNO_OF_MESSAGE = {
    "database or disk is full": errnos.ENOSPC,
    "attempt to write a readonly database": errnos.EROFS,
    "unable to open database file": errnos.EACCES,
    "database is locked": errnos.EBUSY,
}


class Database:
    """An open database; used by one thread at a time. Methods raise StoreWriteError or StoreDataError."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open or create the file, check it, and bring it to this version's tables, with a backup of the old.

        Raises StoreDataError where it is damaged, StoreError where a newer Barnsight wrote it.
        """
        with _translated(path):
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise StoreDataError(f"{path}: {verdict}; `barnsight db repair` rebuilds it")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                _migrate(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    def last_sessions(self) -> dict[str, int]:
        """Return the highest session number of each camera."""
        with _translated(self._path):
            return dict(self._connection.execute("SELECT camera, max(session) FROM sessions GROUP BY camera"))

    def begin_session(self, camera: str, session: int, started_ns: int, model_set: str) -> None:
        """Note a session; an earlier one of the camera that is still open ends at its last observation."""
        with self._transaction() as connection:
            connection.execute(f"{END_AT_LAST_OBSERVATION} AND camera = ?", (camera,))
            connection.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, NULL, ?, 0)",
                (camera, session, started_ns, model_set),
            )

    def end_session(self, camera: str, session: int, ended_ns: int) -> None:
        """Note the end of a session, if it is open."""
        with self._transaction() as connection:
            connection.execute(
                """UPDATE sessions SET ended_ns = max(started_ns, ?)
                   WHERE camera = ? AND session = ? AND ended_ns IS NULL""",
                (ended_ns, camera, session),
            )

    def end_left_open(self, last_seen_ns: Mapping[tuple[str, int], int]) -> None:
        """End every open session at its last observation: in the tables, or in `last_seen_ns` by camera and session."""
        with self._transaction() as connection:
            connection.executemany(
                """UPDATE sessions SET ended_ns = max(started_ns, ?)
                   WHERE camera = ? AND session = ? AND ended_ns IS NULL""",
                ((seen_ns, camera, session) for (camera, session), seen_ns in last_seen_ns.items()),
            )
            connection.execute(END_AT_LAST_OBSERVATION)

    def record_config(self, applied_ns: int, config: str) -> None:
        """Keep a configuration unless it is the one kept last; only the newest thousand stay."""
        sha256 = hashlib.sha256(config.encode()).hexdigest()
        with self._transaction() as connection:
            last = connection.execute("SELECT sha256 FROM config_history ORDER BY rowid DESC LIMIT 1").fetchone()
            if last != (sha256,):
                connection.execute("INSERT INTO config_history VALUES (?, ?, ?)", (applied_ns, sha256, config))
                connection.execute(
                    "DELETE FROM config_history WHERE rowid <= (SELECT max(rowid) FROM config_history) - ?",
                    (KEPT_CONFIGURATIONS,),
                )

    def absorbed(self) -> set[str]:
        """Return the paths of the sealed files whose observations are in the tables."""
        with _translated(self._path):
            return {path for (path,) in self._connection.execute("SELECT path FROM sealed")}

    def absorb(self, name: RecordName, observations: pa.Table) -> None:
        """Take a sealed file's observations (`ABSORBED_COLUMNS`) into the tables, unless that was done before.

        A session that has ended reaches at least from its first to its last observation.
        """
        sessions = observations.group_by("session").aggregate(
            [("captured_ns", "min"), ("captured_ns", "max"), ("model_set", "min")]
        )
        tracks = observations.group_by(["session", "track"]).aggregate(
            [("captured_ns", "min"), ("captured_ns", "max"), ("track", "count"), ("score", "mean")]
        )
        with self._transaction() as connection:
            catalogued = connection.execute(
                "INSERT OR IGNORE INTO sealed VALUES (?, ?)", (name.parquet.as_posix(), len(observations))
            )
            if not catalogued.rowcount:
                return
            connection.executemany(
                """INSERT INTO sessions VALUES
                       (:camera, :session, :captured_ns_min, :captured_ns_max, :model_set_min, 1)
                   ON CONFLICT DO UPDATE SET
                       started_ns = min(started_ns, excluded.started_ns),
                       ended_ns = max(ended_ns, excluded.ended_ns)""",
                ({**row, "camera": name.camera} for row in sessions.to_pylist()),
            )
            connection.executemany(
                """INSERT INTO tracks VALUES
                       (:camera, :session, :track, :captured_ns_min, :captured_ns_max, :track_count, :score_mean)
                   ON CONFLICT DO UPDATE SET
                       first_seen_ns = min(first_seen_ns, excluded.first_seen_ns),
                       last_seen_ns = max(last_seen_ns, excluded.last_seen_ns),
                       mean_score = (mean_score * frames + excluded.mean_score * excluded.frames)
                                    / (frames + excluded.frames),
                       frames = frames + excluded.frames""",
                ({**row, "camera": name.camera} for row in tracks.to_pylist()),
            )

    def forget(self, name: RecordName) -> None:
        """Drop a deleted sealed file, and the camera's tracks and sessions that ended before all that is left of it."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM sealed WHERE path = ?", (name.parquet.as_posix(),))
            camera_folder = name.parquet.parent.parent.as_posix()
            (path,) = connection.execute(
                "SELECT min(path) FROM sealed WHERE path > ? || '/' AND path < ? || '0'", (camera_folder, camera_folder)
            ).fetchone()  # '0' follows '/', and paths sort by date and hour
            oldest = parquet_name(Path(path)) if path else None
            first_hour = min(name.hour + 1, oldest.hour) if oldest else name.hour + 1
            gone = (name.camera, first_hour * NS_PER_HOUR)
            connection.execute("DELETE FROM tracks WHERE camera = ? AND last_seen_ns < ?", gone)
            connection.execute("DELETE FROM sessions WHERE camera = ? AND ended_ns < ?", gone)

    def clear_derived(self) -> None:
        """Empty every table that can be rebuilt from sealed observations."""
        with self._transaction() as connection:
            for statement in ("DELETE FROM tracks", "DELETE FROM sealed", "DELETE FROM sessions WHERE inferred"):
                connection.execute(statement)

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Name SQLite's errors as the store does: the disk's faults apart from damage."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = _ERRNO_OF_MESSAGE.get(str(error), errnos.EIO)
        raise StoreWriteError("database", path, OSError(number, str(error))) from error
    except sqlite3.DatabaseError as error:
        raise StoreDataError(f"{path}: {error}; `barnsight db repair` rebuilds it") from error


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(MIGRATIONS):
        return
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer Barnsight (tables version {version}, this one knows {len(MIGRATIONS)}); "
            f"install that version again, or put its backup {_backup(path, len(MIGRATIONS)).name} in its place"
        )
    if version:
        _back_up(connection, _backup(path, version))
    steps = "".join(MIGRATIONS[version:])
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _backup(path: Path, version: int) -> Path:
    return path.with_name(f"{path.stem}-v{version}{path.suffix}")


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    connection.execute("VACUUM INTO ?", (str(temporary),))
    temporary.replace(target)
    fsync_folder(target.parent)
