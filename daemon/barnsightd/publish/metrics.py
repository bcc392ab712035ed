"""The figures for Prometheus: what the cameras, the stages and the store did, zero from the first scrape on.

Names follow https://prometheus.io/docs/practices/naming/: prefix `barnsight_`, base units, `_total` on counters
only. Every set of labels is fixed when the cameras are known; a reason that is not foreseen is counted as `other`,
no label ever names a track or an animal, and what comes of a camera that was removed is not counted. So the number
of series depends on the configuration alone.
"""

from __future__ import annotations

import errno
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from barnsight_engines.certificate import Parity
from barnsight_engines.manifest import Manifest
from barnsightd.ingest.faults import DropReason, FaultReason
from barnsightd.publish.rate import Rate
from barnsightd.store.records import StoreUsage
from barnsightd.types import FrameResult, TrackletEnd

FRAME_STAGES = ("decoded", "processed")
OTHER = "other"
DROPS = (*get_args(DropReason), "failed", "shed", OTHER)
RECONNECTS = (*get_args(FaultReason), OTHER)
PIPELINE_STAGES = ("encoder", "detector", "tracking", "records")
QUEUES = ("store",)
STORE_OPERATIONS = ("append", "flush", "seal", "retention", "database", "set aside", OTHER)
ERRNOS = ("EACCES", "EDQUOT", "EIO", "ENOSPC", "EROFS", OTHER)
FRAME_AGE_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
NS_PER_S = 1_000_000_000


