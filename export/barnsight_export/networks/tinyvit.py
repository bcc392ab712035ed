"""TinyViT (Wu et al., ECCV 2022, arXiv:2207.10666): a small hierarchical vision transformer, the student's trunk.

Two strided convolutions, a stage of inverted bottlenecks, then three stages of window attention with a depthwise
convolution between attention and MLP. Attention carries a learned bias per head and offset, as in LeViT (Graham et al.
2021). Parameters bear timm's names, so that its public checkpoints load by key; there is no classifier.

Public weights come with BatchNorm. `to_group_norm` turns each into a GroupNorm of the same scale and shift, after which
a picture's features depend neither on the other pictures of its batch nor on whether the network is training.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EXPANSION = 4  # of inverted bottlenecks and of MLPs
_MOST_GROUPS = 32

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TinyViTConfig:
    """Widths, depths and windows of a TinyViT; stages 0 to 3 end at strides 4, 8, 16 and 32.

    `heads` and `windows` (side in cells) are those of the three attention stages. `drop_path` is the rate at which
    the last residual branch is dropped in training, rising from 0 in the first one; at 0 training changes nothing.
    """

    widths: tuple[int, int, int, int]
    heads: tuple[int, int, int]
    windows: tuple[int, int, int] = (7, 14, 7)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    drop_path: float = 0.0

    @property
    def image_multiple(self) -> int:
        """An image's sides must be multiples of so many pixels, for windows to fill every stage."""
        return math.lcm(*(8 * 2**stage * window for stage, window in enumerate(self.windows)))


TINY_VIT_5M = TinyViTConfig((64, 128, 160, 320), (4, 5, 10))
TINY_VIT_11M = TinyViTConfig((64, 128, 256, 448), (4, 8, 14))
TINY_VIT_21M = TinyViTConfig((96, 192, 384, 576), (6, 12, 18))
TINY_VIT_21M_384 = TinyViTConfig((96, 192, 384, 576), (6, 12, 18), windows=(12, 24, 12))
TINY_VIT_21M_512 = TinyViTConfig((96, 192, 384, 576), (6, 12, 18), windows=(16, 32, 16))

TINY_VITS = {
    "tiny_vit_5m": TINY_VIT_5M,
    "tiny_vit_11m": TINY_VIT_11M,
    "tiny_vit_21m": TINY_VIT_21M,
    "tiny_vit_21m_384": TINY_VIT_21M_384,
    "tiny_vit_21m_512": TINY_VIT_21M_512,
}


