"""The demonstration: a simulated pen streams over real RTSP, and the real daemon follows every animal in it.

    make demo                                     60 seconds of the simulated pen
    make demo DEMO_SECONDS=20                     shorter
    make demo SOURCE=rtsp://10.0.0.13/stream1     your own camera (or a video file)

Everything is left under `demo/`: configuration, records, log and an annotated picture. The address of the camera
comes through the environment and goes into a file only its owner can read, since it may hold a password.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TextIO

import yaml

from barnsightd.store.reader import read_observations

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demo"
MODELS = ROOT / "engines" / "nano"
BIN = Path(sys.executable).parent
CAMERA = "pen"
PEN = {"seed": 11, "species": "pig", "animals": 8, "seconds": 20, "fps": 12}
READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
SETTLING_S = 5.0

Command = list[str | Path]


def main() -> int:
    """Run the demonstration to its summary; the exit code is the daemon's, or 1 where it never got ready."""
    seconds = float(os.environ.get("DEMO_SECONDS") or 60)
    source = os.environ.get("SOURCE") or ""
    species = os.environ.get("SPECIES") or str(PEN["species"])
    FOLDER.mkdir(exist_ok=True)
    with contextlib.ExitStack() as running:
        if not source:
            source = serve(simulate(), running)
        elif "://" not in source and not source.startswith("${"):
            source = str(Path(source).resolve())  # the configuration counts paths from its own folder
        port = free_port()
        config = write_config(source, species, port)
        print("Starting the daemon …", flush=True)
        daemon = start_daemon(config, running)
        address = f"http://127.0.0.1:{port}"
        if not wait_until_ready(daemon, address):
            print(tail(FOLDER / "barnsight.log"), file=sys.stderr)
            print("The daemon did not get ready; the end of demo/barnsight.log is above.", file=sys.stderr)
            return 1
        print(f"Live: {address}/preview/{CAMERA}.jpg   metrics: {address}/metrics   stop: Ctrl-C", flush=True)
        settled, last = watch(daemon, address, seconds)
        picture = save_preview(address)
        code = stop(daemon)
    summarize(settled, last, picture, address)
    return code


def simulate() -> Path:
    """Render the simulated pen once; later demonstrations use the clip that is there."""
    out = FOLDER / "simulated-pen"
    made = out / "made.json"
    if made.exists() and json.loads(made.read_text()) == PEN:
        return out / "clip.mp4"
    print("Rendering a simulated pen, the first time only …", flush=True)
    options = [part for key, value in PEN.items() for part in (f"--{key}", str(value))]
    workers = str(os.cpu_count() or 1)
    simulate: Command = [BIN / "barnsight-export", "simulate", *options, "--split", "test", "--workers", workers]
    subprocess.run([*simulate, "--out", out], check=True)
    made.write_text(json.dumps(PEN))
    return out / "clip.mp4"


def serve(clip: Path, running: contextlib.ExitStack) -> str:
    """Loop the clip on an RTSP server of its own process; gives its address."""
    command: Command = [BIN / "barnsight-export", "serve", clip, "--port", "0", "--mount", CAMERA]
    server: subprocess.Popen[str] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    running.callback(end, server)
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready "):
            return str(line.split()[1])
    raise SystemExit("the RTSP server ended before it was ready")


def write_config(source: str, species: str, port: int) -> Path:
    """Write the site file and the one camera of the demonstration."""
    site = {
        "version": 1,
        "models": {"path": str(MODELS)},
        "storage": {"path": str(FOLDER / "records"), "quota_gb": 2},
        "web": {"port": port},
    }
    camera = {"version": 1, "name": CAMERA, "source": source, "species": species, "fps": PEN["fps"]}
    cameras = FOLDER / "cameras.d"
    cameras.mkdir(exist_ok=True)
    for path, content in ((FOLDER / "barnsight.yaml", site), (cameras / f"{CAMERA}.yaml", camera)):
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return FOLDER / "barnsight.yaml"


