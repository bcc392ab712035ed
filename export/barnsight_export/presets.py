"""The presets: one architecture at several scales, each with its image size, grid, concepts and widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from barnsight_export.networks.compact import CompactConfig
from barnsight_export.networks.sam3 import PROMPT_TOKENS, DetectorConfig, EncoderConfig, Sam3
from barnsight_export.networks.student import NeckStudentConfig, TrunkStudentConfig
from barnsight_export.networks.teacher import TeacherConfig
from barnsight_export.networks.tracker import TrackerConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A model set's shape: images of `image_size` pixels and a coarse grid of `grid` cells, (height, width) each.

    Every concept's prompt has `prompt_tokens` tokens. SAM 3's text encoder makes three of a common word: start, word
    and end.
    """

    name: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    concepts: tuple[str, ...]
    student: EncoderConfig
    detector: DetectorConfig
    prompt_tokens: int = PROMPT_TOKENS
    tracker: TrackerConfig | None = None

    @property
    def mask_size(self) -> tuple[int, int]:
        """A mask's (height, width): a quarter of the grid's stride."""
        return 4 * self.grid[0], 4 * self.grid[1]

    def size_of(self, side_px: float) -> tuple[int, int]:
        """Height and width of an image of the preset's shape with about as many pixels as a square of `side_px`.

        Both are whole cells of the grid.
        """
        share = side_px / math.sqrt(math.prod(self.image_size))
        height, width = (
            pixels // cells * max(1, round(cells * share))
            for pixels, cells in zip(self.image_size, self.grid, strict=True)
        )
        return height, width

    def build(self) -> Sam3:
        """The preset's networks, with fresh weights."""
        return Sam3(self.student, self.detector, self.concepts, self.prompt_tokens)


NANO = Preset(
    name="nano",
    image_size=(288, 432),  # between 4:3 and 16:9, so that animals of most cameras keep their shape
    grid=(18, 27),
    concepts=("pig", "cow"),
    student=CompactConfig(),
    detector=DetectorConfig(
        width=96,
        heads=4,
        feed_forward=384,
        encoder_layers=2,
        decoder_layers=3,
        queries=64,
        proposals=True,
        upsampling_stages=2,
        dropout=0.0,
        top_k=32,
    ),
    tracker=TrackerConfig(
        grid=(18, 27),
        patch=16,
        width=96,
        memory_width=24,
        attention_layers=2,
        feed_forward=384,
        decoder_heads=4,
        memories=4,  # the attention's cost grows with them, and a CPU has to bear it
    ),
)

# Its teacher in miniature: a ViT under the same heads, for distillation on the simulated barn. Windows tile a square.
NANO_TEACHER = replace(
    NANO, name="nano-teacher", image_size=(320, 320), grid=(20, 20), student=TeacherConfig(), tracker=None
)

# The paper's own scale: the student in the place of SAM 3's trunk, everything else stock.
ORIN = Preset(
    name="orin",
    image_size=(1024, 1024),
    grid=(72, 72),
    concepts=("pig", "cow", "sheep"),
    student=TrunkStudentConfig(),
    detector=DetectorConfig(),
    prompt_tokens=3,
    tracker=TrackerConfig(),
)

# Its fast variant: the student in the place of the necks too, on half the grid.
ORIN_B = Preset(
    name="orin-b",
    image_size=(512, 512),
    grid=(36, 36),
    concepts=("pig", "cow", "sheep"),
    student=NeckStudentConfig(),
    detector=DetectorConfig(),
    prompt_tokens=3,
    tracker=TrackerConfig(grid=(36, 36)),
)

PRESETS = {preset.name: preset for preset in (NANO, NANO_TEACHER, ORIN, ORIN_B)}
