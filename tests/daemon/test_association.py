"""Assignment in rounds, box overlap, and how well a box fits where an animal may be."""

from __future__ import annotations

import numpy as np
import pytest

from barnsightd.tracking.association import Round, assign, box_iou, motion_affinity
from barnsightd.tracking.motion import Motion


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def everyone(affinity: list[list[float]], minimum: float = 0.3) -> Round:
    fit = np.array(affinity)
    return Round(np.ones(fit.shape[0], np.bool_), np.ones(fit.shape[1], np.bool_), fit, minimum)


def test_the_best_total_wins_over_the_best_single_pair() -> None:
    assert assign([everyone([[0.9, 0.8], [0.8, 0.1]])]) == {0: 1, 1: 0}


def test_a_pair_below_the_minimum_is_never_made() -> None:
    assert assign([everyone([[0.9, 0.0], [0.8, 0.2]])]) == {0: 0}


def test_a_pair_below_the_minimum_does_not_push_a_good_one_aside() -> None:
    assert assign([everyone([[0.5, 0.29], [0.29, 0.0]])]) == {0: 0}


def test_later_rounds_get_what_earlier_ones_left() -> None:
    fit = np.array([[0.5, 0.9], [0.0, 0.8]])
    strong = np.array([True, False])
    both = np.ones(2, np.bool_)
    assert assign([Round(both, strong, fit, 0.3), Round(both, both, fit, 0.3)]) == {0: 0, 1: 1}


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nobody_to_assign(shape: tuple[int, int]) -> None:
    nobody = Round(np.ones(shape[0], np.bool_), np.ones(shape[1], np.bool_), np.zeros(shape), 0.3)
    assert assign([nobody]) == {}


def test_box_overlap_by_hand() -> None:
    iou = box_iou(boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30)))
    np.testing.assert_allclose(iou, [[1, 1 / 3, 0]])


def test_nearer_and_more_alike_fits_better() -> None:
    motion = Motion.at_rest(boxes((100, 100, 200, 200))[0])
    motion.predict(0.2)
    same, aside, large, far, huge = motion_affinity(
        [motion],
        boxes((100, 100, 200, 200), (130, 100, 230, 200), (80, 80, 220, 220), (700, 100, 800, 200), (0, 0, 300, 300)),
    )[0]
    assert same > aside > 0
    assert same > large > 0
    assert far == huge == 0


def test_the_longer_out_of_sight_the_farther_an_animal_may_be() -> None:
    motion = Motion.at_rest(boxes((100, 100, 200, 200))[0])
    aside = boxes((250, 100, 350, 200))
    motion.predict(0.1)
    soon = motion_affinity([motion], aside)[0, 0]
    motion.predict(3.0)
    late = motion_affinity([motion], aside)[0, 0]
    assert soon == 0
    assert late > 0


def test_a_walking_animal_is_expected_ahead_and_slows_down_out_of_sight() -> None:
    motion = Motion.at_rest(boxes((100, 100, 200, 200))[0])
    for step in range(1, 15):
        motion.predict(0.1)
        motion.update(boxes((100 + 10 * step, 100, 200 + 10 * step, 200))[0])
    assert motion.velocity_px_s[0] == pytest.approx(100, rel=0.15)
    assert motion.velocity_px_s[1] == pytest.approx(0, abs=1e-9)
    last_px = motion.center_px[0]
    motion.predict(60.0)
    assert last_px < motion.center_px[0] < last_px + 130


def test_many_small_steps_are_one_large_step() -> None:
    once, often = (Motion.at_rest(boxes((0, 0, 50, 50))[0]) for _ in range(2))
    for motion in (once, often):
        motion.velocity_px_s = np.array([30.0, -10.0])
    once.predict(2.0)
    for _ in range(40):
        often.predict(0.05)
    np.testing.assert_allclose(often.center_px, once.center_px)
    np.testing.assert_allclose(often.covariance, once.covariance, rtol=1e-6)