class ConvNorm(nn.Sequential):
    """A convolution without bias and its norm, `bn` whatever its kind, as in the public checkpoints."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class PatchEmbed(nn.Module):
    """Two strided convolutions: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, outputs // 2, 3, 2)
        self.act = nn.GELU()
        self.conv2 = ConvNorm(outputs // 2, outputs, 3, 2)

    def forward(self, image: Tensor) -> Tensor:
        embedded: Tensor = self.conv2(self.act(self.conv1(image)))
        return embedded


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter in space, narrow, add, activate."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        hidden = channels * _EXPANSION
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        filtered = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(x + self.drop_path(filtered))


class PatchMerging(nn.Module):
    """Halve the map: (B, C, h, w) -> (B, C', h/2, w/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, 2, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class Attention(nn.Module):
    """Self-attention within a window of side `window`, biased by how far two cells lie apart: (n, window², C)."""

    distances: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))  # at |dy| · window + |dx|
        cells = torch.arange(window)
        self.register_buffer("distances", (cells[:, None] - cells).abs().flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        count, cells, channels = x.shape
        # Each head's rows hold its query, key and value side by side: (n, cells, heads, 3, C / heads).
        qkv = self.qkv(self.norm(x)).reshape(count, cells, self.heads, 3, channels // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (n, heads, cells, C / heads)
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1) + self.bias()
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(count, cells, channels)
        projected: Tensor = self.proj(mixed)
        return projected

    def bias(self) -> Tensor:
        """The bias of every pair of cells, (heads, window², window²).

        Two gathers by axis keep the index at window² entries; one gather would need window⁴, megabytes in a graph.
        """
        w = self.window
        table = self.attention_biases.reshape(self.heads, w, w)
        rows = table.index_select(1, self.distances)  # (heads, w · w, w)
        pairs = rows.index_select(2, self.distances).reshape(self.heads, w, w, w, w)  # (heads, y, y', x, x')
        return pairs.transpose(2, 3).reshape(self.heads, w * w, w * w)


class Mlp(nn.Module):
    """Norm, widen, activate, narrow, over the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, channels * _EXPANSION)
        self.fc2 = nn.Linear(channels * _EXPANSION, channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return mixed


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution across windows, an MLP: (B, C, h, w) to the same shape."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(channels, heads, window)
        self.mlp = Mlp(channels)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        w = self.window
        # (B, C, h, w) -> (B · windows, window², C) and back
        windows = x.reshape(batch, channels, height // w, w, width // w, w).permute(0, 2, 4, 3, 5, 1)
        attended = self.attn(windows.reshape(-1, w * w, channels)).reshape(windows.shape)
        x = x + self.drop_path(attended.permute(0, 5, 1, 3, 2, 4).reshape(x.shape))
        x = self.local_conv(x)
        mixed: Tensor = x + self.drop_path(self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return mixed


class ConvStage(nn.Module):
    """Inverted bottlenecks at one size."""

    def __init__(self, channels: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(MBConv(channels, rate) for rate in drop_paths))

    def forward(self, x: Tensor) -> Tensor:
        filtered: Tensor = self.blocks(x)
        return filtered


class AttentionStage(nn.Module):
    """A map halved, then attended to window by window."""

    def __init__(self, inputs: int, outputs: int, heads: int, window: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.downsample = PatchMerging(inputs, outputs)
        self.blocks = nn.Sequential(*(TinyViTBlock(outputs, heads, window, rate) for rate in drop_paths))

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.blocks(self.downsample(x))
        return attended


class TinyViT(nn.Module):
    """An image to the features of stages 1, 2 and 3.

    Input `image` (B, 3, H, W), normalized; H and W are multiples of `config.image_multiple`, else ValueError. Outputs
    (B, C1, H/8, W/8), (B, C2, H/16, W/16) and (B, C3, H/32, W/32), with C1 to C3 the last three of `config.widths`.
    """

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config = config
        first, *rest = config.widths
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        drop_paths = [[rates.pop(0) for _ in range(depth)] for depth in config.depths]
        self.patch_embed = PatchEmbed(first)
        self.stages = nn.ModuleList([ConvStage(first, drop_paths[0])])
        for inputs, outputs, heads, window, drops in zip(
            config.widths, rest, config.heads, config.windows, drop_paths[1:], strict=False
        ):
            self.stages.append(AttentionStage(inputs, outputs, heads, window, drops))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, fine, middle, coarse = self.pyramid(image)
        return fine, middle, coarse

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """As `forward`, with the features of stage 0 before the others: (B, C0, H/4, W/4)."""
        height, width = image.shape[-2:]
        multiple = self.config.image_multiple
        if height % multiple or width % multiple:
            raise ValueError(
                f"an image of {height} x {width} px does not fill windows of {self.config.windows} cells: "
                f"resize it to multiples of {multiple} px"
            )
        x = self.patch_embed(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a picture's whole branch at `rate`, scale up the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = torch.rand((len(branch),) + (1,) * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept / (1.0 - self.rate)


def to_group_norm(module: Module) -> Module:
    """A copy of `module` in which each BatchNorm is a GroupNorm with its scale and shift; running statistics go.

    Groups are the largest divisor of the channels up to 32. `module` itself stays as it is.
    """
    copied = deepcopy(module)
    for parent in copied.modules():
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, _group_norm(child))
    return copied


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm over `channels`: their largest divisor up to 32."""
    return max(groups for groups in range(1, _MOST_GROUPS + 1) if channels % groups == 0)


def _group_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.GroupNorm:
    channels = norm.num_features
    grouped = nn.GroupNorm(norm_groups(channels), channels, norm.eps, norm.affine)
    if norm.affine:
        grouped.weight, grouped.bias = norm.weight, norm.bias
    return grouped
