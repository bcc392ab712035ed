"""Pauses between attempts double up to a bound, are spread by chance, and begin anew after a good time."""

from __future__ import annotations

from barnsightd.ingest.backoff import Backoff


def test_pauses_double_up_to_their_bound() -> None:
    backoff = Backoff(1, 60, draw=lambda: 1.0)
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_chance_takes_off_at_most_half_and_never_goes_below_the_shortest_pause() -> None:
    backoff = Backoff(1, 60, draw=lambda: 0.0)
    assert [backoff.next_s() for _ in range(4)] == [1, 1, 2, 4]


def test_after_a_reset_the_first_pause_is_short_again() -> None:
    backoff = Backoff(1, 60, draw=lambda: 1.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == 1


def test_what_haste_will_not_mend_waits_longest_from_the_start() -> None:
    backoff = Backoff(1, 60, draw=lambda: 1.0)
    assert backoff.slowest_s() == 60
    assert backoff.next_s() == 1
