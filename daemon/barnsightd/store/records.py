"""The records of a site: observations appended, sealed by the hour, kept within a quota, mended at every start.

What is appended is held in memory until the next flush, so a power cut loses at most `flush_seconds` of it. Every
fault of the disk leaves the store as it was: the operation is tried again a little later and reported until then.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import itertools
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from barnsightd.errors import StoreAccessError, StoreDataError, StoreError
from barnsightd.store.database import ABSORBED_COLUMNS, Database
from barnsightd.store.files import TEMPORARY, StoreWriteError, fsync_folder, make_folder, remove, writing
from barnsightd.store.layout import (
    DATABASE,
    LOCK,
    NS_PER_HOUR,
    NS_PER_S,
    OBSERVATIONS,
    QUARANTINE,
    SEGMENTS,
    RecordName,
    is_camera_name,
    parquet_files,
    parquet_name,
    segments,
)
from barnsightd.store.retention import Kind, evict, oldest_observations, oldest_quarantined
from barnsightd.store.schema import to_batch
from barnsightd.store.sealing import read_sealed, seal
from barnsightd.store.segments import Scan, Segment, scan
from barnsightd.types import Observation

FLUSH_AT_SHARE = 0.75
"""Part of `flush_seconds` after which a flush begins; the rest is left for the disk to finish it."""
FLUSH_AT_OBSERVATIONS = 4096
PENDING_OBSERVATIONS = 20_000
SEGMENT_BYTES = 4 * 2**20
"""Where a segment is closed: sealing holds up flushes, and one of this size is sealed well within `flush_seconds`."""
QUARANTINE_BYTES = 256 * 2**20
RETRY_NS = 2 * NS_PER_S
JOURNAL_ENTRIES = 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How often the store writes and how much room it may take."""

    flush_seconds: float = 2.0
    seal_minutes: float = 60.0
    quota_bytes: int = 50 * 10**9
    reserve_bytes: int = 2 * 10**9


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Bytes now, and counts since the store was opened.

    `used_bytes` and `quota_bytes` are those of the records, sealed or not. `dropped` counts observations that found
    no room, `damaged_spans` places in segments where records could not be read; `degraded` says that the disk refuses
    something now.
    """

    used_bytes: int
    quota_bytes: int
    free_bytes: int
    reserve_bytes: int
    written_bytes: int
    observations: int
    dropped: int
    damaged_spans: int
    degraded: bool


class Store:
    """The one writer of a store's folder.

    `append`, `maintain`, `flush` and `close` belong to one thread; `begin_session`, `end_session`, `record_config` and
    `usage` may be called from any and never wait for the disk.
    """

    def __init__(self, root: Path, settings: StoreSettings, lock: int, model_set: str) -> None:
        """Use `open`: it takes the lock and mends the folder first."""
        self._root = root
        self._settings = settings
        self._lock = lock
        self._model_set = model_set
        self._damaged = Kind(QUARANTINE_BYTES, True, lambda: oldest_quarantined(root))
        self._records = Kind(settings.quota_bytes, False, lambda: oldest_observations(root))
        self._pending: dict[tuple[str, int], list[Observation]] = {}  # by camera and hour
        self._pending_count = 0
        self._pending_since_ns: int | None = None
        self._open: dict[str, Segment] = {}
        self._to_seal: deque[RecordName] = deque()
        self._to_absorb: deque[RecordName] = deque()
        self._to_forget: deque[RecordName] = deque()
        self._database: Database | None = None  # while the disk refuses to open it
        self._sessions_lock = threading.Lock()
        self._last_session: dict[str, int] = {}
        self._journal: deque[Callable[[Database], None]] = deque(maxlen=JOURNAL_ENTRIES)
        self._retry_at_ns: dict[str, int] = {}
        self._written_bytes = self._observations = self._dropped = self._damaged_spans = 0
        self._clear_temporaries()
        self._measure()
        self._number_sessions()
        self._resume_segments()

    @classmethod
    def open(cls, path: Path, settings: StoreSettings | None = None, *, model_set: str = "") -> Store:
        """Open or create the store at `path` and mend what a power cut or a damaged disk left behind.

        A disk that is full does not hinder it: what it refuses now, `maintain` tries again. Raises StoreAccessError
        where the folder cannot be written, StoreError where it cannot be read, another process has it open or a newer
        Barnsight wrote it.
        """
        with _usable(path):
            lock = _take_lock(path)
            try:
                return cls(path, settings or StoreSettings(), lock, model_set)
            except BaseException:
                os.close(lock)
                raise

    def begin_session(self, camera: str, started_ns: int) -> int:
        """Return the number of a new session of `camera`; it is one more than the last, also across restarts.

        Raises StoreError where `camera` cannot name a folder.
        """
        if not is_camera_name(camera):
            raise StoreError(f"camera {camera!r}: a name is a-z, 0-9 and -, at most 63 characters; rename the camera")
        with self._sessions_lock:
            session = self._last_session[camera] = self._last_session.get(camera, 0) + 1
        entry = partial(
            Database.begin_session,
            camera=camera,
            session=session,
            started_ns=started_ns,
            model_set=self._model_set,
        )
        self._journal.append(entry)
        return session

    def end_session(self, camera: str, session: int, ended_ns: int) -> None:
        """Note when a session ended, by the wall clock; one that nobody ends reaches to its last observation."""
        self._journal.append(partial(Database.end_session, camera=camera, session=session, ended_ns=ended_ns))

    def record_config(self, applied_ns: int, config: str) -> None:
        """Keep a configuration, with its secrets masked by who calls, in the history."""
        self._journal.append(partial(Database.record_config, applied_ns=applied_ns, config=config))

    def append(self, observations: Sequence[Observation], now_ns: int | None = None) -> bool:
        """Hold a frame's observations until the next flush; False where the store is full and they are dropped.

        `now_ns` is monotonic.
        """
        if self.full:
            self._dropped += len(observations)
            return False
        if observations and self._pending_since_ns is None:
            self._pending_since_ns = time.monotonic_ns() if now_ns is None else now_ns
        for seen in observations:
            self._pending.setdefault((seen.camera, seen.captured_ns // NS_PER_HOUR), []).append(seen)
        self._pending_count += len(observations)
        return True

    @property
    def full(self) -> bool:
        """Whether so much waits for the disk that no more is taken."""
        return self._pending_count >= PENDING_OBSERVATIONS

    @property
    def degraded(self) -> bool:
        """Whether the disk refuses something now."""
        return bool(self._retry_at_ns)

    def maintain(self, now_ns: int | None = None) -> tuple[StoreWriteError, ...]:
        """Do what is due at `now_ns` (monotonic): make room, flush, seal, account; cheap where nothing is.

        Returns what the disk refused. None of it is lost: each operation is tried again after two seconds.
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        faults = []
        for operation in (
            self._make_room,
            self._flush_if_due,
            self._seal_one_if_due,
            self._write_journal,
            self._absorb_next,
            self._forget_one,
        ):
            name = operation.__name__
            if now_ns < self._retry_at_ns.get(name, now_ns):
                continue
            try:
                self._attempt(operation, now_ns)
                self._retry_at_ns.pop(name, None)
            except StoreWriteError as fault:
                self._retry_at_ns[name] = now_ns + RETRY_NS
                faults.append(fault)
        return tuple(faults)

    def flush(self, now_ns: int | None = None) -> None:
        """Make everything that was appended durable; raises StoreWriteError and keeps what it could not write."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        faults = []
        for (camera, hour), pending in list(self._pending.items()):
            try:
                self._require_room()
                written = self._segment_for(camera, hour, now_ns).append(to_batch(pending))
            except StoreWriteError as fault:
                faults.append(fault)
                continue
            del self._pending[camera, hour]
            self._pending_count -= len(pending)
            self._observations += len(pending)
            self._written_bytes += written
            self._records.used_bytes += written
        if faults:
            raise faults[0]
        self._pending_since_ns = None

    def seal_all(self) -> None:
        """Flush, and turn every segment into Parquet now; raises StoreWriteError."""
        self.flush()
        for camera in list(self._open):
            self._retire(camera)
        while self._to_seal:
            self._seal_next()
        while self._to_absorb:
            self._absorb_next()

    def rebuild(self, damaged: Sequence[Path] = ()) -> None:
        """Seal everything, set `damaged` files (relative to the store) aside, and make the tables anew.

        Raises StoreWriteError.
        """
        for path in damaged:
            if path == Path(DATABASE):
                self._drop_database(StoreDataError(f"{path}: found damaged"))
            elif (self._root / path).exists():
                self.set_aside(path)
        self.seal_all()
        self._tables().clear_derived()
        self._to_absorb = deque(sorted(parquet_files(self._root), key=lambda name: name.number))
        while self._to_absorb:
            self._absorb_next()

    def set_aside(self, path: Path) -> None:
        """Move a damaged file, given relative to the store, into quarantine; raises StoreWriteError."""
        source = self._root / path
        target = self._root / QUARANTINE / f"{time.time_ns()}-{path.as_posix().replace('/', '_')}"
        with writing("set aside", source):
            size = source.stat().st_size
            make_folder(target.parent)
            source.rename(target)
            fsync_folder(target.parent)
            fsync_folder(source.parent)
        self._damaged.used_bytes += size
        if path.parts[0] in (SEGMENTS, OBSERVATIONS):
            self._records.used_bytes -= size
        log.error("damaged file set aside", file=str(path), quarantine=str(target.relative_to(self._root)))

    def usage(self) -> StoreUsage:
        """Measure the store; a disk that is gone counts as one without room."""
        return StoreUsage(
            used_bytes=self._records.used_bytes,
            quota_bytes=self._records.quota_bytes,
            free_bytes=self._free_bytes(),
            reserve_bytes=self._settings.reserve_bytes,
            written_bytes=self._written_bytes,
            observations=self._observations,
            dropped=self._dropped,
            damaged_spans=self._damaged_spans,
            degraded=self.degraded,
        )

    def close(self) -> None:
        """Flush and let go of the folder, also where the flush fails; raises StoreWriteError for it.

        What the flush could not write counts as dropped. Open segments stay: the next start goes on with them.
        """
        try:
            self.flush()
            self._write_journal()
        finally:
            self._drop_pending()
            for segment in self._open.values():
                segment.close()
            if self._database is not None:
                self._database.close()
            os.close(self._lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What `maintain` does.

    def _attempt(self, operation: Callable[[int], None], now_ns: int) -> None:
        try:
            operation(now_ns)
        except StoreDataError as damage:
            self._drop_database(damage)

    def _flush_if_due(self, now_ns: int) -> None:
        if self._pending_since_ns is None:
            return
        due_ns = self._pending_since_ns + round(self._settings.flush_seconds * FLUSH_AT_SHARE * NS_PER_S)
        if now_ns >= due_ns or self._pending_count >= FLUSH_AT_OBSERVATIONS:
            self.flush(now_ns)

    def _seal_one_if_due(self, now_ns: int) -> None:
        # One flush of grace, so that the end of the hour comes first where both fall together.
        age_ns = round((self._settings.seal_minutes * 60 + self._settings.flush_seconds) * NS_PER_S)
        for camera, segment in list(self._open.items()):
            if now_ns - segment.opened_ns >= age_ns:
                self._retire(camera)
        if self._to_seal:
            with suppress(StoreWriteError):  # what waits goes first, for a seal takes long; refused, it stays due
                self.flush(now_ns)
            self._seal_next()

    def _write_journal(self, _now_ns: int = 0) -> None:
        while self._journal:
            self._journal[0](self._tables())
            self._journal.popleft()

    def _forget_one(self, _now_ns: int) -> None:
        tables = self._tables()  # opened late, they say what they lack and what they hold too much
        if self._to_forget:
            tables.forget(self._to_forget[0])
            self._to_forget.popleft()

    def _make_room(self, _now_ns: int) -> None:
        short_bytes = self._settings.reserve_bytes - self._free_bytes()
        for path in evict((self._damaged, self._records), short_bytes):
            relative = path.relative_to(self._root)
            log.warning("deleted to make room", file=str(relative))
            name = parquet_name(relative)
            if name is not None:
                self._to_forget.append(name)

    # Segments, from the first append to the sealed file.

    def _segment_for(self, camera: str, hour: int, now_ns: int) -> Segment:
        """Return the camera's open segment of that hour; one of another hour, or full, is retired."""
        segment = self._open.get(camera)
        if segment is not None and (segment.name.hour != hour or segment.durable_bytes >= SEGMENT_BYTES):
            self._retire(camera)
            segment = None
        if segment is None:
            name = RecordName(camera, hour, next(self._numbers))
            segment = self._open[camera] = Segment.create(self._root, name, now_ns)
        return segment

    def _retire(self, camera: str) -> None:
        segment = self._open.pop(camera)
        segment.close()
        self._to_seal.append(segment.name)

    def _seal_next(self) -> None:
        """Seal one segment and delete it; killed anywhere in between, the next start does the rest."""
        name = self._to_seal[0]
        self._to_seal.rotate(-1)  # one that cannot be sealed must not keep the others waiting
        segment = self._root / name.segment
        if not segment.exists():
            log.error("segment vanished before it was sealed", segment=str(name.segment))
            self._to_seal.remove(name)
            return
        with writing("seal", segment):
            try:
                data = segment.read_bytes()
            except OSError as cause:
                if cause.errno != errnos.EIO:
                    raise
                self.set_aside(name.segment)
                self._damaged_spans += 1
                self._to_seal.remove(name)
                return
            content = scan(data)
            if content.rows and not self._is_sealed(name, content.rows):
                self._records.used_bytes += seal(self._root, name, content)
            if content.damaged_spans:
                self._note_damage(name, content)
                self.set_aside(name.segment)
            else:
                remove(segment)
                self._records.used_bytes -= len(data)
        self._to_seal.remove(name)
        if content.rows:
            self._to_absorb.append(name)

    def _is_sealed(self, name: RecordName, rows: int) -> bool:
        """Whether an earlier attempt got as far as the Parquet file; a damaged one is set aside."""
        parquet = self._root / name.parquet
        if not parquet.exists():
            return False
        with suppress(pa.ArrowInvalid, OSError):
            if len(read_sealed(parquet)) == rows:
                fsync_folder(parquet.parent)
                return True
        self.set_aside(name.parquet)
        return False

    def _absorb_next(self, _now_ns: int = 0) -> None:
        tables = self._tables()  # opened late, they say what they lack
        if not self._to_absorb:
            return
        name = self._to_absorb[0]
        try:
            observations = read_sealed(self._root / name.parquet, ABSORBED_COLUMNS)
        except FileNotFoundError:  # evicted meanwhile
            pass
        except (pa.ArrowInvalid, OSError):
            self.set_aside(name.parquet)
        else:
            tables.absorb(name, observations)
        self._to_absorb.popleft()

    def _note_damage(self, name: RecordName, content: Scan) -> None:
        self._damaged_spans += content.damaged_spans
        log.error(
            "damaged records skipped",
            segment=str(name.segment),
            places=content.damaged_spans,
            bytes=content.damaged_bytes,
        )

    def _drop_pending(self) -> None:
        """Give up and count what was appended and not flushed."""
        if self._pending_count:
            log.error("observations lost: the last flush failed", count=self._pending_count)
        self._dropped += self._pending_count
        self._pending.clear()
        self._pending_count = 0

    def _require_room(self) -> None:
        """Refuse to write into the reserve, or past a quota that sealed files cannot make room in any more."""
        folder = self._root / SEGMENTS
        if self._free_bytes() <= self._settings.reserve_bytes:
            cause = OSError(errnos.ENOSPC, "the disk is down to the reserve kept free")
            raise StoreWriteError("flush", folder, cause)
        if self._records.used_bytes > self._records.quota_bytes:
            cause = OSError(errnos.EDQUOT, "the quota is used up by segments that cannot be sealed")
            raise StoreWriteError("flush", folder, cause)

    def _free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self._root).free
        except OSError:
            return 0

    # What a start finds.

    def _clear_temporaries(self) -> None:
        for path in self._root.glob(f"**/*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _measure(self) -> None:
        """List what is there: bytes per kind, and the first number that no file has yet."""
        numbers = [0]
        for name in segments(self._root):
            numbers.append(name.number)
            self._records.used_bytes += (self._root / name.segment).stat().st_size
        for name in parquet_files(self._root):
            numbers.append(name.number)
            self._records.used_bytes += (self._root / name.parquet).stat().st_size
        self._damaged.used_bytes = sum(path.stat().st_size for path in oldest_quarantined(self._root))
        self._numbers = itertools.count(max(numbers) + 1)

    def _tables(self) -> Database:
        """Return the tables, opened now if they are not; raises StoreWriteError."""
        if self._database is None:
            self._database = self._open_database()
        return self._database

    def _open_database(self) -> Database:
        """Open the tables, anew where they are damaged, and compare them with the sealed files."""
        path = self._root / DATABASE
        try:
            database = Database.open(path)
        except StoreDataError as damage:
            self._set_database_aside(damage)
            database = Database.open(path)
        sealed = {name.parquet.as_posix(): name for name in parquet_files(self._root)}
        try:
            absorbed = database.absorbed()
            last_sessions = database.last_sessions()
        except BaseException:
            database.close()
            raise
        vanished = (parquet_name(Path(path)) for path in absorbed - sealed.keys())
        missing = [name for path, name in sealed.items() if path not in absorbed]
        self._to_forget = deque(name for name in vanished if name is not None)
        self._to_absorb = deque(sorted(missing, key=lambda name: name.number))
        for camera, session in last_sessions.items():
            self._count_session(camera, session)
        return database

    def _drop_database(self, damage: StoreDataError) -> None:
        """Set the tables aside; whoever needs them next makes them anew."""
        if self._database is not None:
            self._database.close()
            self._database = None
        self._set_database_aside(damage)

    def _set_database_aside(self, damage: StoreDataError) -> None:
        log.error("tables damaged; they are rebuilt from the sealed observations", reason=str(damage))
        for suffix in ("", "-wal", "-shm"):
            if (self._root / (DATABASE + suffix)).exists():
                self.set_aside(Path(DATABASE + suffix))

    def _resume_segments(self) -> None:
        """Go on with the newest segment of each camera, its torn end cut off; the others are complete."""
        now_ns = time.monotonic_ns()
        last_seen_ns: dict[tuple[str, int], int] = {}
        for name in sorted(segments(self._root), key=lambda name: name.number, reverse=True):
            if name.camera in self._open or (self._root / name.parquet).exists():
                self._to_seal.appendleft(name)
                continue
            try:
                content = scan((self._root / name.segment).read_bytes())
                observations = content.table().group_by("session").aggregate([("captured_ns", "max")])
                for row in observations.to_pylist():
                    self._count_session(name.camera, row["session"])
                    session = (name.camera, row["session"])
                    last_seen_ns[session] = max(row["captured_ns_max"], last_seen_ns.get(session, 0))
                if not content.rows or content.damaged_spans:
                    self._to_seal.appendleft(name)
                    continue
                self._open[name.camera] = Segment.resume(self._root, name, content.sound_bytes, now_ns)
            except (OSError, StoreWriteError) as refused:
                log.error("segment cannot be resumed; it is sealed", segment=str(name.segment), error=str(refused))
                self._to_seal.appendleft(name)
                continue
            if content.torn_bytes:
                log.warning("unfinished record cut off", segment=str(name.segment), bytes=content.torn_bytes)
                self._records.used_bytes -= content.torn_bytes
        self._journal.append(partial(Database.end_left_open, last_seen_ns=last_seen_ns))

    def _number_sessions(self) -> None:
        """Find the last session of each camera: in the tables, or in the newest file that they lack."""
        try:
            self._tables()
            unknown = list(self._to_absorb)
        except StoreWriteError as fault:
            log.error("the tables cannot be opened; the store keeps trying", error=str(fault))
            unknown = sorted(parquet_files(self._root), key=lambda name: name.number)
        found = set()
        for name in reversed(unknown):
            if name.camera not in found:
                with suppress(pa.ArrowInvalid, OSError):
                    newest = pc.max(read_sealed(self._root / name.parquet, ["session"])["session"]).as_py()
                    self._count_session(name.camera, newest or 0)
                    found.add(name.camera)

    def _count_session(self, camera: str, session: int) -> None:
        with self._sessions_lock:
            self._last_session[camera] = max(session, self._last_session.get(camera, 0))


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the StoreError that says why `path` cannot be the store."""
    try:
        yield
    except OSError as cause:
        message = f"{path}: cannot be used as the store: {cause.strerror} ({cause.filename})"
        if cause.errno in (errnos.EACCES, errnos.EPERM, errnos.EROFS):
            advice = "let the service's user write there, or set storage.path to a folder where it may"
            raise StoreAccessError(f"{message}; {advice}") from cause
        raise StoreError(f"{message}; set storage.path to a folder on a working disk") from cause


def _take_lock(path: Path) -> int:
    """Create the folder if need be and return the descriptor of its lock, held until it is closed.

    Raises OSError, and StoreError where another process holds it.
    """
    make_folder(path)
    for entry in (path, *path.iterdir()):
        if not os.access(entry, os.W_OK):
            raise PermissionError(errnos.EACCES, "no permission to write", str(entry))
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        os.close(descriptor)
        raise StoreError(
            f"{path}: already in use by another process; stop it first (systemctl stop barnsight)"
        ) from cause
    return descriptor
