"""Weights by lot, in which every parameter counts: for compile checks, timing and parity, never for animals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from barnsight_export.networks.behavior import BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.dinov3 import Embedder, EmbedderConfig
from barnsight_export.networks.sam3 import PyramidConfig, Sam3
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.graph import Graph
from barnsight_export.presets import Preset

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Networks:
    """All networks of a preset; `more` are the engines besides encoder and detector."""

    detection: Sam3
    tracker: Tracker | None
    more: tuple[Graph, ...]


def random_networks(preset: Preset, seed: int = 0) -> Networks:
    """A preset's networks by lot. Those of SAM 3's size have all engines; small ones have two."""
    torch.manual_seed(seed)
    detection = preset.build().eval()
    if isinstance(preset.student, PyramidConfig) or preset.tracker is None:
        return Networks(detection, None, ())
    tracker = random_tracker(preset.tracker, seed)
    appearance = roles.embedder(scatter(Embedder(EmbedderConfig()), seed))
    behavior = roles.behavior(scatter(BehaviorClassifier(BehaviorConfig()), seed))
    return Networks(detection, tracker, (*roles.tracker_graphs(tracker), appearance, behavior))


@torch.no_grad()
def scatter(network: Network, seed: int = 0) -> Network:
    """Move every parameter away from where it starts: zeros and tiny layer scales hide what an export gets wrong."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        inputs = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.add_(torch.randn(parameter.shape, generator=noise) / inputs**0.5)
    return network.eval()


@torch.no_grad()
def random_tracker(config: TrackerConfig, seed: int = 0) -> Tracker:
    """A tracker by lot that believes every animal to be in the picture: the masks of absent ones are all alike."""
    torch.manual_seed(seed)
    tracker = scatter(Tracker(config), seed)
    tracker.mask_decoder.pred_obj_score_head.proj_out.bias.add_(4)
    return tracker
