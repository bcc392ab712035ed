"""Every setting with its unit, range and default: the one place they are written down.

The field docstrings become the descriptions of `barnsight config schema` and of docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from barnsightd.config.address import SourceAddress


class Settings(BaseModel):
    """A frozen group of settings; unknown keys and wrong types are errors, nothing is coerced."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _check_polygon(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"must lie inside the image, 0 to 1, got the point [{x:g}, {y:g}]")
    if len(set(points)) != len(points):
        raise ValueError("names a point twice; a polygon closes by itself, remove the repeated point")
    edges = [(points[i], points[(i + 1) % len(points)]) for i in range(len(points))]
    for first, second in combinations(edges, 2):
        if not set(first) & set(second) and _cross(first, second):
            raise ValueError(f"crosses itself near {list(first[0])}; list the corners in order around the zone")
    if abs(_doubled_area(points)) < 1e-6:
        raise ValueError("encloses no area; give corners that are not on one line")
    return points


def _doubled_area(points: Sequence[tuple[float, float]]) -> float:
    """Twice the signed area (shoelace formula)."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True))


def _cross(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> bool:
    """Whether two segments share a point: each has the other's ends on both of its sides, or on itself."""
    sides = [_doubled_area((*line, point)) for line, points in ((first, second), (second, first)) for point in points]
    if all(side == 0 for side in sides):  # On one line: compare their extents.
        return all(
            max(min(p[axis] for p in first), min(p[axis] for p in second))
            <= min(max(p[axis] for p in first), max(p[axis] for p in second))
            for axis in (0, 1)
        )
    return sides[0] * sides[1] <= 0 and sides[2] * sides[3] <= 0


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    """A relative path is meant from the folder of the file that names it."""
    return Path(info.context["folder"]) / path if info.context else path


Point = Annotated[tuple[float, float], Field(strict=False)]
Zone = Annotated[tuple[Point, ...], Field(strict=False, min_length=3, max_length=64), AfterValidator(_check_polygon)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_beside_the_file)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ZoneName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Score = Annotated[float, Field(ge=0, le=1)]


class IngestConfig(Settings):
    """How a camera's stream is received and decoded."""

    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP transport; `tcp` loses no packets."""
    latency_ms: int = Field(default=100, ge=0, le=10_000)
    """Jitter buffer, milliseconds."""
    connect_s: float = Field(default=10, ge=1, le=120)
    """Seconds until a connection attempt without a frame is given up."""
    silence_s: float = Field(default=10, ge=1, le=600)
    """Seconds without a frame after which a playing stream counts as failed."""
    reconnect_min_s: float = Field(default=1, ge=0.1, le=60)
    """Seconds before the first reconnection attempt; doubles with each failure, with jitter."""
    reconnect_max_s: float = Field(default=60, ge=1, le=3600)
    """Longest pause between reconnection attempts, seconds."""
    decoder: Literal["auto", "software", "jetson"] = "auto"
    """Video decoder; `auto` takes the Jetson's hardware where it is installed."""


class TrackingConfig(Settings):
    """How animals are followed; scores left out come from the model set."""

    detect_every: int = Field(default=1, ge=1, le=30)
    """Detect on every n-th frame; in between animals are carried on by motion and memory."""
    memory: Literal["auto", "off", "lazy", "full"] = "auto"
    """Find hidden and missed animals by memory: `lazy` those that no detection explains, `full` all of them; \
`auto` is `lazy` where the model set has a tracker."""
    memory_slots: int | None = Field(default=None, ge=2, le=64)
    """Memories kept of each animal; as many as the tracker can use when left out."""
    memory_mb: int = Field(default=512, ge=1, le=16_000)
    """Most that the memory of one session may take, megabytes (10⁶ bytes); it is reserved at the session's start."""
    session_minutes: float = Field(default=60, ge=1, le=1440)
    """Minutes after which a session ends and tracks are numbered anew."""
    max_objects: int = Field(default=30, ge=1, le=200)
    """Most animals followed at once; bounds memory."""
    min_score: Score | None = None
    """Lowest detection score that counts, 0 to 1."""
    new_score: Score | None = None
    """Lowest detection score that may begin a track, 0 to 1."""


class CalibrationConfig(Settings):
    """What is known of the camera's geometry."""

    scale: FilePath | None = None
    """Homography file, relative to the camera's file."""


class CameraConfig(Settings):
    """One camera: `cameras.d/<name>.yaml`."""

    version: Literal[1]
    """Version of this file's format."""
    name: Name
    """Name of the camera, equal to the file's name: lower-case letters, digits, hyphens, at most 63."""
    source: SourceAddress
    """Where the video comes from: an RTSP address, a video file or a folder of pictures."""
    species: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    """What is looked for, as a concept of the model set, such as `pig` or `cow`."""
    roster: int | None = Field(default=None, ge=0, le=500)
    """Number of animals that live in view."""
    fps: float = Field(default=6, ge=1, le=60)
    """Most frames analyzed a second."""
    zones: dict[ZoneName, Zone] = Field(default_factory=dict, max_length=32)
    """Named polygons of [x, y] corners, as fractions of the image's width and height."""
    calibration: CalibrationConfig = CalibrationConfig()
    tracking: TrackingConfig = TrackingConfig()
    ingest: IngestConfig = IngestConfig()


class ModelsConfig(Settings):
    """Which networks run, and on what."""

    path: FilePath
    """Folder of the model set, which holds `manifest.json`; relative to this file."""
    runtime: Literal["auto", "onnxruntime", "tensorrt"] = "auto"
    """Inference runtime; `auto` takes the fastest that is installed and has engines."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """CPU threads of the networks; the number of cores when left out."""


class StorageConfig(Settings):
    """Where records go and how much room they may take."""

    path: FilePath = Path("/var/lib/barnsight")
    """Folder of the store."""
    flush_seconds: float = Field(default=2, ge=0.1, le=60)
    """At most this many seconds of records are lost at a power cut."""
    seal_minutes: float = Field(default=60, ge=1, le=1440)
    """Minutes after which records are sealed into Parquet."""
    quota_gb: float = Field(default=50, ge=0.01, le=1_000_000)
    """Most that the store may hold, gigabytes (10⁹ bytes); the oldest records go first."""
    reserve_gb: float = Field(default=2, ge=0, le=1_000_000)
    """Kept free on the disk, gigabytes."""
    masks_every_s: float = Field(default=1, ge=0, le=3600)
    """Seconds between stored masks of a camera; 0 stores those of every frame."""


class WebConfig(Settings):
    """Metrics and health over HTTP."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address to listen on; the default answers this machine alone."""
    port: int = Field(default=9108, ge=0, le=65535)
    """TCP port; 0 takes a free one."""


class LimitsConfig(Settings):
    """What the service may take of the machine."""

    memory_mb: int | None = Field(default=None, ge=256, le=1_000_000)
    """Memory that must be available at start, megabytes (10⁶ bytes); checked only when given."""


class SiteConfig(Settings):
    """The site: `barnsight.yaml`."""

    version: Literal[1]
    """Version of this file's format."""
    models: ModelsConfig
    storage: StorageConfig = StorageConfig()
    web: WebConfig = WebConfig()
    limits: LimitsConfig = LimitsConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important messages that are logged."""