def start_daemon(config: Path, running: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Start `barnsight run`; its log goes to `demo/barnsight.log`."""
    log = running.enter_context((FOLDER / "barnsight.log").open("wb"))
    daemon = subprocess.Popen(
        [BIN / "barnsight", "run", "--config", config], stdout=log, stderr=log, start_new_session=True
    )
    running.callback(end, daemon)
    return daemon


def wait_until_ready(daemon: subprocess.Popen[bytes], address: str) -> bool:
    """Wait for `/readyz`, as long as the daemon lives and the deadline allows."""
    deadline = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < deadline and daemon.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            get(f"{address}/readyz")
            return True
        time.sleep(0.2)
    return False


def watch(daemon: subprocess.Popen[bytes], address: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Show the live line; gives the camera's status when it had settled and at the end."""
    started = time.monotonic()
    settled: dict[str, Any] = {}
    status: dict[str, Any] = {}
    with contextlib.suppress(KeyboardInterrupt):
        while (elapsed_s := time.monotonic() - started) < seconds and daemon.poll() is None:
            time.sleep(1.0)
            with contextlib.suppress(urllib.error.URLError, OSError):
                status = json.loads(get(f"{address}/status"))["cameras"][CAMERA]
            if not settled and elapsed_s >= SETTLING_S:
                settled = status
            show_live(elapsed_s, status, sys.stdout)
    print(flush=True)
    return settled, status


def show_live(elapsed_s: float, status: dict[str, Any], out: TextIO) -> None:
    """Write one live line, over the last one where the output is a terminal."""
    line = (
        f"{elapsed_s:5.0f} s  {status.get('state', '–'):<10}  {figure(status, 'fps'):>5} fps  "
        f"frame age p95 {figure(status, 'frame_age_p95_ms'):>6} ms  "
        f"{figure(status, 'animals'):>3} animals  {figure(status, 'dropped'):>3} dropped"
    )
    out.write(f"\r{line}\x1b[K" if out.isatty() else f"{line}\n")
    out.flush()


def save_preview(address: str) -> Path | None:
    """Keep the newest frame with its tracks drawn on it."""
    with contextlib.suppress(urllib.error.URLError, OSError):
        picture = FOLDER / "annotated.jpg"
        picture.write_bytes(get(f"{address}/preview/{CAMERA}.jpg"))
        return picture
    return None


def summarize(settled: dict[str, Any], last: dict[str, Any], picture: Path | None, address: str) -> None:
    """Print the summary table."""
    records = FOLDER / "records"
    kept = read_observations(records).num_rows
    dropped_later = last.get("dropped", 0) - settled.get("dropped", 0) if settled else "–"
    table = [
        ("frames", figure(last, "frames")),
        ("frames per second", figure(last, "fps")),
        ("frame age p50 / p95", f"{figure(last, 'frame_age_p50_ms')} / {figure(last, 'frame_age_p95_ms')} ms"),
        (f"dropped, after {SETTLING_S:.0f} s / in all", f"{dropped_later} / {figure(last, 'dropped')}"),
        ("animals in view at the end", figure(last, "animals")),
        ("records kept, of all demonstrations", f"{kept} observations"),
        ("annotated picture", relative(picture) if picture else "none: no frame was seen"),
        ("records", f"{relative(records)}, read them as docs/store.md shows"),
        ("log", relative(FOLDER / "barnsight.log")),
        ("metrics, while it ran", f"{address}/metrics"),
    ]
    width = max(len(name) for name, _ in table)
    print("\nSummary")
    for name, value in table:
        print(f"  {name:<{width}}  {value}")


def stop(daemon: subprocess.Popen[bytes]) -> int:
    """Ask the daemon to stop and give its exit code, or 1 where it hangs."""
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
    try:
        return daemon.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        return 1


def end(process: subprocess.Popen[Any]) -> None:
    """Make sure that a child is gone."""
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def get(url: str) -> bytes:
    """Fetch a page of the daemon."""
    with urllib.request.urlopen(url, timeout=5.0) as answer:
        content: bytes = answer.read()
    return content


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def figure(status: dict[str, Any], key: str) -> str:
    """Show a figure, or a dash where there is none yet."""
    value = status.get(key)
    return "–" if value is None else str(value)


def relative(path: Path) -> str:
    """Show a path as seen from the project's folder."""
    return str(path.relative_to(ROOT))


def tail(path: Path, lines: int = 20) -> str:
    """Give the end of a text file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(main())
