"""The tracker of `transformers` with weights by lot, in its own session that keeps every frame: what ours is held to.

The stock session is meant for recordings and for streams; both keep each animal's memories, pointers and masks of every
frame. `follow` plays it frame by frame on maps that are made up, without an encoder, and counts what it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.sam3_tracker_video import modeling_sam3_tracker_video as stock

from barnsight_engines.spec import EngineSpec, TensorSpec
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.onnx.graph import Graph

Maps = dict[str, NDArray[np.float32]]

_PRESENT_SHARE = 0.6  # of what the animals by lot are in the picture for
_CALIBRATED_FRAMES = 40


class Step(NamedTuple):
    """One frame: mask logits (A, 4h, 4w), presence logits (A,), and how much is kept after it, in values."""

    masks: NDArray[np.float32]
    presence: NDArray[np.float32]
    kept: int


class TorchEngine:
    """A network in the place of an engine, for what needs no runtime."""

    runtime = "torch"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        inputs = tuple(
            TensorSpec(name, "float32", (None if name in graph.batched else value.shape[0], *value.shape[1:]))
            for name, value in graph.draw(0, 1).items()
        )
        self.spec = EngineSpec(graph.role, inputs, ())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Backend.run`."""
        given = {spec.name: torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self.spec.inputs}
        return dict(self.graph.run(given))

    def close(self) -> None:
        """There is nothing to close."""


def maps_of(config: TrackerConfig, frame: int) -> Maps:
    """The tracker's maps of a frame: a scene that drifts, and noise."""
    channels_of = {4: config.width // 8, 2: config.width // 4, 1: config.width}
    scene, noise = np.random.default_rng(5), np.random.default_rng(1000 + frame)
    return {
        f"t{scale}": (
            scene.normal(size=(1, channels, *sides)) * np.cos(frame / 9 + scene.normal(size=(1, channels, 1, 1)))
            + 0.3 * noise.normal(size=(1, channels, *sides))
        ).astype(np.float32)
        for scale, channels in channels_of.items()
        for sides in [(scale * config.grid[0], scale * config.grid[1])]
    }


def first_masks(config: TrackerConfig, animals: int) -> NDArray[np.float32]:
    """Logits of animals side by side, (A, 4h, 4w), each of another size."""
    height, width = config.mask_size
    masks = np.full((animals, height, width), -8, np.float32)
    for animal in range(animals):
        top, left = (height * (1 + animal) // (animals + 2), width * (2 + animal % 3) // 8)
        masks[animal, top : top + height // 4, left : left + width // 4 + animal] = 8
    return masks


@torch.no_grad()
def stock_tracker(config: TrackerConfig, animals: int) -> Any:
    """SAM 3's tracker by lot: every parameter counts, what is remembered weighs, and animals come and go."""
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(3)
    model = stock.Sam3TrackerVideoModel(config.stock(), remove_vision_encoder=True).eval()
    for parameter in model.parameters():
        inputs = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 4
        parameter.add_(torch.randn(parameter.shape, generator=noise) * inputs**-0.5)
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.o_proj.weight *= 6
    score = model.mask_decoder.pred_obj_score_head.proj_out
    score.weight *= 30
    score.bias += 100  # all are there
    steps = list(follow(model, config, animals, _CALIBRATED_FRAMES))[1:]
    score.bias -= float(np.quantile(np.concatenate([step.presence for step in steps]), _PRESENT_SHARE))
    return model


def tracker_like(model: Any, config: TrackerConfig) -> Tracker:
    """Our tracker with the stock one's weights."""
    tracker = Tracker(config).eval()
    tracker.load_state_dict(model.state_dict())
    return tracker


@torch.no_grad()
def follow(model: Any, config: TrackerConfig, animals: int, frames: int) -> Iterator[Step]:
    """The stock session on `frames` frames, from `first_masks` on."""
    session = stock.Sam3TrackerVideoInferenceSession(dtype=torch.float32)
    session.processed_frames = dict.fromkeys(range(frames))  # a recording: its length is known, the pictures are not
    for animal, mask in enumerate(first_masks(config, animals)):
        index = session.obj_id_to_idx(animal)
        session.add_mask_inputs(index, 0, torch.from_numpy((mask > 0).astype(np.float32))[None, None])
        session.obj_with_new_inputs.append(animal)
    sine = stock.Sam3TrackerVideoPositionEmbeddingSine(num_position_features=config.width // 2, normalize=True)
    for frame in range(frames):
        maps = maps_of(config, frame)
        flat, places = [], []
        for name in ("t4", "t2", "t1"):
            where = sine(torch.Size((1, config.width, *maps[name].shape[2:])), torch.device("cpu"), torch.float32)
            flat.append(_rows(torch.from_numpy(maps[name])))
            places.append(_rows(where))
        session.cache.cache_vision_features(frame, {"vision_feats": flat, "vision_pos_embeds": places})
        answer = model(session, frame_idx=frame)
        kept = _values(session.output_dict_per_obj)
        yield Step(answer.pred_masks[:, 0].numpy(), answer.object_score_logits.numpy().ravel(), kept)


def _rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).permute(2, 0, 1)  # (1, C, h, w) -> (hw, 1, C)


def _values(tree: Any) -> int:
    """How many numbers the tensors in nested dictionaries hold."""
    if isinstance(tree, torch.Tensor):
        return tree.numel()
    return sum(map(_values, tree.values())) if isinstance(tree, Mapping) else 0
