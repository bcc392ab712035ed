"""A track's account of matches and misses, and which of two overlapping tracks is believed."""

from __future__ import annotations

import numpy as np
import pytest

from barnsightd.tracking.lifecycle import NEVER_NS, Target, TrackingSettings
from barnsightd.tracking.overlap import claim_pixels, doubles
from barnsightd.tracking.propagation import OUTSIDE_LOGIT, shifted
from barnsightd.types import TrackState

SETTINGS = TrackingSettings(fps=10, coast_frames=2)
FRAME_S = 0.1
FRAME_NS = 100_000_000
BOX_PX = np.array([10, 10, 40, 40], np.float32)
MASK = np.full((8, 8), -1, np.float32)
MASK[1:5, 1:5] = 1


def born(score: float) -> Target:
    return Target.born(1, 0, 0, BOX_PX, MASK, score, SETTINGS)


def match(target: Target, now_ns: int = 0, score: float = 0.9) -> None:
    target.match(now_ns, BOX_PX, MASK, score, FRAME_S, SETTINGS)


def test_three_matches_confirm_a_doubtful_birth() -> None:
    target = born(0.7)
    states = [target.state(SETTINGS)]
    for _ in range(2):
        match(target)
        states.append(target.state(SETTINGS))
    assert states == [TrackState.TENTATIVE, TrackState.TENTATIVE, TrackState.CONFIRMED]


def test_a_confirmed_track_is_lost_after_two_misses_and_trusted_again_when_found() -> None:
    target = born(0.95)
    states = []
    for frame in range(1, 4):
        target.miss(frame * FRAME_NS, FRAME_S, SETTINGS)
        states.append(target.state(SETTINGS))
    assert states == [TrackState.CONFIRMED, TrackState.CONFIRMED, TrackState.LOST]
    match(target)
    assert target.state(SETTINGS) is TrackState.CONFIRMED


def test_the_hot_start_ends_a_track_at_its_eighth_miss() -> None:
    target = born(0.95)
    over = []
    for frame in range(1, 9):
        target.miss(frame * FRAME_NS, 1 / SETTINGS.fps, SETTINGS)
        over.append(target.is_over(frame * FRAME_NS, SETTINGS))
    assert over == [False] * 7 + [True]


def test_three_matches_outlive_the_hot_start() -> None:
    target = born(0.7)
    match(target)
    match(target)
    target.miss(10 * FRAME_NS, 10 * FRAME_S, SETTINGS)
    assert not target.is_over(10 * FRAME_NS, SETTINGS)


def test_after_the_hot_start_only_the_keep_alive_counts() -> None:
    target = born(0.95)
    for _ in range(30):
        match(target)
    now_ns = 30 * FRAME_NS
    target.miss(now_ns, SETTINGS.keep_alive_s - 0.5, SETTINGS)
    assert not target.is_over(now_ns, SETTINGS)
    target.miss(now_ns, 0.5, SETTINGS)
    assert target.is_over(now_ns, SETTINGS)


def test_a_match_refills_the_keep_alive_and_never_overfills_it() -> None:
    target = born(0.95)
    match(target)
    assert target.keep_alive_s == SETTINGS.keep_alive_s
    target.miss(FRAME_NS, 1.0, SETTINGS)
    match(target)
    assert target.keep_alive_s == pytest.approx(SETTINGS.keep_alive_s - 1.0 + FRAME_S)


def test_a_detector_that_looks_at_every_fifth_frame_is_counted_by_its_looks() -> None:
    settings = TrackingSettings(fps=10, detect_every=5, keep_alive_s=10)
    target = born(0.95)
    over = []
    for look in range(1, 9):
        target.miss(look * 5 * FRAME_NS, 5 * FRAME_S, settings)
        over.append(target.is_over(look * 5 * FRAME_NS, settings))
    assert over == [False] * 7 + [True]
    assert target.keep_alive_s == pytest.approx(settings.keep_alive_s - 8 * 0.5 - (10 - SETTINGS.keep_alive_s))


def test_an_animal_is_remembered_for_certain_again_where_a_sure_detection_fits() -> None:
    target = born(0.95)
    certain = []
    for frame in range(1, 63):
        target.expect(MASK, (64, 64))
        match(target, frame * FRAME_NS)
        certain.append(target.certain)
    assert [frame for frame, is_certain in enumerate(certain, 1) if is_certain] == [60, 61, 62]

    target.expect(shifted(MASK, 0, 2), (64, 64))
    match(target, 63 * FRAME_NS)  # it was expected elsewhere
    assert not target.certain
    target.expect(MASK, (64, 64))
    match(target, 64 * FRAME_NS, score=0.7)
    assert not target.certain


def test_of_two_on_one_place_the_more_recently_occluded_yields() -> None:
    iou = np.array([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]], np.float32)
    hidden_just_now = np.array([500, 100, NEVER_NS])
    assert doubles(iou, hidden_just_now, minimum=0.7).tolist() == [True, False, False]


def test_of_two_equals_on_one_place_the_younger_yields() -> None:
    iou = np.array([[1, 0.9], [0.9, 1]], np.float32)
    assert doubles(iou, np.array([NEVER_NS, NEVER_NS]), minimum=0.7).tolist() == [False, True]


def test_tracks_side_by_side_both_stay() -> None:
    iou = np.array([[1, 0.4], [0.4, 1]], np.float32)
    assert not doubles(iou, np.array([5, NEVER_NS]), minimum=0.7).any()


def test_each_pixel_goes_to_the_strongest_claim() -> None:
    logits = np.array([[[3, 2, -1]], [[-1, 5, 1]]], np.float32)
    claimed = claim_pixels(logits, np.array([True, True]))
    assert (claimed > 0).tolist() == [[[True, False, False]], [[False, True, True]]]


def test_what_is_seen_outranks_what_is_expected() -> None:
    logits = np.array([[[1.0, 1.0]], [[9.0, 9.0]]], np.float32)
    claimed = claim_pixels(logits, np.array([True, False]))
    assert (claimed > 0).tolist() == [[[True, True]], [[False, False]]]


@pytest.mark.parametrize(
    ("rows", "columns", "corner"),
    [(0, 0, (1, 1)), (2, 1, (3, 2)), (-1, 3, (0, 4)), (3, -1, (4, 0))],
)
def test_a_mask_moves_by_whole_cells(rows: int, columns: int, corner: tuple[int, int]) -> None:
    moved = shifted(MASK, rows, columns)
    top, left = corner
    assert np.argwhere(moved > 0).min(axis=0).tolist() == [top, left]
    assert np.count_nonzero(moved > 0) == 16


def test_a_mask_that_leaves_the_frame_is_cut_and_then_gone() -> None:
    assert np.count_nonzero(shifted(MASK, 5, 0) > 0) == 8
    assert (shifted(MASK, 0, 20) == OUTSIDE_LOGIT).all()


def test_thresholds_follow_the_detectors_own() -> None:
    settings = TrackingSettings(min_score=0.3, strong_score=0.5, new_score=0.7, sure_score=0.85).for_detector(0.25)
    scores = (settings.min_score, settings.strong_score, settings.new_score, settings.sure_score)
    assert scores == (0.15, 0.25, 0.35, 0.425)
