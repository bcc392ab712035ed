"""A stream is thinned by its time stamps, evenly, and a camera at the wanted rate loses nothing."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from barnsightd.ingest.rate import RateLimiter

NS_PER_S = 1_000_000_000


def kept(camera_fps: float, wanted_fps: float, seconds: int, jitter_s: float = 0.0) -> list[int]:
    draw, limiter = random.Random(1), RateLimiter(wanted_fps)
    stamps = (
        round((index / camera_fps + draw.uniform(-jitter_s, jitter_s)) * NS_PER_S)
        for index in range(round(seconds * camera_fps))
    )
    return [stamp for stamp in stamps if limiter.keep(stamp)]


@pytest.mark.parametrize(
    ("camera_fps", "wanted_fps", "expected"),
    [(30, 6, 60), (25, 12, 120), (15, 12, 120), (12, 12, 120), (5, 6, 50)],
)
def test_ten_seconds_leave_the_wanted_number_of_frames(camera_fps: float, wanted_fps: float, expected: int) -> None:
    assert len(kept(camera_fps, wanted_fps, seconds=10)) == pytest.approx(expected, abs=1)


def test_a_camera_at_the_wanted_rate_keeps_every_frame_through_its_jitter() -> None:
    assert len(kept(12, 12, seconds=10, jitter_s=0.03)) == 120


def test_once_begun_what_is_kept_is_evenly_spread() -> None:
    stamps = kept(30, 6, seconds=10)[1:]
    gaps_s = [(b - a) / NS_PER_S for a, b in pairwise(stamps)]
    assert gaps_s == pytest.approx([1 / 6] * len(gaps_s), abs=1 / 30)


def test_time_stamps_that_jump_start_the_count_anew() -> None:
    limiter = RateLimiter(6)
    assert limiter.keep(3600 * NS_PER_S)
    assert limiter.keep(0)
    assert not limiter.keep(NS_PER_S // 30)
