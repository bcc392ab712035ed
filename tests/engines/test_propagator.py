"""How many animals memory attention looks for at once."""

from __future__ import annotations

import pytest

from barnsight_engines.propagator import LARGEST_BATCH, largest_batch


@pytest.mark.parametrize(
    ("grid", "memories", "animals"),
    [(20, 4, LARGEST_BATCH), (36, 7, LARGEST_BATCH), (72, 7, 1), (200, 7, 1)],
    ids=["nano", "orin-b", "orin", "larger than any"],
)
def test_as_many_animals_at_once_as_their_scores_fit(grid: int, memories: int, animals: int) -> None:
    assert largest_batch(grid**2, grid**2 * memories + 76) == animals
