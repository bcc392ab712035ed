"""The life of tracks, told with pigs that are ellipses: born, hidden, found again, false, double, too many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.masks import tight_boxes
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.tracking.session import Session
from barnsightd.types import Detections, Track, TrackSource, TrackState

IMAGE_SIZE = (720, 1280)
GRID = 80
FPS = 6.0
SURE, PROBABLE, WEAK = 0.95, 0.75, 0.4

Pig = tuple[float, float, float]  # center x and y in pixels, score


def frame_ns(index: float) -> int:
    return round(index * 1e9 / FPS)


def pig_mask(x_px: float, y_px: float, long_px: float, wide_px: float) -> NDArray[np.float32]:
    """Logits of an ellipse on the grid, (h, w)."""
    rows, columns = np.mgrid[0:GRID, 0:GRID] + 0.5
    right = (columns * IMAGE_SIZE[1] / GRID - x_px) / long_px
    down = (rows * IMAGE_SIZE[0] / GRID - y_px) / wide_px
    return (6 * (1 - np.hypot(right, down))).astype(np.float32)


def detections(*pigs: Pig, long_px: float = 120, wide_px: float = 70) -> Detections:
    """What a good detector says of pigs that lie in no one's way."""
    if not pigs:
        return Detections.empty(IMAGE_SIZE, (GRID, GRID))
    masks = np.stack([pig_mask(x, y, long_px, wide_px) for x, y, _ in pigs])
    cell_px = np.array([IMAGE_SIZE[1], IMAGE_SIZE[0]] * 2, np.float32) / GRID
    scores = np.array([score for *_, score in pigs], np.float32)
    return Detections((tight_boxes(masks > 0) * cell_px).astype(np.float32), scores, masks, IMAGE_SIZE)


def follow(
    frames: int, scene: Callable[[int], Sequence[Pig]], session: Session | None = None
) -> list[tuple[Track, ...]]:
    """Play a scene and return what was reported on each frame."""
    session = session or Session(TrackingSettings(fps=FPS), session=1)
    return [session.step(detections(*scene(index)), frame_ns(index)) for index in range(frames)]


def ids(reported: tuple[Track, ...]) -> list[int]:
    return sorted(track.track for track in reported)


def nearest(reported: tuple[Track, ...], x_px: float, y_px: float) -> int:
    """The id of the track whose box center is nearest to a point."""

    def distance(track: Track) -> float:
        x1, y1, x2, y2 = track.box_px
        return float(np.hypot((x1 + x2) / 2 - x_px, (y1 + y2) / 2 - y_px))

    return min(reported, key=distance).track


def test_a_sure_pig_is_reported_at_once_and_keeps_its_number() -> None:
    reported = follow(20, lambda t: [(300 + 10 * t, 300, SURE)])
    assert [ids(tracks) for tracks in reported] == [[1]] * 20
    assert reported[-1][0].age_frames == 20
    assert reported[-1][0].state is TrackState.CONFIRMED
    assert reported[-1][0].source is TrackSource.DETECTED


def test_a_probable_pig_is_reported_from_its_third_detection_on() -> None:
    reported = follow(4, lambda _: [(300, 300, PROBABLE)])
    assert [ids(tracks) for tracks in reported] == [[], [], [1], [1]]


def test_a_weak_detection_continues_a_pig_but_never_begins_one() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    reported = follow(10, lambda t: [(300, 300, SURE if t == 0 else WEAK), (900, 500, WEAK)], session)
    assert [ids(tracks) for tracks in reported] == [[1]] * 10
    assert [track.track for track in session.tracks] == [1]


def test_a_false_alarm_dies_in_its_hot_start_unreported() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    reported = follow(12, lambda t: [(900, 500, PROBABLE)] if t < 2 else [], session)
    assert not any(reported)
    assert session.tracks == ()


def test_a_pig_missed_for_two_frames_is_carried_on_by_its_motion() -> None:
    def walks_and_blinks(t: int) -> list[Pig]:
        return [] if t in (10, 11) else [(200 + 25 * t, 300, SURE)]

    session = Session(TrackingSettings(fps=FPS, coast_frames=2), session=1)
    reported = follow(14, walks_and_blinks, session)
    assert [ids(tracks) for tracks in reported] == [[1]] * 14
    assert [tracks[0].source.value for tracks in reported[9:13]] == [
        "detected",
        "propagated",
        "propagated",
        "detected",
    ]
    x1, _, x2, _ = reported[10][0].box_px
    assert abs((x1 + x2) / 2 - 450) < 15


