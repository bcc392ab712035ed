"""How fast the whole pipeline is: flat out on a recording, and keeping up with a camera, each stage timed.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --quick --json

Flat out (`fps`): the frames of a simulated 1280x720 H.264 clip are decoded and taken to records as fast as they go, as
`barnsight replay` does, the encoder one frame ahead. In turn (`in_turn_fps`, `stages_ms`, `host_share`): the same, one
stage after the other; `host_share` is the part of its frame time that is spent outside the engines.
Live: the same clip loops at 12 fps on a real RTSP server, and the real daemon follows it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from machine import describe_machine
from numpy.typing import NDArray
from tracking import simulate

from barnsight_engines.backend import Backend
from barnsight_engines.loader import load_model_set
from barnsight_engines.spec import EngineSpec
from barnsightd.ingest.files import read_frames
from barnsightd.replay import CAMERA, follow, half_the_cores, make_pipeline

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
PEN = {"seed": 11, "species": "pig", "animals": 8, "seconds": 20, "fps": 12}
SETTLING_S = 8.0
NS_PER_MS = 1_000_000


class TimedBackend:
    """Adds up the time that one engine runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.spec: EngineSpec = backend.spec
        self.runtime = backend.runtime
        self.total_ns = 0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the engine and note how long it took."""
        started_ns = time.perf_counter_ns()
        outputs = self._backend.run(inputs)
        self.total_ns += time.perf_counter_ns() - started_ns
        return outputs

    def close(self) -> None:
        """Close the engine."""
        self._backend.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "engines" / "nano")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pipeline", help="the clip and the records")
    parser.add_argument("--quick", action="store_true", help="a shorter measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    pen = [part for key, value in PEN.items() for part in (f"--{key}", value)]
    clip = simulate(args.work / "pen", pen) / "clip.mp4"
    rounds = 1 if args.quick else 3
    figures = run_flat_out(clip, args.models, rounds) | run_in_turn(clip, args.models, rounds)
    figures |= run_live(clip, args.models, args.work / "live", seconds=12.0 if args.quick else 45.0)
    for name, value in figures.items():
        print(f"{name:<22} {value}")
    if args.json:
        print(json.dumps({"machine": describe_machine(), "simulated": True, **figures}))
    return 0


def run_flat_out(clip: Path, models: Path, rounds: int) -> dict[str, Any]:
    """Take the clip to records as fast as it goes; the median of the rounds."""
    rates: list[float] = []
    with load_model_set(models, threads=half_the_cores()) as model_set:
        for _ in range(rounds):
            started_ns = time.perf_counter_ns()
            frames = read_frames(clip, camera=CAMERA)
            count = sum(1 for _ in follow(model_set, str(PEN["species"]), frames))
            rates.append(count * 1e9 / (time.perf_counter_ns() - started_ns))
    return {"fps": round(statistics.median(rates), 2)}


def run_in_turn(clip: Path, models: Path, rounds: int) -> dict[str, Any]:
    """Take the clip to records stage by stage; medians over the frames of all rounds, the first ten left out."""
    stages_ns: dict[str, list[int]] = defaultdict(list)
    rates: list[float] = []
    shares: list[float] = []
    with load_model_set(models) as model_set:
        engines = {"encoder_engine": TimedBackend(model_set.encoder.backend)}
        engines["detector_engine"] = TimedBackend(model_set.detector.backend)
        model_set.encoder.backend = engines["encoder_engine"]
        model_set.detector.backend = engines["detector_engine"]
        for _ in range(rounds):
            pipeline = make_pipeline(model_set, str(PEN["species"]), float(str(PEN["fps"])))
            for engine in engines.values():
                engine.total_ns = 0
            count, started_ns = 0, time.perf_counter_ns()
            for frame in read_frames(clip, camera=CAMERA):
                before = {name: engine.total_ns for name, engine in engines.items()}
                result = pipeline.follow(pipeline.encode(frame))
                count += 1
                if result is None or count <= 10:
                    continue
                for stage, duration_ns in result.stage_ns.items():
                    stages_ns[stage].append(duration_ns)
                for name, engine in engines.items():
                    stages_ns[name].append(engine.total_ns - before[name])
            elapsed_ns = time.perf_counter_ns() - started_ns
            rates.append(count * 1e9 / elapsed_ns)
            shares.append(1 - sum(engine.total_ns for engine in engines.values()) / elapsed_ns)
    return {
        "in_turn_fps": round(statistics.median(rates), 2),
        "host_share": round(statistics.median(shares), 3),
        "stages_ms": {name: round(statistics.median(times) / NS_PER_MS, 2) for name, times in stages_ns.items()},
    }


def run_live(clip: Path, models: Path, work: Path, seconds: float) -> dict[str, Any]:
    """Follow the clip over RTSP with the daemon; figures of the time after the first seconds."""
    (work / "cameras.d").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        serve = [BIN / "barnsight-export", "serve", clip, "--port", "0", "--mount", "pen"]
        server = running.enter_context(child(serve, stdout=subprocess.PIPE, text=True))
        address = next(line.split()[1] for line in server.stdout if line.startswith("ready "))
        site = {"version": 1, "models": {"path": str(models.resolve())}}
        site["storage"] = {"path": str((work / "records").resolve()), "quota_gb": 1}
        site["web"] = {"port": 0}
        camera = {"version": 1, "name": "pen", "source": address, "species": PEN["species"], "fps": 60}
        (work / "barnsight.yaml").write_text(yaml.safe_dump(site))
        (work / "cameras.d" / "pen.yaml").write_text(yaml.safe_dump(camera))
        log = running.enter_context((work / "barnsight.log").open("w+"))
        daemon = [BIN / "barnsight", "run", "--config", work / "barnsight.yaml"]
        running.enter_context(child(daemon, stdout=log, stderr=log))
        url = wait_for_address(work / "barnsight.log")
        time.sleep(SETTLING_S)
        before = status_of(url)
        time.sleep(seconds)
        after = status_of(url)
    return {
        "live_fps": after["fps"],
        "frame_age_p95_ms": after["frame_age_p95_ms"],
        "dropped": after["dropped"] - before["dropped"],
    }


def wait_for_address(log: Path, deadline_s: float = 60.0) -> str:
    """Read the daemon's web address off its log."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if found := re.search(r"service up.*web=(http://[0-9.:]+)", line):
                return found[1]
        time.sleep(0.2)
    raise SystemExit(f"the daemon did not come up; see {log}")


def status_of(url: str) -> dict[str, Any]:
    """The camera's part of `/status`."""
    with urllib.request.urlopen(f"{url}/status", timeout=5.0) as answer:
        camera: dict[str, Any] = json.load(answer)["cameras"]["pen"]
    return camera


@contextlib.contextmanager
def child(command: list[Any], **options: Any) -> Any:
    """A child process that is gone afterwards."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