class Metrics:
    """Every figure of the daemon on one registry; the cameras' listener. Any thread may call any method."""

    def __init__(
        self,
        registry: CollectorRegistry,
        cameras: Sequence[str],
        *,
        version: str,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Register every metric with zeros for `cameras`; a registry takes one Metrics."""
        self._clock_ns = clock_ns
        self._rates: dict[str, Rate] = {}
        self._usage_counted = (0, 0)
        # Otherwise each counter gets a second series that nothing here reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)

        self.build_info = Gauge(
            "barnsight_build_info", "Version of the program, 1.", ["version", "python"], registry=registry
        )
        self.build_info.labels(version, platform.python_version()).set(1)

        self.camera_up = Gauge(
            "barnsight_camera_up", "1 while the camera delivers frames.", ["camera"], registry=registry
        )
        self.camera_frames = Counter(
            "barnsight_camera_frames_total",
            "Frames of a camera that passed a stage: decoded, or processed to records.",
            ["camera", "stage"],
            registry=registry,
        )
        self.camera_fps = Gauge(
            "barnsight_camera_fps",
            "Processed frames per second over the last ten seconds.",
            ["camera"],
            registry=registry,
        )
        self.camera_dropped = Counter(
            "barnsight_camera_frames_dropped_total",
            "Decoded frames that were not processed, by the reason why.",
            ["camera", "reason"],
            registry=registry,
        )
        self.camera_last_frame = Gauge(
            "barnsight_camera_last_frame_timestamp_seconds",
            "Unix time of the last decoded frame, 0 before the first.",
            ["camera"],
            registry=registry,
        )
        self.camera_reconnects = Counter(
            "barnsight_camera_reconnects_total",
            "Connections to a camera that were given up and tried again.",
            ["camera", "reason"],
            registry=registry,
        )
        self.tracks_active = Gauge(
            "barnsight_tracks_active", "Animals followed on the last frame.", ["camera"], registry=registry
        )
        self.tracks_waiting = Gauge(
            "barnsight_tracks_waiting",
            "Animals that the detector last saw and nobody follows: tracking.max_objects are followed already.",
            ["camera"],
            registry=registry,
        )
        self.session_memory = Gauge(
            "barnsight_session_memory_bytes",
            "What is reserved to remember the animals of the running session; 0 without a tracker.",
            ["camera"],
            registry=registry,
        )
        self.tracklets = Counter(
            "barnsight_tracklets_total",
            "Tracks of animals that ended, by the reason why.",
            ["camera", "end"],
            registry=registry,
        )
        self.observations = Counter(
            "barnsight_observations_total",
            "Observations handed to the store, one per animal and frame.",
            ["camera"],
            registry=registry,
        )

        self.frame_age = Histogram(
            "barnsight_frame_age_seconds",
            "Age of a frame when its records are made, since it arrived.",
            buckets=FRAME_AGE_BUCKETS_S,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "barnsight_stage_duration_seconds",
            "Time that a stage of the pipeline took for one frame.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self.queue_length = Gauge(
            "barnsight_queue_length", "Entries that wait for a stage.", ["stage"], registry=registry
        )

        self.storage_used = Gauge("barnsight_storage_used_bytes", "Bytes of all records on disk.", registry=registry)
        self.storage_quota = Gauge(
            "barnsight_storage_quota_bytes", "Bytes that the records may take.", registry=registry
        )
        self.storage_free = Gauge(
            "barnsight_storage_free_bytes", "Bytes free on the store's file system.", registry=registry
        )
        self.storage_reserve = Gauge(
            "barnsight_storage_reserve_bytes", "Bytes that the store leaves free.", registry=registry
        )
        self.storage_written = Counter(
            "barnsight_storage_written_bytes_total",
            "Bytes written to the store's file system: its wear.",
            registry=registry,
        )
        self.store_errors = Counter(
            "barnsight_store_errors_total",
            "Operations of the store that failed, by operation and error of the operating system.",
            ["op", "errno"],
            registry=registry,
        )
        self.store_dropped = Counter(
            "barnsight_store_dropped_observations_total",
            "Observations that were lost: the store's queue was full, or its disk had no room.",
            registry=registry,
        )
        self.store_degraded = Gauge(
            "barnsight_store_degraded", "1 while the disk refuses something.", registry=registry
        )
        self.store_damaged = Gauge(
            "barnsight_store_damaged_spans",
            "Places in the records that could not be read, found since the start.",
            registry=registry,
        )

        self.engine_info = Gauge(
            "barnsight_engine_info",
            "An engine that is loaded, 1.",
            ["role", "sha256", "precision", "runtime"],
            registry=registry,
        )
        self.engine_parity = Gauge(
            "barnsight_engine_parity_cosine",
            "Lowest cosine between an engine's outputs on the golden inputs and the expected ones, at start.",
            ["role"],
            registry=registry,
        )

        self._camera_gauges = (
            *(self.camera_up, self.camera_fps, self.camera_last_frame),
            *(self.tracks_active, self.tracks_waiting, self.session_memory),
        )
        for stage in PIPELINE_STAGES:
            self.stage_duration.labels(stage)
        for stage in QUEUES:
            self.queue_length.labels(stage)
        for operation in STORE_OPERATIONS:
            for name in ERRNOS:
                self.store_errors.labels(operation, name)
        self.set_cameras(cameras)

    def set_cameras(self, cameras: Sequence[str]) -> None:
        """Start the series of new cameras at zero and remove those of cameras that went away."""
        for camera in set(self._rates) - set(cameras):
            self._remove(camera)
        for camera in cameras:
            if camera not in self._rates:
                self._add(camera)

    def frame_decoded(self, camera: str) -> None:
        """Count a frame that came out of the decoder."""
        if camera in self._rates:
            self.camera_frames.labels(camera, "decoded").inc()
            self.camera_last_frame.labels(camera).set_to_current_time()

    def frame_dropped(self, camera: str, reason: str) -> None:
        """Count a decoded frame that goes no further."""
        if camera in self._rates:
            self.camera_dropped.labels(camera, _one_of(reason, DROPS)).inc()

    def reconnecting(self, camera: str, reason: str, delay_s: float) -> None:  # noqa: ARG002 - listener's form
        """Count a connection that failed and is tried again after `delay_s`."""
        if camera in self._rates:
            self.camera_reconnects.labels(camera, _one_of(reason, RECONNECTS)).inc()

    def up(self, camera: str) -> None:
        """Note that the camera delivers frames."""
        if camera in self._rates:
            self.camera_up.labels(camera).set(1)

    def down(self, camera: str, reason: str) -> None:  # noqa: ARG002 - listener's form
        """Note that the camera delivers no frames."""
        if camera in self._rates:
            self.camera_up.labels(camera).set(0)

    def session_ended(self, camera: str) -> None:
        """Note that nobody follows the camera's animals any more."""
        if camera in self._rates:
            for gauge in (self.tracks_active, self.tracks_waiting, self.session_memory):
                gauge.labels(camera).set(0)

    def frame_done(self, result: FrameResult, age_s: float) -> None:
        """Note a frame that went all the way to its records, `age_s` seconds after it arrived."""
        camera = result.frame.camera
        if rate := self._rates.get(camera):
            rate.tick(self._clock_ns())
            self.camera_frames.labels(camera, "processed").inc()
            self.tracks_active.labels(camera).set(len(result.tracks))
            self.tracks_waiting.labels(camera).set(result.waiting)
            self.observations.labels(camera).inc(len(result.observations))
            self.session_memory.labels(camera).set(result.session_bytes)
            for tracklet in result.tracklets:
                self.tracklets.labels(camera, tracklet.end.value).inc()
        self.frame_age.observe(age_s)
        for stage, duration_ns in result.stage_ns.items():
            self.stage_duration.labels(stage).observe(duration_ns / NS_PER_S)

    def queue(self, stage: str, length: int) -> None:
        """Show how many entries wait for `stage`."""
        self.queue_length.labels(stage).set(length)

    def storage(self, usage: StoreUsage) -> None:
        """Show what the store takes, what is left, and what it wrote and lost since it was opened."""
        self.storage_used.set(usage.used_bytes)
        self.storage_quota.set(usage.quota_bytes)
        self.storage_free.set(usage.free_bytes)
        self.storage_reserve.set(usage.reserve_bytes)
        self.store_degraded.set(usage.degraded)
        self.store_damaged.set(usage.damaged_spans)
        written, dropped = self._usage_counted
        self.storage_written.inc(usage.written_bytes - written)
        self.store_dropped.inc(usage.dropped - dropped)
        self._usage_counted = usage.written_bytes, usage.dropped

    def store_error(self, op: str, code: int) -> None:
        """Count a failed operation of the store by its errno."""
        name = _one_of(errno.errorcode.get(code, OTHER), ERRNOS)
        self.store_errors.labels(_one_of(op, STORE_OPERATIONS), name).inc()

    def observations_dropped(self, count: int) -> None:
        """Count observations that found the store's queue full."""
        self.store_dropped.inc(count)

    def engines(self, manifest: Manifest, runtime: str, parity: Iterable[Parity] = ()) -> None:
        """Show the engines that are loaded, and how near `runtime` came to the golden answers of each."""
        self.engine_info.clear()
        self.engine_parity.clear()
        cosines = {answer.output: answer.cosine for answer in parity}
        for engine in manifest.engines:
            self.engine_info.labels(engine.role, engine.sha256, engine.precision, runtime).set(1)
            measured = [cosines[output.name] for output in engine.outputs if output.name in cosines]
            if measured:
                self.engine_parity.labels(engine.role).set(min(measured))

    def _add(self, camera: str) -> None:
        rate = Rate()
        self.camera_fps.labels(camera).set_function(lambda: rate.per_second(self._clock_ns()))
        for gauge in self._camera_gauges:
            gauge.labels(camera)
        for end in TrackletEnd:
            self.tracklets.labels(camera, end.value)
        self.observations.labels(camera)
        for stage in FRAME_STAGES:
            self.camera_frames.labels(camera, stage)
        for reason in DROPS:
            self.camera_dropped.labels(camera, reason)
        for reason in RECONNECTS:
            self.camera_reconnects.labels(camera, reason)
        self._rates[camera] = rate

    def _remove(self, camera: str) -> None:
        del self._rates[camera]
        for gauge in self._camera_gauges:
            gauge.remove(camera)
        for end in TrackletEnd:
            self.tracklets.remove(camera, end.value)
        self.observations.remove(camera)
        for stage in FRAME_STAGES:
            self.camera_frames.remove(camera, stage)
        for reason in DROPS:
            self.camera_dropped.remove(camera, reason)
        for reason in RECONNECTS:
            self.camera_reconnects.remove(camera, reason)


def _one_of(value: str, allowed: Sequence[str]) -> str:
    """Keep the label set fixed: what is not foreseen is `other`."""
    return value if value in allowed else OTHER
