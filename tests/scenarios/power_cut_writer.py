"""Writes numbered observations of two cameras until it is killed, and prints each number that is durable.

    python power_cut_writer.py STORE RUN SEED

Prints "opening", "ready", then after each burst the number up to which everything is on disk. Five minutes of wall
clock lie between two numbers, so hours end, and segments are sealed, all the time.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.writer import Writer
from barnsightd.types import Observation, TrackSource, TrackState

CAMERAS = ("pen-1", "pen-2")
STEP_NS = 300 * 1_000_000_000
RUN_NS = 10_000 * STEP_NS
START_NS = 1_793_880_000_000_000_000
SETTINGS = StoreSettings(flush_seconds=0.1, reserve_bytes=0)


def seen(camera: str, run: int, number: int) -> Observation:
    """Make the observation of that number."""
    return Observation(
        camera=camera,
        captured_ns=START_NS + run * RUN_NS + number * STEP_NS,
        frame=number,
        session=run,
        track=1,
        animal=None,
        box_px=(1.0, 2.0, 3.0, 4.0),
        area_px=4.0,
        mask_rle=random.randbytes(200),
        mask_size=(720, 1280),
        score=0.5,
        state=TrackState.CONFIRMED,
        source=TrackSource.DETECTED,
        behavior=None,
        model_set="abc",
    )


def give_up(op: str, errno: int) -> None:
    """End at once: here the disk has no reason to refuse."""
    os._exit(errno)


def main(path: Path, run: int) -> None:
    """Write bursts of 1 to 40 numbers without end."""
    print("opening", flush=True)
    store = Store.open(path, SETTINGS)
    writer = Writer(store, on_error=give_up)
    writer.start()
    print("ready", flush=True)
    number = 0
    while True:
        for _ in range(random.randint(1, 40)):
            while not writer.submit(tuple(seen(camera, run, number) for camera in CAMERAS)):
                time.sleep(0.001)
            number += 1
        while store.usage().observations < number * len(CAMERAS):
            time.sleep(0.001)
        print(number - 1, flush=True)


if __name__ == "__main__":
    random.seed(sys.argv[3])
    main(Path(sys.argv[1]), int(sys.argv[2]))
