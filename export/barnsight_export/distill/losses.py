"""What a student's feature map is to share with its teacher's, one pure function a term.

The four terms are those of Yang and Hostens (2026, arXiv:2604.27128): direction, cosine, channel scale and raw
magnitude. Two more can be added: attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928) and intermediate
matching (FitNets, Romero et al. 2015, arXiv:1412.6550). Every term is a mean over pictures, so that it does not depend
on how a batch is divided among processes. s and t are the student's and the teacher's map, (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Maps = Mapping[str, Tensor]  # feature maps (B, C, h, w) by name

FOUR_TERMS = ("direction", "cosine", "scale", "magnitude")

_LEAST_VARIANCE = 1e-6  # a constant channel has a deviation whose gradient is finite


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts; the defaults are the paper's, attention and intermediate matching are off."""

    direction: float = 1.0
    cosine: float = 0.5
    scale: float = 0.3
    magnitude: float = 0.1
    attention: float = 0.0
    intermediate: float = 0.0


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s/‖s‖ - t/‖t‖)², lengths taken over the channels of a cell.

    This is (2/C)·(1 - cos): at C channels it repeats the cosine term at a weight of 2/C.
    """
    return F.mse_loss(F.normalize(student, dim=1), F.normalize(teacher, dim=1))


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (1 - s·t / (‖s‖‖t‖)) over cells."""
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


def scale_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (σ(s) - σ(t))² + mean (μ(s) - μ(t))²: deviation and mean of each channel over the cells of a picture."""
    return F.mse_loss(_deviation(student), _deviation(teacher)) + F.mse_loss(student.mean((2, 3)), teacher.mean((2, 3)))


def magnitude_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s - t)²."""
    return F.mse_loss(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean ‖q(s)/‖q(s)‖ - q(t)/‖q(t)‖‖², where q sums a map's squares over its channels: (B, C, h, w) -> (B, hw).

    Widths may differ; a teacher's grid of another size is averaged to the student's.
    """
    teacher = on_grid_of(student, teacher)
    maps = [F.normalize(x.square().sum(1).flatten(1), dim=1) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def intermediate_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """mean (r(s) - t)² / mean t², per picture: how far the student's regressed inner map is off, as a share."""
    teacher = on_grid_of(regressed, teacher)
    return ((regressed - teacher).square().mean((1, 2, 3)) / _energy(teacher).flatten()).mean()


def four_terms(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The paper's terms of one map, in the units that the maps have."""
    return {
        "direction": direction_loss(student, teacher),
        "cosine": cosine_loss(student, teacher),
        "scale": scale_loss(student, teacher),
        "magnitude": magnitude_loss(student, teacher),
    }


def relative_terms(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The four terms without units, so that maps of any width and strength count alike.

    Both maps are divided by the teacher's root mean square in each picture; directions are compared as vectors of
    length √C, which makes that term 2·(1 - cos) at every width.
    """
    strength = _energy(teacher).sqrt()
    terms = four_terms(student / strength, teacher / strength)
    return {**terms, "direction": terms["direction"] * student.shape[1]}


def level_terms(student: Maps, teacher: Maps, levels: Mapping[str, float]) -> dict[str, Tensor]:
    """The four terms over several levels (the neck's d4, d2, d1, t4, t2, t1), each level with its weight.

    One level alone keeps its units, as in the paper; several are compared by `relative_terms`, so that none dominates.
    """
    if len(levels) == 1:
        (name,) = levels
        return four_terms(student[name], teacher[name])
    by_level = {name: relative_terms(student[name], teacher[name]) for name in levels}
    whole = sum(levels.values())
    return {
        term: torch.stack([weight / whole * by_level[name][term] for name, weight in levels.items()]).sum()
        for term in FOUR_TERMS
    }


def weighted_sum(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The total loss; a term of weight 0 is left out, whatever its value."""
    shares = asdict(weights)
    return torch.stack([shares[name] * value for name, value in terms.items() if shares[name]]).sum()


def on_grid_of(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's map averaged to the student's grid: (B, C, H, W) -> (B, C, h, w)."""
    if student.shape[2:] == teacher.shape[2:]:
        return teacher
    height, width = student.shape[2:]
    return F.adaptive_avg_pool2d(teacher, (height, width))


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation of each channel over the cells: (B, C, h, w) -> (B, C)."""
    return (x.var((2, 3), correction=0) + _LEAST_VARIANCE).sqrt()


def _energy(x: Tensor) -> Tensor:
    """Mean square of each picture's map: (B, C, h, w) -> (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
