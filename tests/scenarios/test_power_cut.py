"""A writer killed twenty times at random moments: the store opens each time and holds all that was acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from barnsightd.store.reader import read_observations
from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.repair import check

KILLS = 20
CHILD = Path(__file__).with_name("power_cut_writer.py")
START_LIMIT_S = 60.0


def run_until_killed(store: Path, run: int, chance: random.Random) -> int:
    """Let the writer go and kill it at a random moment; return the last number that it acknowledged, or -1."""
    command = [sys.executable, str(CHILD), str(store), str(run), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        overdue = threading.Timer(START_LIMIT_S, child.kill)
        overdue.start()
        moment = "opening" if run % 5 == 4 else "ready"
        for line in child.stdout:
            if line.strip() == moment:
                break
        overdue.cancel()
        killer = threading.Timer(chance.uniform(0, 0.02 if moment == "opening" else 0.8), child.kill)
        killer.start()
        printed = [line.strip() for line in child.stdout]
        killer.join()
    assert child.returncode == -signal.SIGKILL
    acknowledged = [int(line) for line in printed if line.isdigit()]
    return acknowledged[-1] if acknowledged else -1


def numbers(store: Path, camera: str, run: int) -> list[int]:
    """Return the numbers that the store holds of one run of one camera."""
    observations = read_observations(store, camera=camera)
    pairs = zip(observations["session"].to_pylist(), observations["frame"].to_pylist(), strict=True)
    return [number for session, number in pairs if session == run]


@pytest.mark.slow
def test_no_acknowledged_observation_is_lost_and_none_is_doubled(tmp_path: Path) -> None:
    chance = random.Random(20)
    acknowledged = []
    for run in range(KILLS):
        acknowledged.append(run_until_killed(tmp_path, run, chance))
        assert check(tmp_path).ok
        for camera in ("pen-1", "pen-2"):
            kept = numbers(tmp_path, camera, run)
            assert kept == list(range(len(kept)))
            assert len(kept) > acknowledged[run]
    assert max(acknowledged) > 0

    before = read_observations(tmp_path)
    with Store.open(tmp_path, StoreSettings(reserve_bytes=0)) as store:
        store.seal_all()
    report = check(tmp_path)
    assert (report.findings, report.segments) == ((), 0)
    assert read_observations(tmp_path).equals(before)
    for run, last in enumerate(acknowledged):
        assert len(numbers(tmp_path, "pen-1", run)) > last
