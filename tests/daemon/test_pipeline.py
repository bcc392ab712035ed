"""A frame goes in, tracks and records come out: sessions, masks, settings, stage times."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.detector import Detections
from barnsight_engines.masks import decode_rle
from barnsight_engines.propagator import MemoryTracker
from barnsight_engines.scripted_backend import painted, scripted_tracker
from barnsightd.pipeline import CameraSettings, Pipeline
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.types import Frame, FrameResult, TrackletEnd

S = 1_000_000_000
HEIGHT_PX, WIDTH_PX, GRID = 160, 160, 20
SETTINGS = CameraSettings("pig", TrackingSettings(fps=5.0), session_ns=60 * S, masks_every_s=1.0)


class OnePig:
    """Stands for both engines: a pig of 40 x 30 pixels that walks right, 4 pixels a frame."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float | None]] = []
        self.ended: list[tuple[str, int, int]] = []  # camera, number and last frame of sessions that are over

    def encode(self, image: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        return painted(np.ones((GRID, GRID), np.float32))

    def detect(
        self,
        features: Mapping[str, NDArray[np.float32]],
        image_size: tuple[int, int],
        concept: str,
        *,
        min_score: float | None,
    ) -> Detections:
        x0 = 4 * len(self.asked)
        self.asked.append((concept, min_score))
        mask_logits = np.full((1, 4 * GRID, 4 * GRID), -5, np.float32)
        mask_logits[0, 10:25, x0 // 2 : x0 // 2 + 20] = 5
        boxes_px = np.array([[x0, 20, x0 + 40, 50]], np.float32)
        return Detections(boxes_px, np.array([0.95], np.float32), mask_logits, image_size)


def make_pipeline(settings: CameraSettings = SETTINGS, tracker: MemoryTracker | None = None) -> tuple[Pipeline, OnePig]:
    pig, numbers, ticks = OnePig(), itertools.count(1), itertools.count(0, 5)
    pipeline = Pipeline(
        pig,
        pig,
        {"pen": settings},
        tracker=tracker,
        model_set="abc",
        number_session=lambda camera, started_ns: next(numbers),
        session_ended=lambda *session: pig.ended.append(session),
        clock_ns=lambda: next(ticks),
    )
    return pipeline, pig


def make_frame(index: int, at_s: float) -> Frame:
    image = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    return Frame(
        "pen", index, captured_ns=1_700_000_000 * S + round(at_s * S), monotonic_ns=round(at_s * S), image=image
    )


def step(pipeline: Pipeline, frame: Frame) -> FrameResult:
    result = pipeline.follow(pipeline.encode(frame))
    assert result is not None
    return result


def test_a_pig_that_walks_is_recorded_under_one_number() -> None:
    pipeline, pig = make_pipeline()
    results = [step(pipeline, make_frame(i, i / 5)) for i in range(5)]
    seen = [observation for result in results for observation in result.observations]
    assert [(s.frame, s.track, s.session) for s in seen] == [(i, 1, 1) for i in range(5)]
    assert seen[3].box_px == (12.0, 20.0, 52.0, 50.0)
    assert seen[3].captured_ns == 1_700_000_000 * S + 600_000_000
    assert seen[3].model_set == "abc"
    assert pig.asked == [("pig", 0.3)] * 5


def test_masks_are_kept_once_a_second_and_areas_always() -> None:
    pipeline, _ = make_pipeline()
    seen = [step(pipeline, make_frame(i, i / 5)).observations[0] for i in range(7)]
    assert [bool(s.mask_rle) for s in seen] == [True, False, False, False, False, True, False]
    mask = decode_rle(seen[0].mask_rle, seen[0].mask_size)
    assert mask.shape == (HEIGHT_PX, WIDTH_PX)
    assert seen[0].area_px == mask.sum() == 40 * 30
    assert seen[1].area_px == 40 * 30


def test_masks_are_shed_on_request() -> None:
    pipeline, _ = make_pipeline()
    pipeline.keeps_masks = False
    assert step(pipeline, make_frame(0, 0.0)).observations[0].mask_rle == b""


def test_a_session_that_is_over_is_followed_by_an_empty_one() -> None:
    pipeline, _ = make_pipeline(replace(SETTINGS, session_ns=1 * S))
    seen = [step(pipeline, make_frame(i, i / 5)).observations[0] for i in range(8)]
    assert [s.session for s in seen] == [1] * 5 + [2] * 3
    assert {s.track for s in seen} == {1}


def test_a_session_that_is_ended_is_followed_by_another_one() -> None:
    pipeline, _ = make_pipeline()
    assert step(pipeline, make_frame(0, 0.0)).observations[0].session == 1
    pipeline.end_session("pen", until_ns=0)
    assert step(pipeline, make_frame(1, 0.2)).observations[0].session == 2


def test_a_frame_that_was_on_its_way_when_its_session_ended_opens_no_other() -> None:
    pipeline, _ = make_pipeline()
    step(pipeline, make_frame(0, 0.0))
    late = pipeline.encode(make_frame(1, 0.2))
    pipeline.end_session("pen", until_ns=round(0.2 * S))
    assert pipeline.follow(late) is None
    back = step(pipeline, make_frame(2, 600.0))
    assert back.observations[0].session == 2
    assert [(left.session, left.end) for left in back.tracklets] == [(1, TrackletEnd.SESSION)]


def test_a_session_ends_with_its_last_frame_whatever_ends_it() -> None:
    pipeline, pig = make_pipeline(replace(SETTINGS, session_ns=1 * S))
    frames = [make_frame(i, i / 5) for i in range(8)]
    for frame in frames:
        step(pipeline, frame)  # the sixth is of the next session
    pipeline.end_session("pen", until_ns=frames[-1].monotonic_ns)
    step(pipeline, make_frame(8, 100.0))
    pipeline.end_sessions()
    last = make_frame(8, 100.0).captured_ns
    assert pig.ended == [("pen", 1, frames[4].captured_ns), ("pen", 2, frames[7].captured_ns), ("pen", 3, last)]


def test_a_changed_camera_starts_over_and_an_unchanged_one_goes_on() -> None:
    pipeline, _ = make_pipeline()
    assert step(pipeline, make_frame(0, 0.0)).observations[0].session == 1
    pipeline.set_cameras({"pen": SETTINGS})
    assert step(pipeline, make_frame(1, 0.2)).observations[0].session == 1
    pipeline.set_cameras({"pen": replace(SETTINGS, species="cow")})
    assert step(pipeline, make_frame(2, 0.4)).observations[0].session == 2


def test_the_detector_looks_at_every_third_frame_and_first_at_a_sessions_first() -> None:
    pipeline, pig = make_pipeline(replace(SETTINGS, tracking=replace(SETTINGS.tracking, detect_every=3)))
    looks, sources = [], []
    for i in range(5):
        result = step(pipeline, make_frame(i, i / 5))
        looks.append(len(pig.asked))
        sources.append(result.tracks[0].source.value)
    assert looks == [1, 1, 1, 2, 2]
    assert sources == ["detected", "propagated", "propagated", "detected", "propagated"]
    pipeline.end_session("pen", until_ns=0)
    step(pipeline, make_frame(5, 1.0))
    assert len(pig.asked) == 3


def test_what_a_session_leaves_comes_with_the_cameras_next_frame() -> None:
    pipeline, _ = make_pipeline()
    assert [step(pipeline, make_frame(i, i / 5)).tracklets for i in range(3)] == [()] * 3
    pipeline.end_session("pen", until_ns=0)
    (left,) = step(pipeline, make_frame(3, 0.6)).tracklets
    assert (left.session, left.track, left.detections, left.end) == (1, 1, 3, TrackletEnd.SESSION)
    assert step(pipeline, make_frame(4, 0.8)).tracklets == ()


def test_a_session_of_a_model_set_with_a_tracker_has_a_memory_unless_it_is_switched_off() -> None:
    sizes = {}
    for remembers in (True, False):
        pipeline, _ = make_pipeline(replace(SETTINGS, remembers=remembers), tracker=scripted_tracker((GRID, GRID)))
        sizes[remembers] = [step(pipeline, make_frame(i, i / 5)).session_bytes for i in range(3)]
    assert len(set(sizes[True])) == 1
    assert sizes[True][0] > 0
    assert sizes[False] == [0, 0, 0]


def test_a_pig_for_which_there_is_no_slot_is_said_to_wait() -> None:
    pipeline, _ = make_pipeline(replace(SETTINGS, tracking=TrackingSettings(fps=5.0, max_objects=0)))
    result = step(pipeline, make_frame(0, 0.0))
    assert (result.tracks, result.waiting) == ((), 1)


def test_a_frame_of_a_camera_that_was_taken_out_while_it_was_encoded_gives_nothing() -> None:
    pipeline, pig = make_pipeline()
    encoded = pipeline.encode(make_frame(0, 0.0))
    pipeline.set_cameras({})
    assert pipeline.follow(encoded) is None
    assert pig.asked == []


def test_every_stage_is_timed_by_the_clock_it_was_given() -> None:
    pipeline, _ = make_pipeline()
    assert step(pipeline, make_frame(0, 0.0)).stage_ns == {"encoder": 5, "detector": 5, "tracking": 5, "records": 5}
