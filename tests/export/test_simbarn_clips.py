"""Clips of the simulated barn: a smooth life, truth files that agree with each other, and a camera that never ends."""

from __future__ import annotations

import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from barnsight_export.cli import main
from barnsight_export.datasets.mot import read_boxes, read_masks
from barnsight_export.simbarn.clip import clip_scene, write_clip
from barnsight_export.simbarn.ethogram import Behavior, Herd, State
from barnsight_export.simbarn.scene import Scene

TRUTH_FILES = ("gt.txt", "masks.jsonl", "truth.parquet", "scene.json")
FPS = 6


def tiny_scene(animals: int = 3) -> Scene:
    return clip_scene(7, species="pig", animals=animals, split="test", width=160, height=96)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(tiny_scene(), folder, seconds=2, fps=FPS, seed=1)
    return folder


@pytest.fixture(scope="module")
def life() -> list[tuple[State, ...]]:
    return list(Herd(tiny_scene(6), 2).states(30 * FPS, FPS))


def test_nothing_jumps(life: list[tuple[State, ...]]) -> None:
    for before, after in pairwise(life):
        for a, b in zip(before, after, strict=True):
            assert np.hypot(b.pose.x_m - a.pose.x_m, b.pose.y_m - a.pose.y_m) < 0.45
            assert abs(b.pose.heading_rad - a.pose.heading_rad) < 0.9
            assert abs(b.pose.upright - a.pose.upright) < 0.2


def test_animals_live(life: list[tuple[State, ...]]) -> None:
    seen = {state.behavior for states in life for state in states}
    assert {Behavior.WALKING, Behavior.STANDING} <= seen
    assert seen & {Behavior.LYING, Behavior.SLEEPING}


def test_behavior_agrees_with_posture_and_speed(life: list[tuple[State, ...]]) -> None:
    for states in life:
        for state in states:
            recumbent = state.behavior in (Behavior.LYING, Behavior.SLEEPING)
            assert recumbent == (state.pose.upright < 0.5)
            if state.behavior in (Behavior.WALKING, Behavior.RUNNING):
                assert state.speed_m_s >= 0.15


def test_upright_animals_do_not_pass_through_each_other() -> None:
    scene = tiny_scene(6)
    distances_m = []
    for states in list(Herd(scene, 5).states(30 * FPS, FPS))[FPS:]:
        up = [s.pose for s in states if s.pose.upright > 0.9]
        distances_m += [np.hypot(a.x_m - b.x_m, a.y_m - b.y_m) for i, a in enumerate(up) for b in up[:i]]
    assert len(distances_m) > 100
    assert min(distances_m) > 0.12 * scene.herd[0].length_m


def test_cattle_do_not_sit() -> None:
    scene = clip_scene(7, species="cow", animals=6, split="test", width=160, height=96)
    seen = {state.behavior for states in Herd(scene, 1).states(240 * FPS, FPS) for state in states}
    assert Behavior.WALKING in seen
    assert Behavior.SITTING not in seen


def test_boxes_masks_and_table_tell_the_same(clip: Path) -> None:
    boxes = {(m.frame, m.track): m for m in read_boxes(clip / "gt.txt")}
    masks = {(m.frame, m.track): m for m in read_masks(clip / "masks.jsonl")}
    assert boxes.keys() == masks.keys()
    for key, box in boxes.items():
        left, top, width, height = coco.toBbox(masks[key].shape).tolist()
        assert box.shape == [left + 1, top + 1, width, height]
        assert box.ignored == masks[key].ignored
    table = pq.read_table(clip / "truth.parquet").to_pylist()
    assert len(table) == 2 * FPS * 3
    for row in table:
        key = (row["frame"], row["track"])
        assert (row["width_px"] > 0) == (key in boxes)
        assert row["animal"] == f"pig-{row['track']:03d}"
        assert row["behavior"] in {b.value for b in Behavior}


def test_masks_of_a_frame_are_disjoint(clip: Path) -> None:
    frames: dict[int, list[Any]] = {}
    for mark in read_masks(clip / "masks.jsonl"):
        frames.setdefault(mark.frame, []).append(mark.shape)
    for shapes in frames.values():
        assert coco.area(coco.merge(shapes)) == sum(coco.area(shape) for shape in shapes)


