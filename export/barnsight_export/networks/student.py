"""The two students of SAM 3's vision encoder (Carion et al. 2025, arXiv:2511.16719) on a TinyViT trunk.

`TrunkStudent` (point A) is the student of Yang and Hostens (2026, arXiv:2604.27128): it gives what SAM 3's ViT trunk
gives, and SAM 3's own necks stand on top of it. `NeckStudent` (point B) gives what the necks give, so that they and
their deconvolutions fall away; fine maps come from the trunk's fine stage instead of from the coarse map.

Both take images normalized as SAM 3 takes them, mean and standard deviation 0.5; TinyViT's public weights expect
ImageNet's. `fold_normalization` moves the difference into the trunk's first convolution. All norms are GroupNorm or
LayerNorm and nothing is dropped at random, so training and evaluation compute the same, bit for bit.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from barnsight_engines.manifest import Normalization
from barnsight_export.networks.compact import places
from barnsight_export.networks.tinyvit import TINY_VIT_21M_512, TinyViT, TinyViTConfig, norm_groups, to_group_norm

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_PLACES = places(torch.zeros(1, 1, 1, 1)).shape[1]


class EncoderMaps(NamedTuple):
    """What SAM 3's heads read; C is the heads' width (256), G the grid."""

    d4: Tensor  # (B, C, 4G, 4G) for the detector
    d2: Tensor  # (B, C, 2G, 2G)
    d1: Tensor  # (B, C, G, G)
    t4: Tensor  # (B, C/8, 4G, 4G) for the tracker
    t2: Tensor  # (B, C/4, 2G, 2G)
    t1: Tensor  # (B, C, G, G)


@dataclass(frozen=True, slots=True)
class TrunkStudentConfig:
    """Point A: the trunk, the width of its laterals, of SAM 3's trunk and of its necks, and the grid."""

    trunk: TinyViTConfig = TINY_VIT_21M_512
    lateral: int = 256
    width: int = 1024
    neck: int = 256
    grid: int = 72


@dataclass(frozen=True, slots=True)
class NeckStudentConfig:
    """Point B: the trunk, the width of the heads, that of the map at 4G before its last convolution, and the grid."""

    trunk: TinyViTConfig = TINY_VIT_21M_512
    neck: int = 256
    fine: int = 128
    grid: int = 36


class _Student(nn.Module):
    """A TinyViT trunk that takes images of mean and standard deviation 0.5."""

    trunk: TinyViT

    def __init__(self, trunk: TinyViTConfig) -> None:
        super().__init__()
        self.adopt(TinyViT(trunk))

    def adopt(self, trunk: TinyViT) -> None:
        """Take over a copy of `trunk`, which has BatchNorm and expects ImageNet's normalization."""
        adopted = to_group_norm(trunk)
        first = adopted.patch_embed.conv1
        first.conv = fold_normalization(first.conv, IMAGENET, HALF)
        self.trunk = adopted


class TrunkStudent(_Student):
    """Image to the last map of SAM 3's trunk: (B, 3, S, S) -> (B, 1024, G, G), S a multiple of 512.

    Three laterals, brought to one grid and concatenated, a projection, one residual block, a scale and a shift per
    channel. At full size 40.66 M parameters: TinyViT-21M-512 without its classifier 20.69 (the 48 biases of the
    folded normalization included), laterals 0.30, projection 0.79, residual block 18.88, scale and shift 0.002.
    Raises ValueError for an image that does not fill the trunk's windows.
    """

    def __init__(self, config: TrunkStudentConfig) -> None:
        super().__init__(config.trunk)
        self.config = config
        self.laterals = _laterals(config.trunk, config.lateral)
        self.project = _conv_norm_gelu(3 * config.lateral, config.width)
        self.refine = Refine(config.width)
        self.scale = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, config.width, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        maps = [lateral(s) for lateral, s in zip(self.laterals, self.trunk(image), strict=True)]
        refined: Tensor = self.refine(self.project(_gather(maps, self.config.grid)))
        return refined * self.scale + self.shift