def test_a_pig_hidden_for_seconds_comes_back_under_its_number() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)

    def hides(t: int) -> list[Pig]:
        return [] if 10 <= t < 30 else [(300, 300, SURE), (900, 500, SURE)]

    reported = follow(40, hides, session)
    assert ids(reported[9]) == [1, 2]
    assert reported[15] == ()
    assert ids(reported[30]) == [1, 2]
    assert nearest(reported[30], 300, 300) == nearest(reported[9], 300, 300)


def test_a_pig_gone_for_good_is_forgotten_after_its_keep_alive() -> None:
    session = Session(TrackingSettings(fps=FPS, keep_alive_s=3), session=1)
    follow(40, lambda t: [(300, 300, SURE)] if t < 20 else [], session)
    assert session.tracks == ()


def test_two_pigs_pass_each_other_without_a_swap() -> None:
    def pass_by(t: int) -> list[Pig]:
        return [(200 + 30 * t, 300, SURE), (1100 - 30 * t, 390, SURE)]

    reported = follow(30, pass_by)
    assert {tuple(ids(tracks)) for tracks in reported} == {(1, 2)}
    assert nearest(reported[-1], 200 + 30 * 29, 300) == nearest(reported[0], 200, 300)


def test_a_pig_that_walks_behind_another_comes_out_under_its_number() -> None:
    def behind(t: int) -> list[Pig]:
        walker = 300 + 30 * t
        hidden = abs(walker - 600) < 170
        return [(600, 300, SURE)] + ([] if hidden else [(walker, 310, SURE)])

    reported = follow(25, behind)
    sitter, walker = nearest(reported[0], 600, 300), nearest(reported[0], 300, 310)
    assert nearest(reported[-1], 600, 300) == sitter
    assert nearest(reported[-1], 300 + 30 * 24, 310) == walker
    assert {track.track for tracks in reported for track in tracks} == {sitter, walker}


def test_a_second_detection_of_the_same_pig_is_swallowed() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    reported = follow(10, lambda _: [(300, 300, SURE), (340, 310, PROBABLE)], session)
    assert [ids(tracks) for tracks in reported] == [[1]] * 10
    assert len(session.tracks) == 1


def test_the_thirty_first_pig_waits_for_a_slot_and_is_counted() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    crowd = [(140.0 + 200 * (i % 6), 70.0 + 120 * (i // 6), SURE) for i in range(30)]
    pigs = detections(*crowd, (1240.0, 310.0, 0.9), long_px=80, wide_px=50)

    reported = session.step(pigs, frame_ns(0))
    assert ids(reported) == list(range(1, 31))
    assert session.waiting == 1
    session.step(detections(*crowd[1:], (1240.0, 310.0, 0.9), long_px=80, wide_px=50), frame_ns(1))
    assert session.waiting == 1  # the pig that is not seen keeps its slot


def test_a_gap_in_the_stream_costs_no_pig_its_number() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    before = follow(10, lambda _: [(300, 300, SURE), (900, 500, SURE)], session)
    after = session.step(detections((320, 310, SURE), (880, 500, SURE)), frame_ns(10 + 120))
    assert ids(after) == ids(before[-1]) == [1, 2]
    assert nearest(after, 320, 310) == nearest(before[-1], 300, 300)


def test_a_frame_that_the_detector_skipped_blames_no_pig() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)
    for t in range(30):
        seen = detections((200 + 12 * t, 300, SURE)) if t % 3 == 0 else None
        reported = session.step(seen, frame_ns(t))
        assert ids(reported) == [1]
        assert reported[0].source is (TrackSource.DETECTED if t % 3 == 0 else TrackSource.PROPAGATED)


def test_each_session_numbers_its_pigs_from_one() -> None:
    for number in (1, 2):
        session = Session(TrackingSettings(fps=FPS), session=number)
        assert ids(session.step(detections((300, 300, SURE)), frame_ns(0))) == [1]


def test_no_pixel_belongs_to_two_pigs() -> None:
    reported = follow(5, lambda _: [(300, 300, SURE), (460, 330, SURE)])[-1]
    masks = np.stack([track.mask_logits > 0 for track in reported])
    assert len(reported) == 2
    assert masks.sum(axis=0).max() == 1


def test_an_empty_pen_stays_empty() -> None:
    assert follow(5, lambda _: []) == [()] * 5


def test_what_a_session_keeps_does_not_grow_with_time() -> None:
    session = Session(TrackingSettings(fps=FPS), session=1)

    def alarms_everywhere(t: int) -> list[Pig]:
        return [(100 + (t * 277) % 1100, 100 + (t * 131) % 520, SURE)]

    follow(400, alarms_everywhere, session)
    assert len(session.tracks) <= 30
