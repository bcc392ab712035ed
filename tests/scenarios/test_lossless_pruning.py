"""Pruned to fixed slots, the tracker sees what SAM 3's own session sees, which keeps every frame for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.sam3_tracker_video import modeling_sam3_tracker_video as stock_tracker

from barnsight_engines.propagator import MemoryLayout, MemoryTracker, TemporalPositions, certain
from barnsight_engines.spec import EngineSpec
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import session_constants
from barnsight_export.onnx.graph import Graph
from barnsightd.tracking.memory import MemoryBank

GRID, WIDTH, ANIMALS = 4, 128, 3
CONFIG = TrackerConfig(grid=GRID, width=WIDTH, attention_layers=1, feed_forward=64, decoder_heads=2)


class TorchBackend:
    """A network in the place of an engine."""

    runtime = "torch"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.spec = EngineSpec(graph.role, (), ())

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        names = list(self.graph.draw(0, 1))
        return self.graph.run({name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names})

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def stock() -> Any:
    """SAM 3's tracker by lot: every parameter counts, and its animals are sometimes in the picture."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    model = stock_tracker.Sam3TrackerVideoModel(CONFIG.stock(), remove_vision_encoder=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 4
            parameter.add_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        for layer in model.memory_attention.layers:  # what is remembered shall weigh more than chance would have it
            layer.cross_attn_image.o_proj.weight *= 6
        score = model.mask_decoder.pred_obj_score_head.proj_out
        score.weight *= 30
        score.bias += 100
        logits = np.concatenate([run.presence for run in run_stock(model, 40)[1:]])  # all are present
        score.bias -= float(np.quantile(logits, 0.6))
    return model


def features(frame: int) -> dict[str, np.ndarray[Any, Any]]:
    """The tracker's maps of a frame: a scene that drifts, and noise."""
    shapes = {"t4": (WIDTH // 8, 4 * GRID), "t2": (WIDTH // 4, 2 * GRID), "t1": (WIDTH, GRID)}
    scene, noise = np.random.default_rng(5), np.random.default_rng(1000 + frame)
    return {
        name: (
            scene.normal(size=(1, channels, side, side)) * np.cos(frame / 9 + scene.normal(size=(1, channels, 1, 1)))
            + 0.3 * noise.normal(size=(1, channels, side, side))
        ).astype(np.float32)
        for name, (channels, side) in shapes.items()
    }


def first_masks() -> np.ndarray[Any, Any]:
    """Logits of three animals, (A, 4G, 4G)."""
    masks = np.full((ANIMALS, 4 * GRID, 4 * GRID), -8, np.float32)
    for animal in range(ANIMALS):
        masks[animal, 2 + 4 * animal : 7 + 4 * animal, 3 + 2 * animal : 11 + animal] = 8
    return masks


class Step(NamedTuple):
    """One frame: mask logits (A, 4G, 4G), presence logits (A,), and how much is kept after it."""

    masks: np.ndarray[Any, Any]
    presence: np.ndarray[Any, Any]
    kept: int


def run_stock(model: Any, frames: int) -> list[Step]:
    """The unpruned session, frame by frame; what is kept is counted in values."""
    session = stock_tracker.Sam3TrackerVideoInferenceSession(dtype=torch.float32)
    session.processed_frames = dict.fromkeys(range(frames))  # a recording: its length is known, the pictures are not
    steps = []
    for animal, mask in enumerate(first_masks()):
        index = session.obj_id_to_idx(animal)
        session.add_mask_inputs(index, 0, torch.from_numpy((mask > 0).astype(np.float32))[None, None])
        session.obj_with_new_inputs.append(animal)
    for frame in range(frames):
        maps = features(frame)
        flat = [torch.from_numpy(maps[name]).flatten(2).permute(2, 0, 1) for name in ("t4", "t2", "t1")]
        places = [position(model, maps[name].shape).flatten(2).permute(2, 0, 1) for name in ("t4", "t2", "t1")]
        session.cache.cache_vision_features(frame, {"vision_feats": flat, "vision_pos_embeds": places})
        answer = model(session, frame_idx=frame)
        kept = stored_values(session.output_dict_per_obj)
        steps.append(Step(answer.pred_masks[:, 0].numpy(), answer.object_score_logits.numpy().ravel(), kept))
    return steps


def position(model: Any, shape: tuple[int, ...]) -> Any:
    sine = stock_tracker.Sam3TrackerVideoPositionEmbeddingSine(num_position_features=WIDTH // 2, normalize=True)
    return sine(torch.Size((1, WIDTH, *shape[2:])), torch.device("cpu"), torch.float32)


def stored_values(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.numel()
    if isinstance(tree, Mapping):
        return sum(stored_values(value) for value in tree.values())
    return 0


def run_ours(stock: Any, frames: int) -> list[Step]:
    """The same with fixed slots; what is kept is counted in bytes."""
    tracker = Tracker(CONFIG).eval()
    tracker.load_state_dict(stock.state_dict())
    positions = TemporalPositions.from_arrays(session_constants(tracker))
    backends = [TorchBackend(graph) for graph in roles.tracker_graphs(tracker)]
    engines = MemoryTracker(*backends, positions=positions, largest_batch=2)
    layout = MemoryLayout(GRID**2, roles.MEMORY_SLOTS, roles.POINTERS)
    bank = MemoryBank(ANIMALS, positions, layout, batch=ANIMALS, dtype=np.float32)
    animals = range(ANIMALS)
    steps = []
    for frame in range(frames):
        maps = features(frame)
        if frame == 0:
            masks, presence = certain(first_masks()), np.ones(ANIMALS, np.float32)
            bank.condition(animals, 0, engines.memorize(maps, masks, presence), engines.point_at(maps, masks))
            steps.append(Step(masks, presence, bank.size_bytes))
        else:
            seen = engines.segment(maps, bank.recall(animals, frame))
            memories = engines.memorize(maps, seen.mask_logits, seen.presence)
            bank.remember(animals, frame, memories, seen.pointers)
            steps.append(Step(seen.mask_logits, seen.presence, bank.size_bytes))
    return steps


def test_fixed_slots_give_the_masks_of_the_unpruned_session(stock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bfloat16", torch.float32)  # the stock session rounds what it stores
    theirs, ours = run_stock(stock, 100), run_ours(stock, 100)
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
