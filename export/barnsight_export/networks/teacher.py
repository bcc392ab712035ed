"""The nano set's teacher: a vision transformer in miniature under the same neck and heads as its compact student.

The trunk is TinyViT (Wu et al. 2022, arXiv:2207.10666) with GroupNorm, from fresh weights, at windows that fill 320 px.
It is to the compact student what SAM 3's ViT is to the students of full size: larger, slower, and what they follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from barnsight_export.networks.compact import PyramidEncoder, conv_norm
from barnsight_export.networks.tinyvit import TinyViT, TinyViTConfig, to_group_norm

# TinyViT-21M; at 320 px windows of 20 and 10 cells span the maps of strides 16 and 32.
TINY_VIT_21M_320 = TinyViTConfig((96, 192, 384, 576), (6, 12, 18), windows=(10, 20, 10))


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """The trunk, and the width of the maps that the heads read."""

    trunk: TinyViTConfig = TINY_VIT_21M_320
    neck: int = 96


class Teacher(PyramidEncoder):
    """Image to the three maps that SAM 3's detector reads; the trunk's map at stride 32 joins the one at stride 16.

    Input `image` (B, 3, 16h, 16w), normalized with mean and standard deviation 0.5. Outputs `d4` (B, C, 4h, 4w),
    `d2` (B, C, 2h, 2w) and `d1` (B, C, h, w). Raises ValueError for an image that does not fill the trunk's windows.
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        fine, middle, coarse, coarsest = config.trunk.widths
        self.trunk = to_group_norm(TinyViT(config.trunk))
        self.join = conv_norm(coarsest, coarse, 1)
        self.add_neck((fine, middle, coarse), config.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s4, s8, s16, s32 = self.trunk.pyramid(image)
        return self.climb(s4, s8, s16 + F.interpolate(self.join(s32), scale_factor=2.0))
