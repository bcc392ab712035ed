"""Views of a frame for the student: color jitter and horizontal flip, written with tensor operations.

Jitter follows torchvision's ColorJitter(.2, .2, .1, .02) in a fixed order; hue turns the chroma plane of YIQ. The
teacher sees the plain frame: only the flip reaches it, and its feature maps are flipped instead of its picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a view may go: factors 1 ± x, hue in turns, and the share of views that are mirrored."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.1
    hue: float = 0.02
    flip: float = 0.5

    def draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One view (5,): factors of brightness, contrast and saturation, hue in turns, 1 where mirrored."""
        reach = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        values = np.array([1.0, 1.0, 1.0, 0.0]) + rng.uniform(-1, 1, 4) * reach
        return np.append(values, rng.random() < self.flip).astype(np.float32)


PLAIN = np.array([1, 1, 1, 0, 0], np.float32)  # the view that changes nothing


def view(images: Tensor, views: Tensor) -> Tensor:
    """Jitter and mirror pictures (B, 3, H, W) in 0..1 as `views` (B, 5) says."""
    brightness, contrast, saturation, hue = (factor[:, None, None, None] for factor in views[:, :4].T)
    luma = images.new_tensor(_TO_YIQ[0])[None, :, None, None]
    images = (images * brightness).clamp(0, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp(0, 1)
    gray = (images * luma).sum(1, keepdim=True)
    images = torch.lerp(gray, images, saturation).clamp(0, 1)
    return flip(_turn_hue(images, hue.flatten()), views)


def flip(maps: Tensor, views: Tensor) -> Tensor:
    """Mirror the pictures or feature maps (B, C, h, w) of the views that are mirrored."""
    mirrored = views[:, 4] > 0
    return torch.where(mirrored[:, None, None, None], maps.flip(3), maps)


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the chroma plane by `turns` (B,): (B, 3, H, W) -> (B, 3, H, W)."""
    to_yiq = images.new_tensor(_TO_YIQ)
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).reshape(-1, 3, 3)
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq  # (B, 3, 3)
    turned = torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)
    return torch.where((turns == 0)[:, None, None, None], images, turned)
