"""SAM 3 as the teacher (Carion et al. 2025, arXiv:2511.16719): its trunk, its necks, its detector, at either grid.

The modules are the stock ones of `transformers`. Input is normalized with mean and standard deviation 0.5, at 14 pixels
a cell: 1008 px for G = 72, 504 px for G = 36, which SAM 3 runs at natively.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionModel, Sam3VisionNeck

from barnsight_export.checkpoints import embed_concepts, load_sam3
from barnsight_export.networks.sam3 import Detection, Detector, DetectorConfig
from barnsight_export.networks.student import EncoderMaps

PATCH_PX = 14


class Sam3Trunk(nn.Module):
    """The trunk's last map as tokens: (B, 3, 14G, 14G) -> (B, G², 1024). The teacher at point A."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.backbone: Any = vision.backbone

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.backbone(image).last_hidden_state
        return tokens


class Sam3Necks(nn.Module):
    """Trunk and both necks: (B, 3, 14G, 14G) to `EncoderMaps`. The teacher at point B.

    The tracker's fine maps are narrowed by `conv_s0` and `conv_s1` of its mask decoder.
    """

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.backbone: Any = vision.backbone
        self.neck: Any = vision.neck
        self.tracker_neck: Any = Sam3VisionNeck(vision.config)
        width = vision.config.fpn_hidden_size
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)

    def forward(self, image: Tensor) -> EncoderMaps:
        tokens = self.backbone(image).last_hidden_state  # (B, G², C)
        grid = round(tokens.shape[1] ** 0.5)
        trunk = tokens.transpose(1, 2).reshape(len(tokens), -1, grid, grid)
        # the fourth map of a neck, at G/2, is read by nothing
        d4, d2, d1 = (layer(trunk) for layer in self.neck.fpn_layers[:3])
        t4, t2, t1 = (layer(trunk) for layer in self.tracker_neck.fpn_layers[:3])
        return EncoderMaps(d4, d2, d1, self.conv_s0(t4), self.conv_s1(t2), t1)


class Sam3Detector(nn.Module):
    """SAM 3's concept detector on its own features, with one prompt (T, C) per concept."""

    def __init__(self, encoder: Sam3Necks, detector: Detector, prompts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder, self.detector = encoder, detector
        self.concept_names = tuple(prompts)
        self.prompts = nn.ParameterList([nn.Parameter(prompt) for prompt in prompts.values()])

    def forward(self, image: Tensor, concept: Tensor) -> Detection:
        """Detect concept number `concept` (1,) in one image (1, 3, H, H), normalized."""
        d4, d2, d1 = self.encoder(image)[:3]
        detection: Detection = self.detector(d4, d2, d1, self.prompts[int(concept)][None])
        return detection


def load_vision(path: Path, grid: int, config: Sam3VisionConfig | None = None) -> nn.Module:
    """SAM 3's vision encoder with the weights at `path`, for a grid of `grid` cells; raises as `load_sam3` does."""
    config = config or Sam3VisionConfig()
    config.image_size = PATCH_PX * grid
    vision: nn.Module = Sam3VisionModel(config)
    load_sam3(path, "vision_encoder", vision)
    return vision


def load_necks(path: Path, grid: int, config: Sam3VisionConfig | None = None) -> Sam3Necks:
    """SAM 3 up to the maps that its heads read; raises as `load_sam3` does."""
    necks = Sam3Necks(load_vision(path, grid, config))
    load_sam3(path, "necks", necks)
    return necks


def load_detector(folder: Path, grid: int, config: DetectorConfig, concepts: tuple[str, ...]) -> Sam3Detector:
    """SAM 3's whole detector from the public repository's folder, prompted with `concepts`; raises as `load_sam3`."""
    detector = Detector(config)
    load_sam3(folder, "detector", detector)
    return Sam3Detector(load_necks(folder, grid), detector, embed_concepts(folder, concepts)).eval()
