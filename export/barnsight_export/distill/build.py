"""Students and teachers of a preset: which module, which input, which maps, and where the weights come from.

| preset           | student        | teacher                             | maps compared            |
| ---------------- | -------------- | ----------------------------------- | ------------------------ |
| `orin`           | `TrunkStudent` | facebook/sam3, its trunk at 1008 px | trunk                    |
| `orin-b`         | `NeckStudent`  | facebook/sam3, its necks at 504 px  | d4, d2, d1, t4, t2, t1   |
| nano's scale     | its encoder    | a trained detector of that scale    | d4, d2, d1               |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from barnsight_export.checkpoints import load, load_tiny_vit, read
from barnsight_export.distill.pseudo import Sam3Labeler
from barnsight_export.distill.sam3 import PATCH_PX, Sam3Trunk, load_detector, load_necks, load_vision
from barnsight_export.distill.teacher import FrozenTeacher, Input, Network, Tap
from barnsight_export.errors import ExportUsageError
from barnsight_export.networks.compact import PyramidEncoder
from barnsight_export.networks.sam3 import PyramidConfig, build_pyramid
from barnsight_export.networks.student import EncoderMaps, NeckStudent, TrunkStudent, TrunkStudentConfig
from barnsight_export.presets import Preset
from barnsight_export.train.detector import load_trained

Taps = Mapping[str, Tap]


def compared_maps(preset: Preset) -> tuple[str, ...]:
    """Names of the maps in which a preset's student follows its teacher."""
    if isinstance(preset.student, TrunkStudentConfig):
        return ("trunk",)
    return EncoderMaps._fields[:3] if isinstance(preset.student, PyramidConfig) else EncoderMaps._fields


def build_student(
    preset: Preset,
    trunk: Path | None = None,
    init: Path | None = None,
    taps: Taps | None = None,
    *,
    taught_by: Preset | None = None,
) -> Network:
    """The preset's student: fresh, on a public TinyViT (`trunk`), or as an earlier run left it (`init`).

    It sees what the preset `taught_by` sees, or what its own does; at nano's scale no parameter depends on that.
    Raises ExportUsageError where the preset has no TinyViT, and as `checkpoints` does for files that do not fit.
    """
    config = preset.student
    student: PyramidEncoder | TrunkStudent | NeckStudent
    if isinstance(config, PyramidConfig):
        student = build_pyramid(config)
    else:
        student = TrunkStudent(config) if isinstance(config, TrunkStudentConfig) else NeckStudent(config)
    if trunk is not None:
        if isinstance(student, PyramidEncoder):
            raise ExportUsageError(f"--trunk: the student of '{preset.name}' has no TinyViT; leave it out")
        load_tiny_vit(trunk, student)
    if init is not None:
        load(init, student, read(init))
    return Network(student, Input((taught_by or preset).image_size), compared_maps(preset), taps)


def build_teacher(
    preset: Preset, checkpoint: Path, taps: Taps | None = None, device: torch.device | str = "cpu"
) -> FrozenTeacher:
    """The teacher that `preset` describes, from facebook/sam3 or from a detector's `checkpoint.pt`.

    Raises DataMissingError where there is no file, DataError for one that does not fit.
    """
    module: nn.Module
    if isinstance(preset.student, PyramidConfig):
        module, size = load_trained(checkpoint, preset).encoder, preset.image_size
    else:
        grid, size = _square(preset)
        if isinstance(preset.student, TrunkStudentConfig):
            module = Sam3Trunk(load_vision(checkpoint, grid))
        else:
            module = load_necks(checkpoint, grid)
    half = torch.bfloat16 if torch.device(device).type == "cuda" else None
    return FrozenTeacher(Network(module.to(device), Input(size), compared_maps(preset), taps), half)


def build_labeler(preset: Preset, checkpoint: Path, concept: str) -> Sam3Labeler:
    """The teacher that finds animals of `concept`; for SAM 3, `checkpoint` is the public repository's folder.

    Raises ExportUsageError for a concept that the preset does not have, and as `build_teacher` does.
    """
    if concept not in preset.concepts:
        raise ExportUsageError(
            f"'{preset.name}' knows no concept '{concept}'; choose one of {', '.join(preset.concepts)}"
        )
    number = preset.concepts.index(concept)
    if isinstance(preset.student, PyramidConfig):
        return Sam3Labeler(load_trained(checkpoint, preset), number, preset.image_size)
    grid, size = _square(preset)
    return Sam3Labeler(load_detector(checkpoint, grid, preset.detector, preset.concepts), number, size)


def _square(preset: Preset) -> tuple[int, tuple[int, int]]:
    """The side of the grid on which SAM 3 itself works, always a square, and the size of the pictures for it."""
    side = preset.grid[0]
    return side, (PATCH_PX * side, PATCH_PX * side)
