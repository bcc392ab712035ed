"""The behavior classifier: what an animal does, by how it looked over a short window.

A bidirectional LSTM over the embeddings of one animal's last crops, then two layers on its two final states, as in Yang
and Hostens (2026, arXiv:2604.27128): three embeddings of DINOv3 ViT-S/16, 128 hidden units each way, nine classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The paper's nine classes in the project's names; a model set's manifest holds them in this order.
BEHAVIORS = (
    "standing",
    "lying",
    "eating",
    "drinking",
    "sitting",
    "sleeping",
    "running",
    "playing",
    "nose_to_nose",
)


@dataclass(frozen=True, slots=True)
class BehaviorConfig:
    """Sizes of the network; the defaults are the paper's. `window` counts embeddings, `features` their width."""

    window: int = 3
    features: int = 384
    hidden: int = 128


class BehaviorClassifier(nn.Module):
    """Windows of embeddings (B, T, D), oldest first, to logits (B, 9) of `BEHAVIORS`."""

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(config.features, config.hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(
            nn.Linear(2 * config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, len(BEHAVIORS))
        )

    def forward(self, window: Tensor) -> Tensor:
        _, (final, _) = self.lstm(window)  # (2, B, hidden): the last state forward, the first one backward
        logits: Tensor = self.head(torch.cat([final[0], final[1]], dim=1))
        return logits
