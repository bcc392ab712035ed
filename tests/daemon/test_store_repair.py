"""A check finds every kind of damage and changes nothing; a repair leaves a store that passes the check."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import barnsightd.store.layout as layout
import barnsightd.store.repair as store_repair
from barnsightd.errors import StoreError
from barnsightd.store.layout import DATABASE, NS_PER_HOUR, RecordName
from barnsightd.store.reader import read_observations
from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.repair import check, repair
from barnsightd.types import Observation, TrackSource, TrackState


def seen(frame: int, hour: int) -> Observation:
    return Observation(
        camera="pen-3",
        captured_ns=hour * NS_PER_HOUR + frame,
        frame=frame,
        session=1,
        track=1,
        animal=None,
        box_px=(1.0, 2.0, 3.0, 4.0),
        area_px=4.0,
        mask_rle=bytes(range(48, 110)),
        mask_size=(720, 1280),
        score=0.5,
        state=TrackState.CONFIRMED,
        source=TrackSource.DETECTED,
        behavior=None,
        model_set="abc",
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two sealed hours of one observation, and a segment with two records."""
    with Store.open(tmp_path, StoreSettings(reserve_bytes=0)) as opened:
        for frame in range(2):
            opened.append([seen(frame, hour=490_000 + frame)])
            opened.seal_all()
        for frame in (2, 3):
            opened.append([seen(frame, hour=490_002)])
            opened.flush()
    return tmp_path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def frames(path: Path) -> list[int]:
    return [int(frame) for frame in read_observations(path)["frame"].to_pylist()]


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    path.write_bytes(data)


def test_a_sound_store_passes_and_is_not_touched(store: Path) -> None:
    before = contents(store)
    report = check(store)
    assert report.exit_code == os.EX_OK
    assert (report.segments, report.sealed_files, report.observations, report.findings) == (1, 2, 4, ())
    assert contents(store) == before
    assert "4 observations" in str(report)
    assert json.loads(report.to_json())["ok"] is True


def test_a_running_service_does_not_keep_a_check_from_reading(store: Path) -> None:
    with Store.open(store, StoreSettings(reserve_bytes=0)) as running:
        running.begin_session("pen-3", 1)
        running.maintain()
        assert check(store).ok
        with pytest.raises(StoreError, match="already in use"):
            repair(store)


def test_what_a_running_service_seals_and_evicts_meanwhile_is_no_damage_and_counted_once(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Store.open(store, StoreSettings(reserve_bytes=0))
    running.append([replace(seen(4, hour=490_002), camera="pen-4")])
    running.flush()

    def sealed_after_the_first(root: Path) -> Iterator[RecordName]:
        first, *others = layout.segments(root)
        yield first
        running.seal_all()
        yield from others

    def oldest_evicted(root: Path) -> Iterator[RecordName]:
        names = sorted(layout.parquet_files(root), key=lambda name: name.number)
        (root / names[0].parquet).unlink()
        yield from names

    with monkeypatch.context() as patch:
        patch.setattr(store_repair, "segments", sealed_after_the_first)
        assert check(store).observations == 5
        patch.setattr(store_repair, "segments", layout.segments)
        patch.setattr(store_repair, "parquet_files", oldest_evicted)
        report = check(store)
    running.close()
    assert report.ok
    assert (report.segments, report.sealed_files, report.observations) == (0, 3, 4)


def test_an_unfinished_record_is_a_note_and_no_damage(store: Path) -> None:
    (segment,) = store.glob("segments/*/*.seg")
    segment.write_bytes(segment.read_bytes()[:-3])
    report = check(store)
    assert report.ok
    assert [finding.damage for finding in report.findings] == [False]
    assert repair(store).findings == ()
    assert frames(store) == [0, 1, 2]


def test_a_damaged_sealed_file_is_set_aside(store: Path) -> None:
    damaged = min(store.glob("observations/*/*/*.parquet"))
    flip(damaged, 0.1)
    report = check(store)
    assert report.exit_code == os.EX_DATAERR
    assert damaged.name in str(report)

    mended = repair(store)
    assert mended.ok
    assert [finding.file for finding in mended.repaired] == [damaged.relative_to(store).as_posix()]
    assert frames(store) == [1, 2, 3]


def test_a_damaged_segment_keeps_its_other_records(store: Path) -> None:
    (segment,) = store.glob("segments/*/*.seg")
    flip(segment, 0.25)
    assert check(store).exit_code == os.EX_DATAERR
    assert repair(store).ok
    assert frames(store) == [0, 1, 3]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_a_damaged_database_is_made_anew(store: Path, share: float) -> None:
    database = store / DATABASE
    data = bytearray(database.read_bytes())
    start = int(len(data) * share)
    data[start : start + 4096] = bytes([0xA5]) * 4096
    database.write_bytes(data)
    assert check(store).exit_code == os.EX_DATAERR
    assert repair(store).ok
    assert frames(store) == [0, 1, 2, 3]


def test_where_no_store_is_a_check_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here"):
        check(tmp_path)