class NeckStudent(_Student):
    """Image to the maps that SAM 3's detector and tracker read: (B, 3, S, S), S a multiple of 512, to `EncoderMaps`.

    The coarse map is made as in `TrunkStudent`, at the heads' width. The middle and the fine map join what lies below
    them with stage 1 of the trunk; each learns where its cells lie, since a teacher's position embedding shows in its
    features. Raises ValueError for an image that does not fill the trunk's windows.
    """

    def __init__(self, config: NeckStudentConfig) -> None:
        super().__init__(config.trunk)
        self.config = config
        neck, fine = config.neck, config.fine
        self.laterals = _laterals(config.trunk, neck)
        self.project = _conv_norm_gelu(3 * neck, neck)
        self.place1, self.place2, self.place4 = (_place(width) for width in (neck, neck, fine))
        self.refine = Refine(neck)
        self.middle = _conv_norm_gelu(neck, neck, 3)
        self.narrow_lateral, self.narrow_middle = (nn.Conv2d(neck, fine, 1, bias=False) for _ in range(2))
        self.fine = _conv_norm_gelu(fine, fine, 3)
        self.d4 = nn.Conv2d(fine, neck, 3, padding=1)
        self.d2, self.d1, self.t1 = (nn.Conv2d(neck, neck, 3, padding=1) for _ in range(3))
        self.t4 = nn.Conv2d(fine, neck // 8, 1)
        self.t2 = nn.Conv2d(neck, neck // 4, 1)

    def forward(self, image: Tensor) -> EncoderMaps:
        grid = self.config.grid
        maps = [lateral(s) for lateral, s in zip(self.laterals, self.trunk(image), strict=True)]
        coarse = self.refine(_placed(self.project(_gather(maps, grid)), self.place1))
        middle = _bilinear(maps[0], 2 * grid) + _bilinear(coarse, 2 * grid)
        middle = self.middle(_placed(middle, self.place2))
        # One by one convolutions commute with resizing: narrow first, it is cheaper.
        fine = _bilinear(self.narrow_lateral(maps[0]), 4 * grid) + _bilinear(self.narrow_middle(middle), 4 * grid)
        fine = self.fine(_placed(fine, self.place4))
        return EncoderMaps(
            self.d4(fine), self.d2(middle), self.d1(coarse), self.t4(fine), self.t2(middle), self.t1(coarse)
        )


class Refine(nn.Module):
    """A residual block of two 3x3 convolutions that starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last_conv, last_norm = _conv_norm(channels, channels, 3)
        nn.init.zeros_(last_norm.weight)
        self.body = nn.Sequential(*_conv_norm(channels, channels, 3), nn.GELU(), last_conv, last_norm)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = x + self.body(x)
        return refined


@torch.no_grad()
def fold_normalization(conv: nn.Conv2d, expected: Normalization, given: Normalization) -> nn.Conv2d:
    """A convolution that takes images normalized as `given` and computes what `conv` does on `expected` ones.

    `conv` itself stays as it is; the copy always has a bias. The two are equal wherever the kernel lies inside the
    image. Where it reaches into the zero padding they differ: there `conv` sees the mean color of `expected`, the
    copy sees that of `given`. A student is trained with the folded convolution, so it never meets the difference;
    a network that must not change at its borders needs its own normalization instead.
    """
    # x_expected = x_given * ratio + offset, channel by channel
    scale = torch.tensor(expected.std).reciprocal()
    ratio = (torch.tensor(given.std) * scale).to(conv.weight)[:, None, None]
    offset = ((torch.tensor(given.mean) - torch.tensor(expected.mean)) * scale).to(conv.weight)[:, None, None]
    shift = (conv.weight * offset).sum(dim=(1, 2, 3))
    folded = deepcopy(conv)
    folded.weight.mul_(ratio)
    folded.bias = nn.Parameter(shift if conv.bias is None else conv.bias + shift)
    return folded


def area_resize(x: Tensor, side: int) -> Tensor:
    """The "area" mode of `interpolate`, (B, C, h, w) -> (B, C, side, side), as two products, which export plainly."""
    height, width = (_averages(cells, side).to(x) for cells in x.shape[-2:])
    return height @ x @ width.T


def _averages(cells: int, side: int) -> Tensor:
    """Row i averages the cells that the i-th of `side` equal parts touches: (side, cells)."""
    cell, part = torch.arange(cells), torch.arange(side)[:, None]
    touched = ((cell + 1) * side > part * cells) & (cell * side < (part + 1) * cells)
    return touched / touched.sum(dim=1, keepdim=True)


def _laterals(trunk: TinyViTConfig, width: int) -> nn.ModuleList:
    return nn.ModuleList(_conv_norm_gelu(inputs, width) for inputs in trunk.widths[1:])


def _conv_norm(inputs: int, outputs: int, kernel: int) -> tuple[nn.Conv2d, nn.GroupNorm]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv, nn.GroupNorm(norm_groups(outputs), outputs)


def _conv_norm_gelu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(inputs, outputs, kernel), nn.GELU())


def _place(width: int) -> nn.Conv2d:
    return nn.Conv2d(_PLACES, width, 1, bias=False)


def _placed(x: Tensor, place: nn.Conv2d) -> Tensor:
    """Add what `place` makes of each cell's position."""
    located: Tensor = x + place(places(x).to(x))
    return located


def _gather(maps: list[Tensor], grid: int) -> Tensor:
    """Maps of stages 1, 2, 3 on one grid: 3 of (B, C, ·, ·) -> (B, 3C, G, G). Stage 1 is finer, so it is averaged."""
    fine, *coarser = maps
    return torch.cat([area_resize(fine, grid), *(_bilinear(m, grid) for m in coarser)], dim=1)


def _bilinear(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