def test_the_clip_has_the_frames_and_the_rate_of_its_truth(clip: Path) -> None:
    video = cv2.VideoCapture(str(clip / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2 * FPS
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS)
    ok, frame = video.read()
    assert ok
    assert frame.shape == (96, 160, 3)
    scene = json.loads((clip / "scene.json").read_text())
    assert scene["simulated"] is True
    assert scene["frames"] == 2 * FPS
    assert all(0 <= v <= 1 for polygon in scene["zones"].values() for point in polygon for v in point)


def test_the_same_seed_gives_the_same_bytes_of_truth_with_any_number_of_workers(clip: Path, tmp_path: Path) -> None:
    write_clip(tiny_scene(), tmp_path, seconds=2, fps=FPS, seed=1, workers=2)
    for name in TRUTH_FILES:
        assert (tmp_path / name).read_bytes() == (clip / name).read_bytes(), name


def test_the_command_refuses_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--out", "x", "--fps", "0"]) == 64
    assert "--fps must be 1 to 60, got 0" in capsys.readouterr().err
    assert main(["simulate", "--out", "x", "--width", "321"]) == 64
    assert "321x720" in capsys.readouterr().err
    assert main(["simulate", "--out", "x", "--pictures", "val", "--view", "aisle"]) == 64
    assert "--view is of a clip" in capsys.readouterr().err
    assert main(["simulate", "--out", "x", "--sequences", "val", "--species", "cow"]) == 64
    assert "--species is of a clip" in capsys.readouterr().err
    assert main(["simulate", "--out", "x", "--herd-seed", "-1"]) == 64
    assert "--herd-seed must be 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:DynamicImporter:ImportWarning")
class TestServing:
    """The clip as an RTSP camera."""

    @pytest.fixture
    def stream(self) -> object:
        pytest.importorskip("gi")
        try:
            from barnsight_export.simbarn import stream
        except ValueError as error:  # a GStreamer namespace is not installed
            pytest.skip(str(error))
        return stream

    def frames_of(self, stream: object, url: str, count: int, **properties: str) -> list[int]:
        """Presentation times in ns of the first frames that a client gets; fewer when it is refused."""
        gst = stream.Gst  # type: ignore[attr-defined]
        pipeline = gst.parse_launch(
            "rtspsrc name=camera protocols=tcp latency=50 ! rtph264depay ! avdec_h264 ! appsink name=sink sync=false"
        )
        for name, value in {"location": url, **properties}.items():
            pipeline.get_by_name("camera").set_property(name, value)
        pipeline.set_state(gst.State.PLAYING)
        sink, times = pipeline.get_by_name("sink"), []
        deadline = time.monotonic() + 30
        try:
            while len(times) < count:
                sample = sink.emit("try-pull-sample", gst.SECOND)
                if sample is not None:
                    times.append(sample.get_buffer().pts)
                elif pipeline.get_bus().pop_filtered(gst.MessageType.ERROR) or time.monotonic() > deadline:
                    break
        finally:
            pipeline.set_state(gst.State.NULL)
        return times

    def test_a_clip_goes_on_over_its_end_at_a_steady_rate(self, stream: object, clip: Path) -> None:
        server = stream.ClipServer({"pen": clip / "clip.mp4"}, port=0)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            times = self.frames_of(stream, server.url("pen"), 2 * FPS + 6)  # two seconds of clip, three of stream
        finally:
            server.stop()
            thread.join(10)
        assert len(times) == 2 * FPS + 6
        gaps_s = np.diff(times) / 1e9
        assert np.abs(gaps_s - 1 / FPS).max() < 0.05

    def test_a_guarded_clip_asks_for_the_password(self, stream: object, clip: Path) -> None:
        secret = stream.Credentials("barn", "hay-and-oats")  # type: ignore[attr-defined]
        assert "hay" not in repr(secret)
        server = stream.ClipServer({"pen": clip / "clip.mp4"}, port=0, credentials=secret)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            refused = self.frames_of(stream, server.url("pen"), 1)
            known = {"user-id": "barn", "user-pw": "hay-and-oats"}
            welcome = self.frames_of(stream, server.url("pen"), 1, **known)
        finally:
            server.stop()
            thread.join(10)
        assert (len(refused), len(welcome)) == (0, 1)

    def test_a_file_that_is_no_clip_is_named(self, stream: object, tmp_path: Path) -> None:
        from barnsight_export.errors import DataError, DataMissingError

        with pytest.raises(DataMissingError, match=r"none\.mp4"):
            stream.read_units(tmp_path / "none.mp4")  # type: ignore[attr-defined]
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"not a clip")
        with pytest.raises(DataError, match=r"bad\.mp4"):
            stream.read_units(bad)  # type: ignore[attr-defined]
