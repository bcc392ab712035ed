"""The one file that chooses implementations, and the order in which they start and stop.

Start: admission, engines, store, writer, metrics, HTTP, inference, cameras, ready. Stop, each step with its deadline:
cameras, inference, sessions, writer (flush and fsync), HTTP, engines. Whatever fails on the way up takes down what
stood.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import structlog
from prometheus_client import CollectorRegistry

from barnsight_engines.errors import ModelSetMismatchError
from barnsight_engines.loader import ModelSet, load_model_set
from barnsightd import __version__
from barnsightd.config import CameraConfig, Config, StorageConfig, TrackingConfig, diff, load_config
from barnsightd.errors import BarnsightError, ConfigError
from barnsightd.ingest.camera import Camera
from barnsightd.ingest.slots import FrameSlots
from barnsightd.pipeline import CameraSettings, Pipeline
from barnsightd.publish.http import HttpServer
from barnsightd.publish.metrics import Metrics
from barnsightd.publish.status import StatusBoard
from barnsightd.runtime.budget import MemoryBudget, Pressure
from barnsightd.runtime.jetson import BoardCollector
from barnsightd.runtime.logs import configure_logs
from barnsightd.runtime.scheduler import Scheduler
from barnsightd.runtime.watchdog import Notifier, Progress, Watchdog
from barnsightd.store.records import Store, StoreSettings
from barnsightd.store.writer import Writer
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.tracking.propagation import MemoryPropagator
from barnsightd.types import Frame, FrameResult

NS_PER_S = 1_000_000_000
BYTES_PER_MB = 1_000_000
BYTES_PER_GB = 1_000_000_000
HOUSEKEEPING_S = 1.0
PROGRESS_LIMIT_S = 20.0
CAMERA_STOP_S = 5.0
INFERENCE_STOP_S = 10.0
WRITER_STOP_S = 15.0
HTTP_STOP_S = 2.0

log = structlog.get_logger(__name__)


def run_service(path: Path) -> int:
    """Run the service of the configuration file `path` until SIGTERM or SIGINT; SIGHUP reloads the cameras.

    Raises BarnsightError or EngineError where it cannot start, and where its engines fail for good.
    """
    config = load_config(path)
    configure_logs(config.site.log_level)
    cv2.setNumThreads(1)  # the networks' threads have the cores; OpenCV's pool would fight them for a resize
    for problem in config.warnings:
        log.warning("configuration", problem=str(problem))
    wake, requests = threading.Event(), set[str]()

    def ask(request: str, _number: int, _frame: Any) -> None:
        requests.add(request)
        wake.set()

    for number, request in ((signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")):
        signal.signal(number, functools.partial(ask, request))
    notifier = Notifier.from_environment()
    with Service(config, notifier) as service:
        notifier.ready(service.summary())
        while "stop" not in requests:
            if "reload" in requests:
                requests.discard("reload")
                notifier.reloading()
                service.reload(path)
                notifier.ready(service.summary())
            service.keep_house()
            wake.wait(HOUSEKEEPING_S)
            wake.clear()
        notifier.stopping()
    return 0


class Service:
    """Everything that runs, from the first thread to the last. A context manager: entered, it is up."""

    def __init__(self, config: Config, notifier: Notifier) -> None:
        self._config = config
        self._notifier = notifier
        self._started_ns = time.monotonic_ns()
        self._budget = MemoryBudget()
        self._pressure = Pressure.OK
        self._cameras: dict[str, Camera] = {}
        self._ready = False

    def __enter__(self) -> Service:
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Take everything down. Raises what ended a thread meanwhile, such as a last flush that failed."""
        self._undo.close()
        if error is None:
            self._raise_fatal()

    def _start(self, undo: contextlib.ExitStack) -> None:
        """Bring everything up; `undo` learns how to take each thing down, in the opposite order."""
        site, names = self._config.site, [camera.name for camera in self._config.cameras]
        if site.limits.memory_mb:
            self._budget.admit("the service (limits.memory_mb)", site.limits.memory_mb * 1_000_000)
        self._models = undo.enter_context(
            load_model_set(site.models.path, runtime=site.models.runtime, threads=site.models.threads)
        )
        settings = camera_settings(self._config, self._models)

        registry = CollectorRegistry()
        self._metrics = Metrics(registry, names, version=__version__)
        self._metrics.engines(self._models.manifest, self._models.runtime, self._models.parity)
        registry.register(BoardCollector())
        self._board = StatusBoard(names)

        self._http = HttpServer(
            site.web.host,
            site.web.port,
            registry,
            status=self.status,
            ready=lambda: (self._ready, "ready" if self._ready else "starting"),
            healthy=lambda: self._watchdog.healthy(),
            preview=self._board.preview,
        )
        undo.callback(stop_within, "http", self._http.stop, HTTP_STOP_S)

        store = Store.open(site.storage.path, store_settings(site.storage), model_set=self._models.hash)
        self._writer = Writer(store, on_error=self._metrics.store_error)
        undo.callback(stop_within, "writer", self._writer.stop, WRITER_STOP_S)
        self._writer.start()
        store.record_config(time.time_ns(), self._config.to_yaml())

        self._slots = FrameSlots()
        self._pipeline = Pipeline(
            self._models.encoder,
            self._models.detector,
            settings,
            tracker=self._models.tracker,
            model_set=self._models.hash,
            number_session=store.begin_session,
            session_ended=store.end_session,
            clock_ns=time.perf_counter_ns,
        )
        self._scheduler = Scheduler(
            self._slots, self._pipeline.encode, self._pipeline.follow, self._deliver, self._drop
        )
        self._watchdog = Watchdog(
            self._notifier,
            {
                "inference": Progress(lambda: self._scheduler.progress_monotonic_ns, PROGRESS_LIMIT_S),
                "writer": Progress(lambda: self._writer.progress_monotonic_ns, PROGRESS_LIMIT_S),
            },
        )
        undo.callback(self._pipeline.end_sessions)
        undo.callback(stop_within, "inference", self._scheduler.stop, INFERENCE_STOP_S)
        self._scheduler.start()
        undo.callback(self._slots.close)
        undo.callback(self._stop_cameras, self._cameras)
        for camera in self._config.cameras:
            self._start_camera(camera)
        undo.callback(stop_within, "watchdog", self._watchdog.stop, HTTP_STOP_S)
        self._watchdog.start()
        self._http.start()
        self._ready = True
        host, port = self._http.address
        log.info("service up", web=f"http://{host}:{port}", cameras=names, model_set=self._models.hash)

    def summary(self) -> str:
        """One line for `systemctl status`."""
        host, port = self._http.address
        return f"cameras: {len(self._cameras)}, model set {self._models.hash}, status at http://{host}:{port}/status"

    def status(self) -> dict[str, Any]:
        """What `/status` says."""
        now_ns = time.monotonic_ns()
        usage = self._writer.usage()
        cameras = {}
        for name, camera in list(self._cameras.items()):
            stream = camera.status
            cameras[name] = {
                "state": stream.state.value,
                **self._board.camera(name, now_ns),
                "stream_fps": round(stream.fps, 2),
                "dropped": self._slots.dropped(name),
                "reconnects": stream.reconnects,
                "last_error": stream.last_error,
            }
        return {
            "version": __version__,
            "uptime_s": round((now_ns - self._started_ns) / NS_PER_S, 1),
            "model_set": {"name": self._models.manifest.name, "hash": self._models.hash},
            "runtime": self._models.runtime,
            "memory_pressure": self._pressure.name.lower(),
            "cameras": cameras,
            "store": {
                "used_bytes": usage.used_bytes,
                "free_bytes": usage.free_bytes,
                "observations": usage.observations,
                "dropped": usage.dropped,
                "degraded": usage.degraded,
                "queue": self._writer.queue_length,
            },
        }

    def keep_house(self) -> None:
        """Refresh the figures that nobody pushes, and shed load where memory is short.

        Raises what ended the inference threads or the writer.
        """
        self._raise_fatal()
        self._metrics.queue("store", self._writer.queue_length)
        self._metrics.storage(self._writer.usage())
        pressure = self._budget.pressure()
        if pressure is not self._pressure:
            log.warning("memory pressure", before=self._pressure.name.lower(), now=pressure.name.lower())
            self._pressure = pressure
            self._pipeline.keeps_masks = pressure.keeps_masks
            self._scheduler.stride = pressure.frame_stride

    def _raise_fatal(self) -> None:
        for thread in (self._scheduler, self._writer):
            if thread.fatal:
                raise thread.fatal

    def reload(self, path: Path) -> None:
        """Apply what changed in the cameras' files; a file that is wrong changes nothing."""
        try:
            written = load_config(path)
            config = in_force(self._config, written)
            settings = camera_settings(config, self._models)
        except (BarnsightError, ModelSetMismatchError) as error:
            log.error("reload refused, everything goes on as it was", reason=str(error))
            return
        changes = diff(self._config, written)
        going = {name: self._cameras.pop(name) for name in (*changes.removed, *changes.changed)}
        self._stop_cameras(going)
        for name in going:
            self._metrics.down(name, "reload")
            self._end_session(name)
        names = [camera.name for camera in config.cameras]
        self._metrics.set_cameras(names)
        self._board.set_cameras(names)
        self._scheduler.between_frames(functools.partial(self._pipeline.set_cameras, settings))
        self._config = config
        for name in (*changes.added, *changes.changed):
            self._start_camera(config.camera(name))
        if changes.log_level:
            configure_logs(changes.log_level)
        self._writer.record_config(time.time_ns(), config.to_yaml())
        log.info("reloaded", applied=changes.applied, needs_restart=changes.needs_restart)

    def _start_camera(self, config: CameraConfig) -> None:
        listener = CameraEvents(self._metrics, self._end_session)
        self._cameras[config.name] = camera = Camera(config, self._slots, listener)
        camera.start()

    def _end_session(self, camera: str) -> None:
        """End the camera's session as of now; on the inference thread, so that no frame comes between."""
        until_ns = time.monotonic_ns()

        def end() -> None:
            self._pipeline.end_session(camera, until_ns)
            self._metrics.session_ended(camera)

        self._scheduler.between_frames(end)

    @staticmethod
    def _stop_cameras(cameras: dict[str, Camera]) -> None:
        """Stop the cameras side by side, so that one that hangs costs its own deadline only."""
        if not cameras:
            return
        with ThreadPoolExecutor(len(cameras), thread_name_prefix="camera-stop") as pool:
            for name, camera in cameras.items():
                pool.submit(stop_within, f"camera {name}", camera.stop, CAMERA_STOP_S)

    def _deliver(self, result: FrameResult) -> None:
        """Pass a finished frame on to the store and the figures; on the inference thread."""
        if not self._writer.submit(result.observations):
            self._metrics.observations_dropped(len(result.observations))
        done_ns = time.monotonic_ns()
        self._metrics.frame_done(result, (done_ns - result.frame.monotonic_ns) / NS_PER_S)
        self._board.frame_done(result, done_ns)

    def _drop(self, frame: Frame, reason: str) -> None:
        self._metrics.frame_dropped(frame.camera, reason)


