"""The life of tracks that are remembered, told with pigs of one color each: hidden, missed, swallowed, too many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines.encoder import Features
from barnsight_engines.masks import box_px, tight_boxes
from barnsight_engines.propagator import Memories, MemoryTracker, Segmented
from barnsight_engines.scripted_backend import painted, scripted_tracker
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.tracking.propagation import MemoryPropagator
from barnsightd.tracking.session import Session
from barnsightd.types import Detections, Track, TrackletEnd, TrackSource

IMAGE_SIZE = (720, 1280)
GRID = (16, 24)
MASK = (64, 96)
FPS = 6.0
SURE = 0.95
SETTINGS = TrackingSettings(fps=FPS)


@dataclass(frozen=True)
class Pig:
    """Where a pig lies, and whether the camera (`visible`) and the detector (`detected`) see it."""

    x_px: float
    y_px: float
    detected: bool = True
    visible: bool = True

    @property
    def mask(self) -> NDArray[np.bool_]:
        rows, columns = np.mgrid[0 : MASK[0], 0 : MASK[1]] + 0.5
        right = (columns * IMAGE_SIZE[1] / MASK[1] - self.x_px) / 130
        down = (rows * IMAGE_SIZE[0] / MASK[0] - self.y_px) / 80
        return np.asarray(np.hypot(right, down) < 1)


Pen = Mapping[int, Pig]  # by color


def picture(pen: Pen) -> dict[str, NDArray[np.float32]]:
    """The maps of a frame on which each visible pig has its color, later ones on top."""
    colors = np.zeros(GRID, np.float32)
    for color, pig in pen.items():
        if pig.visible:
            colors[pig.mask[2::4, 2::4]] = color
    return painted(colors)


def detections(pen: Pen) -> Detections:
    masks = [pig.mask for pig in pen.values() if pig.detected and pig.visible]
    if not masks:
        return Detections.empty(IMAGE_SIZE, MASK)
    logits = np.where(np.stack(masks), 6, -6).astype(np.float32)
    cell_px = np.array([IMAGE_SIZE[1] / MASK[1], IMAGE_SIZE[0] / MASK[0]] * 2, np.float32)
    boxes_px = (tight_boxes(logits > 0) * cell_px).astype(np.float32)
    return Detections(boxes_px, np.full(len(masks), SURE, np.float32), logits, IMAGE_SIZE)


class Film:
    """Plays pens to a session with memory, and keeps what was reported."""

    def __init__(self, settings: TrackingSettings = SETTINGS, tracker: MemoryTracker | None = None) -> None:
        self.tracker = tracker or scripted_tracker(GRID)
        self.memory = MemoryPropagator(self.tracker, settings)
        self.session = Session(settings, session=1, memory=self.memory)
        self.frame = 0

    def play(self, frames: int, pen: Callable[[int], Pen]) -> list[tuple[Track, ...]]:
        return [self.step(pen(t)) for t in range(frames)]

    def step(self, pen: Pen) -> tuple[Track, ...]:
        looks = self.frame % self.session.settings.detect_every == 0
        now_ns = round(self.frame * 1e9 / FPS)
        self.frame += 1
        return self.session.step(detections(pen) if looks else None, now_ns, picture(pen))

    @property
    def attended(self) -> int:
        """How often memory attention ran."""
        return int(self.tracker._memory_attention.runs)  # type: ignore[attr-defined]

    @property
    def encoded(self) -> int:
        """How often the memory encoder ran."""
        return int(self.tracker._memory_encoder.runs)  # type: ignore[attr-defined]


def ids(reported: tuple[Track, ...]) -> list[int]:
    return sorted(track.track for track in reported)


def at(reported: tuple[Track, ...], pig: Pig) -> Track:
    """The track that is reported where a pig lies."""

    def distance(track: Track) -> float:
        x0, y0, x1, y1 = track.box_px
        return float(np.hypot((x0 + x1) / 2 - pig.x_px, (y0 + y1) / 2 - pig.y_px))

    nearest = min(reported, key=distance)
    assert distance(nearest) < 60
    return nearest


@pytest.fixture(params=["lazy", "full"])
def settings(request: pytest.FixtureRequest) -> TrackingSettings:
    return replace(SETTINGS, lazy=request.param == "lazy")


def test_a_pig_that_the_detector_misses_is_still_reported_where_it_walks(settings: TrackingSettings) -> None:
    def walks_unseen(t: int) -> Pen:
        return {1: Pig(250 + 15 * t, 300, detected=t < 5 or t > 14), 2: Pig(900, 500)}

    reported = Film(settings).play(20, walks_unseen)
    assert [ids(tracks) for tracks in reported] == [[1, 2]] * 20
    walker = at(reported[0], Pig(250, 300)).track
    for t in range(20):
        assert at(reported[t], Pig(250 + 15 * t, 300)).track == walker
    assert at(reported[12], Pig(250 + 15 * 12, 300)).source is TrackSource.PROPAGATED


def test_a_pig_that_is_hidden_is_not_reported_and_comes_back_elsewhere_under_its_number(
    settings: TrackingSettings,
) -> None:
    def hides(t: int) -> Pen:
        where = (250, 300) if t < 10 else (700, 560)
        return {1: Pig(*where, visible=not 10 <= t < 25), 2: Pig(1000, 200)}

    reported = Film(settings).play(30, hides)
    hidden = at(reported[9], Pig(250, 300)).track
    assert all(ids(tracks) == [3 - hidden] for tracks in reported[10:25])
    assert at(reported[25], Pig(700, 560)).track == hidden


def test_a_pig_that_leaves_is_forgotten_and_its_place_in_memory_goes_to_the_next() -> None:
    film = Film(replace(SETTINGS, max_objects=2, keep_alive_s=2))
    reported = film.play(40, lambda t: {1: Pig(300, 300), 2 if t < 10 else 3: Pig(900, 500, visible=not 10 <= t < 25)})
    assert ids(reported[9]) == [1, 2]
    assert ids(reported[39]) == [1, 3]
    assert [(tracklet.track, tracklet.end) for tracklet in film.session.take_tracklets()] == [(2, TrackletEnd.LOST)]


def test_a_pig_swallowed_by_anothers_mask_is_hidden_and_found_again(settings: TrackingSettings) -> None:
    def walks_over(t: int) -> Pen:
        """The second pig walks onto the first one, stands there and walks back; the detector sees one."""
        walker = Pig(500 + 40 * max(0, 10 - t, t - 20), 360)
        return {1: Pig(500, 360, visible=walker.x_px > 640), 2: walker}

    reported = Film(settings).play(30, walks_over)
    lying, standing = at(reported[0], Pig(500, 360)).track, at(reported[0], Pig(900, 360)).track
    assert all(ids(tracks) == [standing] for tracks in reported[8:22])
    assert at(reported[29], Pig(500, 360)).track == lying
    assert at(reported[29], Pig(860, 360)).track == standing


def test_a_false_alarm_dies_in_its_hot_start_though_memory_sees_it(settings: TrackingSettings) -> None:
    film = Film(settings)
    doubtful = replace(settings, sure_score=0.99)
    film.session.settings = doubtful
    reported = film.play(14, lambda t: {1: Pig(500, 300, detected=t < 2)})
    assert not any(reported)
    assert film.session.tracks == ()
    assert film.session.take_tracklets() == ()


def test_memory_is_asked_only_for_what_no_detection_explains() -> None:
    lazy, full = Film(), Film(replace(SETTINGS, lazy=False))
    for film in (lazy, full):
        film.play(20, lambda t: {1: Pig(300, 300), 2: Pig(900, 500, detected=t != 12)})
    assert lazy.attended == 1
    assert full.attended == 19


def test_between_detections_a_pig_at_rest_is_left_alone_and_a_runner_is_sought() -> None:
    film = Film(replace(SETTINGS, detect_every=5))
    film.play(6, lambda t: {1: Pig(300, 300), 2: Pig(900, 500)})
    assert film.attended == 0

    film = Film(replace(SETTINGS, detect_every=5))
    reported = film.play(30, lambda t: {1: Pig(300, 200), 2: Pig(60 + 40 * t, 500)})
    assert film.attended > 15
    assert [ids(tracks) for tracks in reported] == [[1, 2]] * 30
    assert at(reported[28], Pig(60 + 40 * 28, 500)).track == at(reported[0], Pig(60, 500)).track


def test_thirty_one_pigs_in_thirty_slots() -> None:
    tracker = scripted_tracker(GRID)
    film = Film(tracker=tracker)
    pen = {color: Pig(100 + 215 * (color % 6), 60 + 120 * (color // 6), detected=color < 30) for color in range(30)}
    reported = film.play(3, lambda t: {**pen, 31: Pig(640, 360)})
    assert film.session.waiting >= 1
    assert len(film.session.tracks) == 30
    assert all(len(tracks) <= 30 for tracks in reported)


def test_when_the_scene_changes_at_once_every_track_ends() -> None:
    def pan(t: int) -> Pen:
        first = {1: Pig(200, 200), 2: Pig(600, 200), 3: Pig(1000, 200)}
        other = {4: Pig(250, 550), 5: Pig(650, 550), 6: Pig(1050, 550)}
        return first if t < 10 else other

    film = Film()
    reported = film.play(12, pan)
    assert ids(reported[9]) == [1, 2, 3]
    assert ids(reported[10]) == [4, 5, 6]
    ended = film.session.take_tracklets()
    assert [(tracklet.track, tracklet.end) for tracklet in ended] == [(n, TrackletEnd.CUT) for n in (1, 2, 3)]


def test_after_a_gap_memories_are_as_old_as_the_clock_says() -> None:
    film = Film()
    film.play(10, lambda t: {1: Pig(300, 300), 2: Pig(900, 500)})
    film.frame += 120  # twenty seconds without a frame
    reported = film.step({1: Pig(800, 250), 2: Pig(350, 550)})  # by now they lie elsewhere
    assert {at(reported, Pig(800, 250)).track, at(reported, Pig(350, 550)).track} == {1, 2}
    assert at(reported, Pig(800, 250)).track == 1


def test_pigs_born_together_take_turns_in_being_remembered_for_certain() -> None:
    film, encoded = Film(), []
    for _ in range(64):
        film.step({1: Pig(300, 300), 2: Pig(900, 500)})
        encoded.append(film.encoded)
    assert [frame for frame in range(1, 64) if encoded[frame] > encoded[frame - 1]] == [60, 61]


def test_a_mask_that_promises_little_is_not_believed() -> None:
    def walks_unseen(t: int) -> Pen:
        return {1: Pig(250 + 15 * t, 300, detected=t < 5), 2: Pig(900, 500)}

    believing = Film(SETTINGS).play(12, walks_unseen)  # the scripted tracker always promises an IoU of 1
    doubting = Film(replace(SETTINGS, recall_iou=1.01)).play(12, walks_unseen)
    assert (ids(believing[-1]), ids(doubting[-1])) == ([1, 2], [2])


@pytest.mark.parametrize(("anothers_iou", "there"), [(0.5, 2), (1.01, 1)], ids=["as it is", "were it believed"])
def test_a_pig_is_not_taken_for_the_one_that_lies_where_memory_finds_it(anothers_iou: float, there: int) -> None:
    film = Film(replace(SETTINGS, lazy=False, anothers_iou=anothers_iou))
    film.play(6, lambda t: {1: Pig(300, 300), 2: Pig(900, 500)})
    reported = film.step({1: Pig(900, 500)})  # the first one is gone, and the second one looks like it
    assert at(reported, Pig(900, 500)).track == there


def test_memory_reaches_back_over_looks_and_not_over_the_frames_between(monkeypatch: pytest.MonkeyPatch) -> None:
    film, held = Film(replace(SETTINGS, detect_every=5)), []
    segment = film.tracker.segment

    def watched(features: Features, memories: Memories) -> Segmented:
        slots = film.tracker.layout.slots
        cells = memories.mem.shape[1]
        held.append(int((memories.bias[0, 0, :cells].reshape(slots, -1)[:, 0] == 0).sum()))
        return segment(features, memories)

    monkeypatch.setattr(film.tracker, "segment", watched)
    reported = film.play(23, lambda t: {1: Pig(250 + 30 * t, 300)})
    assert ids(reported[-1]) == [1]
    looks = 5  # on frames 0, 5, 10, 15 and 20; the first one is remembered for certain
    assert held[-1] == looks


def test_a_found_pig_keeps_the_margins_between_the_detectors_box_and_its_mask() -> None:
    def pen(t: int) -> Pen:
        return {1: Pig(300 + 15 * t, 300, detected=t < 5), 2: Pig(900, 500)}

    film, margins_px = Film(), np.array([-9, -5, 7, 3], np.float32)
    for t in range(9):
        found = detections(pen(t))
        wider = replace(found, boxes_px=found.boxes_px + margins_px)
        reported = film.session.step(wider, round(t * 1e9 / FPS), picture(pen(t)))
    track = at(reported, Pig(300 + 15 * 8, 300))
    assert track.source is TrackSource.PROPAGATED
    np.testing.assert_allclose(track.box_px, box_px(track.mask_logits, IMAGE_SIZE) + margins_px, atol=3)


def test_pigs_in_plain_sight_are_encoded_only_when_they_are_certain() -> None:
    film = Film()
    film.play(16, lambda t: {1: Pig(300 + 9 * t, 300), 2: Pig(900, 500)})
    assert film.encoded == 1  # both at their birth
    film.step({1: Pig(300 + 9 * 16, 300, detected=False), 2: Pig(900, 500)})
    recent = film.tracker.layout.slots - 1
    assert film.encoded == 1 + recent  # what was seen of the missing one


def test_a_session_hands_over_its_tracks_with_their_quality_when_it_ends() -> None:
    film = Film()
    film.play(20, lambda t: {1: Pig(300, 300), 2: Pig(900, 500, detected=t % 2 == 0)})
    good, poor = film.session.end()
    assert (good.track, good.end, good.detections) == (1, TrackletEnd.SESSION, 20)
    assert good.quality == pytest.approx(SURE)
    assert poor.found_share == pytest.approx(10 / 19)
    assert film.session.tracks == ()
    assert film.session.end() == ()


def test_what_a_session_remembers_is_reserved_at_its_start_and_never_grows() -> None:
    film = Film()
    reserved = film.session.size_bytes
    assert reserved == MemoryPropagator(film.tracker, SETTINGS).size_bytes > 0
    film.play(300, lambda t: {t // 7 % 9 + 1: Pig(100 + t * 277 % 1100, 100 + t * 131 % 520)})
    assert film.session.size_bytes == reserved
    assert len(film.session.tracks) <= SETTINGS.max_objects


def test_a_session_that_keeps_fewer_memories_takes_less() -> None:
    tracker = scripted_tracker(GRID)
    fewer = MemoryPropagator(tracker, replace(SETTINGS, memory_slots=3))
    assert fewer.size_bytes < MemoryPropagator(tracker, SETTINGS).size_bytes
    with pytest.raises(ValueError, match="memory slots must be 2 to 7, got 8"):
        MemoryPropagator(tracker, replace(SETTINGS, memory_slots=8))
