"""How fast the store takes observations, what one costs on disk, and how often the disk can be waited for.

    python benchmarks/store.py                           # in a temporary folder
    python benchmarks/store.py --path /var/tmp --quick --json

A pen of twelve at 12 frames a second, a mask a second for each animal, flushed every two seconds of that time. Masks
are noise, which does not compress: real ones take less. The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from barnsightd.errors import StoreError
from barnsightd.store.reader import read_observations
from barnsightd.store.records import Store, StoreSettings
from barnsightd.types import Observation, TrackSource, TrackState

ANIMALS = 12
FPS = 12
FLUSH_FRAMES = 2 * FPS
MASK_BYTES = 180
NS_PER_S = 1_000_000_000
START_NS = 1_793_880_000 * NS_PER_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="make the store below this folder (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="one minute of a pen instead of ten")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=options.path) as folder:
            result = measure(Path(folder), minutes=1 if options.quick else 10)
    except StoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name, value in result.items():
        print(f"{name:32} {value}")
    if options.json:
        print(json.dumps(result))
    return 0


def measure(path: Path, *, minutes: int) -> dict[str, Any]:
    """Write, seal and read `minutes` of a pen as fast as it goes. Raises StoreError."""
    frames = make_frames(minutes * 60 * FPS)
    flushes_s = []
    with Store.open(path, StoreSettings(reserve_bytes=0)) as store:
        started_s = time.perf_counter()
        for index, frame in enumerate(frames, start=1):
            store.append(frame)
            if index % FLUSH_FRAMES == 0:
                before_s = time.perf_counter()
                store.flush()
                flushes_s.append(time.perf_counter() - before_s)
        written_s = time.perf_counter() - started_s
        written_bytes = store.usage().written_bytes
        started_s = time.perf_counter()
        store.seal_all()
        sealed_s = time.perf_counter() - started_s
        sealed_bytes = store.usage().used_bytes
    started_s = time.perf_counter()
    count = len(read_observations(path))
    read_s = time.perf_counter() - started_s
    return {
        "observations": count,
        "observations_per_s": round(count / written_s),
        "fsyncs_per_s": round(len(flushes_s) / sum(flushes_s), 1),
        "flush_p95_ms": round(float(np.percentile(flushes_s, 95)) * 1e3, 2),
        "segment_bytes_per_observation": round(written_bytes / count, 1),
        "sealed_bytes_per_observation": round(sealed_bytes / count, 1),
        "sealed_observations_per_s": round(count / sealed_s),
        "read_observations_per_s": round(count / read_s),
        "machine": describe_machine(),
    }


def make_frames(count: int) -> list[tuple[Observation, ...]]:
    """Let a pen of animals drift about; the same every time."""
    rng = np.random.default_rng(0)
    corners_px = rng.uniform((0, 0), (1100, 600), (ANIMALS, 2))
    frames = []
    for frame in range(count):
        corners_px += rng.normal(0, 1, corners_px.shape)
        masks = rng.integers(48, 112, (ANIMALS, MASK_BYTES), dtype=np.uint8)
        scores = rng.uniform(0.6, 1, ANIMALS)
        frames.append(
            tuple(
                Observation(
                    camera="pen-3",
                    captured_ns=START_NS + frame * NS_PER_S // FPS,
                    frame=frame,
                    session=1,
                    track=track,
                    animal=None,
                    box_px=(float(x), float(y), float(x) + 150, float(y) + 90),
                    area_px=9000.0,
                    mask_rle=masks[track].tobytes() if frame % FPS == 0 else b"",
                    mask_size=(720, 1280),
                    score=float(scores[track]),
                    state=TrackState.CONFIRMED,
                    source=TrackSource.DETECTED,
                    behavior=None,
                    model_set="0123456789ab",
                )
                for track, (x, y) in enumerate(corners_px)
            )
        )
    return frames


if __name__ == "__main__":
    sys.exit(main())
