"""How long the engines take on one 1280 x 720 frame, and how much of it is spent outside of them.

    python benchmarks/engines.py                         # engines/nano, all cores
    python benchmarks/engines.py --threads 1 --quick --json

The host's part (resize, decoding, masks in the frame) is timed on one core with twelve animals; masks and run-length
codes are timed apart, since the daemon makes them only for what it stores. The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe_machine
from numpy.typing import NDArray

from barnsight_engines.detector import Detections, decode
from barnsight_engines.errors import EngineError
from barnsight_engines.loader import load_model_set
from barnsight_engines.masks import encode_rle, to_window
from barnsight_engines.preprocess import to_input
from barnsight_engines.scripted_backend import raw_outputs

FRAME_PX = (720, 1280)
ANIMALS = 12
NANO = Path(__file__).parents[1] / "engines" / "nano"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=NANO, help="the model set (default: engines/nano)")
    parser.add_argument("--threads", type=int, help="cores per run (default: all)")
    parser.add_argument("--quick", action="store_true", help="10 runs instead of 100")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    try:
        result = measure(options.models, options.threads, runs=10 if options.quick else 100)
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for stage, duration_ms in result["stages_ms"].items():
        print(f"{stage:22} {duration_ms:8.2f} ms")
    print(f"outside the engines    {result['host_ms']:8.2f} ms ({result['host_share']:.0%} of a frame)")
    print(f"on {result['machine']}")
    if options.json:
        print(json.dumps(result))
    return 0


def measure(models: Path, threads: int | None, *, runs: int) -> dict[str, Any]:
    """Median times over `runs` runs of each stage, in milliseconds. Raises EngineError."""
    cv2.setNumThreads(1)
    frame, pen = _frame(), _pen()
    started_ns = time.monotonic_ns()
    with load_model_set(models, threads=threads) as loaded:
        load_ms = (time.monotonic_ns() - started_ns) / 1e6
        manifest = loaded.manifest
        text = loaded.detector.concept(manifest.concepts.names[0])
        tensor = to_input(frame, manifest.image_size, manifest.normalization.mean, manifest.normalization.std)
        features = loaded.encoder.backend.run({"image": tensor})
        queries = manifest.engine("detector").outputs[0].shape[1] or ANIMALS
        outputs = raw_outputs(pen, queries)
        stages_ms = {
            "resize": _median_ms(
                lambda: to_input(frame, manifest.image_size, manifest.normalization.mean, manifest.normalization.std),
                runs,
            ),
            "encoder": _median_ms(lambda: loaded.encoder.backend.run({"image": tensor}), runs),
            "detector": _median_ms(lambda: loaded.detector.backend.run({**features, "text": text}), runs),
            "decode": _median_ms(lambda: decode(outputs, FRAME_PX, manifest.thresholds, 0.5), runs),
        }
    frame_ms = sum(stages_ms.values())
    host_ms = stages_ms["resize"] + stages_ms["decode"]
    windows = [to_window(logits, FRAME_PX) for logits in pen.mask_logits]
    return {
        "benchmark": "engines",
        "fps": round(1000 / frame_ms, 2),
        "host_ms": round(host_ms, 3),
        "host_share": round(host_ms / frame_ms, 4),
        "stages_ms": {stage: round(duration_ms, 3) for stage, duration_ms in stages_ms.items()},
        "records_ms": {
            "masks_in_frame": round(
                _median_ms(lambda: [to_window(logits, FRAME_PX) for logits in pen.mask_logits], runs), 3
            ),
            "run_lengths": round(
                _median_ms(lambda: [encode_rle(window, FRAME_PX, corner) for window, corner in windows], runs), 3
            ),
        },
        "load_ms": round(load_ms, 1),
        "model_set": f"{manifest.name}@{loaded.hash}",
        "animals": ANIMALS,
        "frame_px": list(FRAME_PX),
        "threads": threads,
        "runs": runs,
        "machine": describe_machine(),
    }


def _frame() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (*FRAME_PX, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).astype(np.uint8)


def _pen() -> Detections:
    """Twelve animals in three rows of four, each about 240 x 130 pixels of the frame."""
    rows, columns = np.mgrid[0:80, 0:80]
    centers = [(13 + 27 * row, 10 + 20 * column) for row in range(3) for column in range(4)]
    masks = [20 * (1 - ((rows - y) / 7.2) ** 2 - ((columns - x) / 7.5) ** 2) for y, x in centers]
    boxes = [[16 * (x - 7.5), 9 * (y - 7.2), 16 * (x + 7.5), 9 * (y + 7.2)] for y, x in centers]
    return Detections(
        boxes_px=np.array(boxes, np.float32),
        scores=np.linspace(0.95, 0.6, ANIMALS, dtype=np.float32),
        mask_logits=np.array(masks, np.float32),
        image_size=FRAME_PX,
    )


def _median_ms(step: Callable[[], object], runs: int) -> float:
    step()
    durations_ns = []
    for _ in range(runs):
        started_ns = time.perf_counter_ns()
        step()
        durations_ns.append(time.perf_counter_ns() - started_ns)
    return float(np.median(durations_ns)) / 1e6


if __name__ == "__main__":
    sys.exit(main())