class CameraEvents:
    """A camera's listener: every event is a figure, and the end of a connection ends the tracking session."""

    def __init__(self, metrics: Metrics, end_session: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._end_session = end_session

    def frame_decoded(self, camera: str) -> None:
        """See `CameraListener`."""
        self._metrics.frame_decoded(camera)

    def frame_dropped(self, camera: str, reason: str) -> None:
        """See `CameraListener`."""
        self._metrics.frame_dropped(camera, reason)

    def reconnecting(self, camera: str, reason: str, delay_s: float) -> None:
        """See `CameraListener`."""
        self._metrics.reconnecting(camera, reason, delay_s)

    def up(self, camera: str) -> None:
        """See `CameraListener`."""
        self._metrics.up(camera)

    def down(self, camera: str, reason: str) -> None:
        """See `CameraListener`; what comes after is another session, with numbers of its own."""
        self._metrics.down(camera, reason)
        self._end_session(camera)


def in_force(running: Config, written: Config) -> Config:
    """What a reload from `running` to `written` leaves in force: the rest of the site waits for a restart."""
    site = running.site.model_copy(update={"log_level": written.site.log_level})
    return replace(written, site=site)


def camera_settings(config: Config, models: ModelSet) -> dict[str, CameraSettings]:
    """What the pipeline needs of each camera.

    Raises ConfigError for a species that the model set does not know, and for a memory that it cannot give.
    """
    known = models.manifest.concepts.names
    for camera in config.cameras:
        if camera.species not in known:
            raise ConfigError(
                f"cameras.d/{camera.name}.yaml: species: model set {models.manifest.name!r} knows "
                f"{', '.join(known)}, got {camera.species!r}; choose one of them or another model set"
            )
    cut = models.manifest.thresholds.score
    settings = {
        camera.name: CameraSettings(
            species=camera.species,
            tracking=tracking_settings(camera.tracking, camera.fps, cut),
            session_ns=round(camera.tracking.session_minutes * 60 * NS_PER_S),
            masks_every_s=config.site.storage.masks_every_s,
            remembers=camera.tracking.memory != "off",
        )
        for camera in config.cameras
    }
    for camera in config.cameras:
        check_memory(camera, settings[camera.name].tracking, models)
    return settings


def check_memory(camera: CameraConfig, settings: TrackingSettings, models: ModelSet) -> None:
    """Raise ConfigError where the camera's sessions cannot have the memory that its file asks for."""
    config, where = camera.tracking, f"cameras.d/{camera.name}.yaml: tracking"
    if models.tracker is None:
        if config.memory in ("lazy", "full"):
            raise ConfigError(
                f"{where}.memory: model set {models.manifest.name!r} has no tracker, got {config.memory!r}; "
                "set it to auto or off, or choose a model set with a tracker"
            )
        return
    if config.memory == "off":
        return
    try:
        needed = MemoryPropagator(models.tracker, settings).size_bytes
    except ValueError as error:
        raise ConfigError(f"{where}.memory_slots: {error}") from error
    if needed > config.memory_mb * BYTES_PER_MB:
        raise ConfigError(
            f"{where}.memory_mb: the memory of {config.max_objects} animals takes {-(-needed // BYTES_PER_MB)} MB, "
            f"more than {config.memory_mb}; raise it, or lower max_objects or memory_slots"
        )


def tracking_settings(config: TrackingConfig, fps: float, cut: float) -> TrackingSettings:
    """The tracker's thresholds: the configured ones, else its own, scaled to a detector that is cut at `cut`."""
    usual = TrackingSettings(
        fps=fps,
        detect_every=config.detect_every,
        max_objects=config.max_objects,
        memory_slots=config.memory_slots,
        lazy=config.memory != "full",
    ).for_detector(cut)
    return replace(
        usual,
        min_score=usual.min_score if config.min_score is None else config.min_score,
        new_score=usual.new_score if config.new_score is None else config.new_score,
    )


def store_settings(config: StorageConfig) -> StoreSettings:
    """The store's limits in its own units."""
    return StoreSettings(
        flush_seconds=config.flush_seconds,
        seal_minutes=config.seal_minutes,
        quota_bytes=round(config.quota_gb * BYTES_PER_GB),
        reserve_bytes=round(config.reserve_gb * BYTES_PER_GB),
    )


def stop_within(what: str, stop: Callable[[float], bool], deadline_s: float) -> None:
    """Stop one part of the service; one that misses its deadline is left behind and named in the log."""
    try:
        if not stop(deadline_s):
            log.error("did not stop in time", what=what, deadline_s=deadline_s)
    except BarnsightError as error:
        log.error("stopped with an error", what=what, error=str(error))
