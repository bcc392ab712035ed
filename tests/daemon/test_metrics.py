"""What Prometheus reads: right names, zeros from the start, and figures that follow the cameras."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from barnsight_engines.certificate import Parity
from barnsightd.publish.metrics import Metrics
from barnsightd.publish.rate import WINDOW_NS, Rate
from barnsightd.runtime.jetson import BoardCollector
from barnsightd.store.records import StoreUsage
from barnsightd.types import Frame, FrameResult

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SUFFIXES = ("_total", "_seconds", "_bytes", "_info", "_celsius", "_watts", "_ratio", "_cosine")
COUNTS = (
    *("camera_up", "camera_fps", "tracks_active", "tracks_waiting"),
    *("queue_length", "store_degraded", "store_damaged_spans"),
)
FORBIDDEN_UNITS = re.compile(r"_(ms|milliseconds|mb|kb|percent|minutes)(_|$)")
FORBIDDEN_LABELS = {"animal", "track", "session", "url", "source"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, ["pen-1", "pen-2"], version="1.2.3")


def families(registry: CollectorRegistry) -> dict[str, Any]:
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def result(camera: str = "pen-1", tracks: int = 3, waiting: int = 0, **stages_ns: int) -> FrameResult:
    frame = Frame(camera, 0, 0, 0, np.zeros((4, 4, 3), np.uint8))
    return FrameResult(frame, (None,) * tracks, (None,) * tracks, stages_ns, waiting=waiting)  # type: ignore[arg-type]


def test_every_name_keeps_the_rules_of_prometheus(registry: CollectorRegistry, metrics: Metrics) -> None:
    own = {name: family for name, family in families(registry).items() if not name.startswith("process_")}
    assert len(own) > 15
    for name, family in own.items():
        assert name.startswith("barnsight_"), name
        assert not FORBIDDEN_UNITS.search(name), name
        assert family.documentation.endswith("."), name
        full = f"{name}_total" if family.type == "counter" else name
        assert full.endswith(SUFFIXES) or full.removeprefix("barnsight_") in COUNTS, full
        assert full.endswith("_total") == (family.type == "counter"), full
        for sample in family.samples:
            assert not FORBIDDEN_LABELS & set(sample.labels), name


def test_every_counter_is_there_as_zero_before_anything_happened(registry: CollectorRegistry, metrics: Metrics) -> None:
    counters = [family for family in families(registry).values() if family.type == "counter"]
    own = [family for family in counters if family.name.startswith("barnsight_")]
    assert all(family.samples for family in own)
    assert {s.value for family in own for s in family.samples if s.name.endswith("_total")} == {0.0}
    cameras = {s.labels["camera"] for s in families(registry)["barnsight_camera_frames_dropped"].samples}
    assert cameras == {"pen-1", "pen-2"}


def test_a_frame_is_followed_from_the_decoder_to_its_records(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.up("pen-1")
    metrics.frame_decoded("pen-1")
    metrics.frame_dropped("pen-1", "superseded")
    metrics.frame_done(result("pen-1", tracks=3, waiting=2, encoder=20_000_000, tracking=1_000_000), age_s=0.08)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("barnsight_camera_up", camera="pen-1") == 1
    assert value("barnsight_camera_frames_total", camera="pen-1", stage="decoded") == 1
    assert value("barnsight_camera_frames_total", camera="pen-1", stage="processed") == 1
    assert value("barnsight_camera_frames_dropped_total", camera="pen-1", reason="superseded") == 1
    assert value("barnsight_tracks_active", camera="pen-1") == 3
    assert value("barnsight_tracks_waiting", camera="pen-1") == 2
    assert value("barnsight_observations_total", camera="pen-1") == 3
    assert value("barnsight_frame_age_seconds_bucket", le="0.1") == 1
    assert value("barnsight_frame_age_seconds_bucket", le="0.075") == 0
    assert value("barnsight_stage_duration_seconds_sum", stage="encoder") == pytest.approx(0.02)
    assert value("barnsight_camera_last_frame_timestamp_seconds", camera="pen-1") > 1.6e9  # type: ignore[operator]

    metrics.down("pen-1", "silence")
    assert value("barnsight_camera_up", camera="pen-1") == 0
    assert value("barnsight_tracks_active", camera="pen-1") == 3
    metrics.session_ended("pen-1")
    assert value("barnsight_tracks_active", camera="pen-1") == 0
    assert value("barnsight_tracks_waiting", camera="pen-1") == 0


def test_reasons_that_nobody_foresaw_share_one_series(registry: CollectorRegistry, metrics: Metrics) -> None:
    before = len(list(registry.collect())), generate_latest(registry).count(b"\n")
    metrics.reconnecting("pen-1", "a text with 10.0.0.13 in it", 1.0)
    metrics.frame_dropped("pen-1", "never heard of")
    metrics.store_error("append", errno.ENOSPC)
    metrics.store_error("dance", 99999)
    assert (len(list(registry.collect())), generate_latest(registry).count(b"\n")) == before
    counted = registry.get_sample_value
    assert counted("barnsight_camera_reconnects_total", {"camera": "pen-1", "reason": "other"}) == 1
    assert counted("barnsight_store_errors_total", {"op": "append", "errno": "ENOSPC"}) == 1
    assert counted("barnsight_store_errors_total", {"op": "other", "errno": "other"}) == 1


def test_a_reload_brings_the_series_of_new_cameras_and_takes_those_of_old_ones(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.frame_decoded("pen-2")
    metrics.set_cameras(["pen-2", "pen-3"])
    text = generate_latest(registry).decode()
    assert 'camera="pen-1"' not in text
    assert 'camera="pen-3"' in text
    decoded = {"camera": "pen-2", "stage": "decoded"}
    assert registry.get_sample_value("barnsight_camera_frames_total", decoded) == 1


def test_what_still_comes_of_a_removed_camera_brings_no_series_back(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.set_cameras(["pen-2"])
    metrics.up("pen-1")
    metrics.frame_decoded("pen-1")
    metrics.frame_dropped("pen-1", "rate")
    metrics.reconnecting("pen-1", "eos", 1.0)
    metrics.down("pen-1", "eos")
    metrics.session_ended("pen-1")
    metrics.frame_done(result("pen-1"), age_s=0.1)
    assert 'camera="pen-1"' not in generate_latest(registry).decode()


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    rate, second_ns = Rate(), 1_000_000_000
    assert rate.per_second(0) == 0
    for event in range(21):
        rate.tick(event * second_ns // 10)
    assert rate.per_second(2 * second_ns) == pytest.approx(10)  # two seconds after its begin, not ten
    assert rate.per_second(8 * second_ns) == pytest.approx(2.5)
    assert rate.per_second(11 * second_ns) == pytest.approx(1.0)
    assert rate.per_second(2 * second_ns + WINDOW_NS) == 0


def test_the_store_and_the_engines_show_what_they_are(registry: CollectorRegistry, metrics: Metrics) -> None:
    usage = StoreUsage(
        used_bytes=5,
        quota_bytes=10,
        free_bytes=7,
        reserve_bytes=2,
        written_bytes=100,
        observations=9,
        dropped=3,
        damaged_spans=0,
        degraded=True,
    )
    metrics.storage(usage)
    metrics.storage(replace(usage, written_bytes=160, degraded=False))
    metrics.queue("store", 4)
    metrics.observations_dropped(2)
    encoder = SimpleNamespace(
        role="encoder",
        sha256="ab" * 32,
        precision="fp32",
        outputs=(SimpleNamespace(name="d4"), SimpleNamespace(name="d1")),
    )
    manifest: Any = SimpleNamespace(engines=(encoder,))
    metrics.engines(manifest, "onnxruntime", [Parity("d4", 0.9999, 0.0), Parity("d1", 0.9995, 0.0)])
    value = registry.get_sample_value
    assert value("barnsight_storage_free_bytes") == 7
    assert value("barnsight_queue_length", {"stage": "store"}) == 4
    assert value("barnsight_store_dropped_observations_total") == 5
    assert value("barnsight_storage_written_bytes_total") == 160
    assert value("barnsight_store_degraded") == 0
    assert value("barnsight_engine_parity_cosine", {"role": "encoder"}) == 0.9995
    labels = {"role": "encoder", "sha256": "ab" * 32, "precision": "fp32", "runtime": "onnxruntime"}
    assert value("barnsight_engine_info", labels) == 1


def known_series(registry: CollectorRegistry) -> set[str]:
    """Every series name that the daemon can export, those of the board's sensors included."""
    source = Path(BoardCollector.collect.__code__.co_filename).read_text()
    names = set(re.findall(r"barnsight_[a-z_]+", source)) - {"barnsight_nvmap"}
    for family in registry.collect():
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + suffix for suffix in kinds.get(family.type, ("",))}
    return names


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for group in yaml.safe_load((EXAMPLES / "barnsight-alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_dashboard_and_alerts_ask_only_for_series_that_exist(registry: CollectorRegistry, metrics: Metrics) -> None:
    known = known_series(registry)
    asked = {
        (title, name)
        for title, expr in expressions()
        for name in re.findall(r"\b(?:barnsight|process)_[a-z_]+\b", expr)
    }
    assert len(asked) > 15
    assert not {(title, name) for title, name in asked if name not in known}


def test_the_documentation_lists_every_metric(registry: CollectorRegistry, metrics: Metrics) -> None:
    documented = set(re.findall(r"`(barnsight_[a-z_]+)", (ROOT / "docs" / "metrics.md").read_text()))
    exported = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        for name in known_series(registry)
        if name.startswith("barnsight_")
    }
    assert documented == exported
