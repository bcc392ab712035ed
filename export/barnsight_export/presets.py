"""The presets: one architecture at several scales, each with its image size, grid, concepts and widths."""

from __future__ import annotations

from dataclasses import dataclass

from barnsight_export.networks.sam3 import DetectorConfig, Sam3
from barnsight_export.networks.student import StudentConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A model set's shape: square images of `image_size` pixels, a coarse grid of `grid` cells a side."""

    name: str
    image_size: int
    grid: int
    concepts: tuple[str, ...]
    student: StudentConfig
    detector: DetectorConfig

    @property
    def mask_size(self) -> int:
        """Side of a mask in pixels: masks come out at stride 4."""
        return 4 * self.grid

    def build(self) -> Sam3:
        """The preset's networks, with fresh weights."""
        return Sam3(self.student, self.detector, self.concepts)


NANO = Preset(
    name="nano",
    image_size=320,
    grid=20,
    concepts=("pig", "cow"),
    student=StudentConfig(),
    detector=DetectorConfig(
        width=96,
        heads=4,
        feed_forward=384,
        encoder_layers=2,
        decoder_layers=3,
        queries=48,
        upsampling_stages=2,
        dropout=0.0,
        top_k=32,
    ),
)

PRESETS = {preset.name: preset for preset in (NANO,)}
