"""Pruned to fixed slots, the tracker sees what SAM 3's own session sees, which keeps every frame for ever."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_engines.propagator import MemoryTracker, TemporalPositions, certain
from barnsight_export.evaluate.stock_session import (
    Step,
    TorchEngine,
    first_masks,
    follow,
    maps_of,
    stock_tracker,
    tracker_like,
)
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import session_constants
from barnsightd.tracking.memory import MemoryBank

ANIMALS = 3
CONFIG = TrackerConfig(grid=(4, 4), width=128, attention_layers=1, feed_forward=64, decoder_heads=2)


def run_ours(tracker: Tracker, frames: int) -> list[Step]:
    """The same with fixed slots; what is kept is counted in bytes."""
    positions = TemporalPositions.from_arrays(session_constants(tracker))
    backends = [TorchEngine(graph) for graph in roles.tracker_graphs(tracker)]
    engines = MemoryTracker(*backends, positions=positions, largest_batch=2)
    bank = MemoryBank(ANIMALS, positions, engines.layout, batch=ANIMALS, dtype=np.float32)
    animals = range(ANIMALS)
    steps = []
    for frame in range(frames):
        maps = maps_of(CONFIG, frame)
        if frame == 0:
            masks, presence = certain(first_masks(CONFIG, ANIMALS)), np.ones(ANIMALS, np.float32)
            bank.condition(animals, 0, engines.memorize(maps, masks, presence), engines.point_at(maps, masks))
            steps.append(Step(masks, presence, bank.size_bytes))
        else:
            seen = engines.segment(maps, bank.recall(animals, frame))
            memories = engines.memorize(maps, seen.mask_logits, seen.presence)
            bank.remember(animals, frame, memories, seen.pointers)
            steps.append(Step(seen.mask_logits, seen.presence, bank.size_bytes))
    return steps


def test_fixed_slots_give_the_masks_of_the_unpruned_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bfloat16", torch.float32)  # the stock session rounds what it stores
    stock = stock_tracker(CONFIG, ANIMALS)
    theirs, ours = list(follow(stock, CONFIG, ANIMALS, 100)), run_ours(tracker_like(stock, CONFIG), 100)
    present = np.array([step.presence > 0 for step in theirs[1:]])  # (99, A)
    assert present.sum() > 50
    assert (~present).sum() > 5  # animals come and go
    for want, got in zip(theirs[1:], ours[1:], strict=True):
        np.testing.assert_allclose(got.masks, want.masks, atol=1e-3)
        np.testing.assert_allclose(got.presence, want.presence, atol=1e-3)
        a, b = want.masks > 0, got.masks > 0
        assert (a & b).sum() >= 0.999 * (a | b).sum()
    assert len({step.kept for step in ours}) == 1
    assert theirs[99].kept > 8 * theirs[9].kept  # it keeps every frame
