"""The compact student of the nano set: a convolutional trunk with a little attention, and the neck of SAM 3's detector.

The student stands at the neck's outputs of SAM 3 (Carion et al. 2025, arXiv:2511.16719): three maps at strides 4, 8
and 16, each with the detector's width. Trunk blocks follow MobileNetV2 and EfficientNetV2 (Sandler et al. 2018; Tan
and Le 2021), with GroupNorm (Wu and He 2018): each picture is normalized by itself, so that an infrared night does not
depend on the sunny yard beside it in the batch. The neck is a feature pyramid (Lin et al. 2017) without smoothing:
SAM 3's pixel decoder smooths the maps itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORM_GROUPS = 8
_PLACE_WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)  # periods across the picture


@dataclass(frozen=True, slots=True)
class CompactConfig:
    """Widths and depths of a student; the three stages end at strides 4, 8 and 16."""

    stem: int = 24
    stages: tuple[int, int, int] = (40, 72, 160)
    expansion: int = 3
    attention_blocks: int = 3
    attention_heads: int = 5
    neck: int = 96


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its GroupNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(_NORM_GROUPS, outputs))


class InvertedBottleneck(nn.Module):
    """MBConv: widen, filter in space, narrow; the fused form filters in space while it widens."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int = 1, *, fused: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        if fused:
            layers: list[nn.Module] = [conv_norm(inputs, hidden, 3, stride), nn.SiLU()]
        else:
            depthwise = conv_norm(hidden, hidden, 3, stride, groups=hidden)
            layers = [conv_norm(inputs, hidden, 1), nn.SiLU(), depthwise, nn.SiLU()]
        self.body = nn.Sequential(*layers, conv_norm(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        filtered: Tensor = self.body(x)
        return x + filtered if self.residual else filtered


class AttentionBlock(nn.Module):
    """Position by a depthwise convolution, then global self-attention and an MLP, each with a residual."""

    def __init__(self, channels: int, heads: int, mlp_ratio: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.SiLU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, hw, C)
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, -1, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, hw, C / heads)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        tokens = tokens + self.proj((weights @ value).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        mixed: Tensor = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return mixed


class PyramidEncoder(nn.Module):
    """What the encoders of nano's scale have in common: a neck that brings a trunk's maps to one width.

    They give the maps that SAM 3's detector reads, and none for the tracker.
    """

    def add_neck(self, widths: tuple[int, int, int], neck: int) -> None:
        """Make the neck over maps of `widths` at strides 4, 8 and 16; `neck` is the width of what it gives."""
        self.lateral4, self.lateral8, self.lateral16 = (conv_norm(width, neck, 1) for width in widths)
        self.place4, self.place8, self.place16 = (
            nn.Conv2d(4 * len(_PLACE_WAVES) + 2, neck, 1, bias=False) for _ in range(3)
        )

    def climb(self, s4: Tensor, s8: Tensor, s16: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A trunk's maps to `d4`, `d2` and `d1`: the coarse ones join the fine ones."""
        d1 = self.lateral16(s16) + self.place16(places(s16))
        top8 = self.lateral8(s8) + self.place8(places(s8)) + F.interpolate(d1, scale_factor=2.0)
        top4 = self.lateral4(s4) + self.place4(places(s4)) + F.interpolate(top8, scale_factor=2.0)
        return top4, top8, d1


class CompactStudent(PyramidEncoder):
    """Image to the three maps that SAM 3's detector reads.

    Input `image` (B, 3, 16h, 16w), normalized with mean and standard deviation 0.5. Outputs `d4` (B, C, 4h, 4w),
    `d2` (B, C, 2h, 2w) and `d1` (B, C, h, w).
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.stages
        e = config.expansion
        self.stem = nn.Sequential(conv_norm(3, config.stem, 3, 2), nn.SiLU())
        self.stage4 = nn.Sequential(
            InvertedBottleneck(config.stem, fine, e, 2, fused=True), InvertedBottleneck(fine, fine, e, fused=True)
        )
        self.stage8 = nn.Sequential(
            InvertedBottleneck(fine, middle, e, 2, fused=True), InvertedBottleneck(middle, middle, e, fused=True)
        )
        self.stage16 = nn.Sequential(
            InvertedBottleneck(middle, coarse, e, 2, fused=True),
            InvertedBottleneck(coarse, coarse, e, fused=False),
            InvertedBottleneck(coarse, coarse, e, fused=False),
            *(AttentionBlock(coarse, config.attention_heads) for _ in range(config.attention_blocks)),
        )
        self.add_neck(config.stages, config.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s4 = self.stage4(self.stem(image))
        s8 = self.stage8(s4)
        return self.climb(s4, s8, self.stage16(s8))


def places(like: Tensor) -> Tensor:
    """Where each cell of a map lies: x, y in -1..1, and their sines and cosines, (1, 2 + 4 waves, h, w).

    A convolution cannot tell two pigs of one coat apart by what they look like; their places do. A constant at export.
    """
    height, width = like.shape[-2:]
    rows_at, columns_at = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (height, width))
    y = ((rows_at + 0.5) / height * 2 - 1)[:, None].expand(height, width)
    x = ((columns_at + 0.5) / width * 2 - 1)[None, :].expand(height, width)
    rows = [x, y]
    for waves in _PLACE_WAVES:
        for axis in (x, y):
            rows += [torch.sin(math.pi * waves * axis), torch.cos(math.pi * waves * axis)]
    return torch.stack(rows)[None]
