"""Surfaces of the barn, painted from a seed: floors by family, stains, and metal or wood for walls and gates.

A texture is a periodic uint8 tile (S, S, 3) and its side in meters. Floor families are split between train, val and
test, so that a score on the test split is a score on floors that nobody trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator

TILE_PX = 512


@dataclass(frozen=True, slots=True)
class Texture:
    tile: Bytes
    side_m: float


def noise(rng: Rng, size_px: tuple[int, int], cells: int, octaves: int = 4, persistence: float = 0.55) -> Floats:
    """Periodic fractal noise (h, w), mean 0, standard deviation 1: one of a few fixed fields, shifted and flipped."""
    field = _noise_field(size_px, cells, octaves, persistence, int(rng.integers(6)))
    shift_y, shift_x, flips = (int(v) for v in rng.integers(0, (*size_px, 4)))
    field = field[:: -1 if flips & 1 else 1, :: -1 if flips & 2 else 1]
    return np.roll(field, (shift_y, shift_x), axis=(0, 1))


@cache
def _noise_field(size_px: tuple[int, int], cells: int, octaves: int, persistence: float, variant: int) -> Floats:
    """Drawn once per process from a fixed seed, since drawing anew would take most of a scene's time."""
    rng = np.random.default_rng([*size_px, cells, octaves, int(persistence * 1000), variant])
    height, width = size_px
    total = np.zeros(size_px, np.float32)
    for octave in range(octaves):
        n = max(cells << octave, 2)
        if n > min(size_px):
            break
        pad = np.pad(rng.standard_normal((n, n), dtype=np.float32), 2, mode="wrap")
        scale_y, scale_x = height / n, width / n
        big = cv2.resize(pad, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_CUBIC)
        top, left = round(2 * scale_y), round(2 * scale_x)
        total += persistence**octave * big[top : top + height, left : left + width]
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _color(
    rng: Rng, low: tuple[float, float, float], high: tuple[float, float, float], jitter: float = 0.025
) -> Floats:
    """A color between two, along one line, with a little jitter: rooms differ more in tone than in hue."""
    t = rng.random()
    color = np.array(low) * (1 - t) + np.array(high) * t + rng.normal(0, jitter, 3)
    return np.clip(color, 0.02, 0.98).astype(np.float32)


def _tile(rgb: Floats) -> Bytes:
    return np.asarray(np.clip(rgb * 255.0, 0, 255), np.uint8)


def _ramp() -> tuple[Floats, Floats]:
    """Pixel coordinates of the tile in [0, 1): x, y each (S, S)."""
    unit = (np.arange(TILE_PX, dtype=np.float32) + 0.5) / TILE_PX
    x, y = np.meshgrid(unit, unit)
    return x.astype(np.float32), y.astype(np.float32)


def _saw(value: Floats, periods: int, phase: npt.NDArray[np.floating[Any]] | float = 0.0) -> Floats:
    return np.asarray(np.mod(value * periods + phase, 1.0), np.float32)


def _mottled(rng: Rng, color: Floats, depth: float, cells: int = 6) -> Floats:
    """A flat color with fractal variation: (S, S, 3)."""
    tone = 1 + depth * noise(rng, (TILE_PX, TILE_PX), cells, 6, 0.65)
    return np.asarray(color * tone[..., None], np.float32)


def _gaps(rng: Rng, rgb: Floats, gap: npt.NDArray[np.bool_], dark: float) -> Floats:
    """Cut openings into a surface: nearly black, soft at the rim."""
    alpha = cv2.GaussianBlur(gap.astype(np.float32), (0, 0), 0.8)[..., None]
    below = np.float32(dark) * _color(rng, (0.5, 0.45, 0.4), (1.0, 1.0, 1.0))
    return np.asarray(rgb * (1 - alpha) + below * alpha, np.float32)


def slats(rng: Rng) -> Texture:
    side = rng.uniform(1.6, 2.6)
    periods = int(side / rng.uniform(0.09, 0.16))
    x, y = _ramp()
    rgb = _mottled(rng, _color(rng, (0.25, 0.23, 0.2), (0.72, 0.69, 0.62)), 0.1)
    gap = _saw(x, periods) < rng.uniform(0.14, 0.24)
    beams = int(rng.integers(1, 5))
    gap &= _saw(y, beams, rng.random()) > rng.uniform(0.06, 0.2)
    return Texture(_tile(_gaps(rng, rgb, gap, rng.uniform(0.05, 0.25))), side)


def plastic_grid(rng: Rng) -> Texture:
    side = rng.uniform(0.8, 1.6)
    rows = int(side / rng.uniform(0.022, 0.05))
    columns = int(side / rng.uniform(0.06, 0.12))
    x, y = _ramp()
    tones: list[tuple[float, float, float]] = [
        (0.2, 0.35, 0.24),
        (0.28, 0.38, 0.5),
        (0.75, 0.72, 0.66),
        (0.3, 0.3, 0.31),
        (0.55, 0.5, 0.4),
    ]
    tone = tones[int(rng.integers(len(tones)))]
    rgb = _mottled(rng, _color(rng, tone, (0.5, 0.5, 0.47)), 0.06)
    row = np.floor(y * rows)
    gap = (_saw(y, rows) < rng.uniform(0.28, 0.5)) & (_saw(x, columns, 0.5 * np.mod(row, 2)) > rng.uniform(0.15, 0.3))
    return Texture(_tile(_gaps(rng, rgb, gap, rng.uniform(0.05, 0.3))), side)


def concrete(rng: Rng) -> Texture:
    rgb = _mottled(rng, _color(rng, (0.3, 0.29, 0.27), (0.78, 0.76, 0.72)), rng.uniform(0.05, 0.16), 3)
    if rng.random() < 0.4:  # grooved against slipping
        x, _ = _ramp()
        periods = int(rng.integers(12, 40))
        rgb = np.where((_saw(x, periods) < 0.12)[..., None], rgb * 0.72, rgb).astype(np.float32)
    return Texture(_tile(rgb), rng.uniform(2.0, 4.0))


def _strewn(rng: Rng, ground: Floats, count: int, length_px: tuple[float, float], low: Floats, high: Floats) -> Bytes:
    """Stalks or shavings scattered over a ground, later ones on top."""
    tile = _tile(ground)
    xy = rng.uniform(0, TILE_PX, (count, 2))
    angle, length = rng.uniform(0, np.pi, count), rng.uniform(*length_px, count)
    delta = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
    shade = rng.random((count, 1)) * (high - low) + low
    ends = np.round(np.stack([xy, xy + delta], axis=1)).astype(np.int32).tolist()
    colors = (shade * rng.uniform(0.6, 1.1, (count, 1)) * 255).clip(0, 255).tolist()
    for (a, b), color in zip(ends, colors, strict=True):
        cv2.line(tile, a, b, color, 1, cv2.LINE_AA)
    return tile


def straw(rng: Rng) -> Texture:
    ground = _mottled(rng, _color(rng, (0.3, 0.22, 0.12), (0.6, 0.5, 0.3)), 0.2)
    low, high = _color(rng, (0.45, 0.34, 0.16), (0.6, 0.5, 0.3)), _color(rng, (0.75, 0.62, 0.35), (0.9, 0.82, 0.6))
    return Texture(_strewn(rng, ground, int(rng.integers(600, 2200)), (10, 45), low, high), rng.uniform(1.6, 3.0))


def mat(rng: Rng) -> Texture:
    x, y = _ramp()
    rgb = _mottled(rng, _color(rng, (0.1, 0.1, 0.11), (0.34, 0.33, 0.33)), 0.08)
    periods = int(rng.integers(14, 40))
    studs = np.hypot(_saw(x, periods) - 0.5, _saw(y, periods) - 0.5) < 0.25
    rgb = np.where(studs[..., None], rgb * rng.uniform(0.75, 1.3), rgb).astype(np.float32)
    seam = (x < 0.012) | (y < 0.008)
    return Texture(_tile(_gaps(rng, rgb, seam, 0.1)), rng.uniform(1.0, 2.0))


def dirt(rng: Rng) -> Texture:
    rgb = _mottled(rng, _color(rng, (0.2, 0.15, 0.1), (0.5, 0.42, 0.33)), rng.uniform(0.15, 0.35), 4)
    rgb *= 1 + 0.12 * noise(rng, (TILE_PX, TILE_PX), 256, 1)[..., None]
    return Texture(_tile(rgb), rng.uniform(2.0, 4.0))


def slotted_concrete(rng: Rng) -> Texture:
    x, y = _ramp()
    side = rng.uniform(1.2, 2.0)
    rgb = _mottled(rng, _color(rng, (0.3, 0.28, 0.25), (0.66, 0.64, 0.58)), 0.1)
    gap = (_saw(x, int(side / rng.uniform(0.08, 0.12))) < 0.2) & (_saw(y, int(side / rng.uniform(0.3, 0.45))) > 0.15)
    return Texture(_tile(_gaps(rng, rgb, gap, rng.uniform(0.08, 0.3))), side)


def pavers(rng: Rng) -> Texture:
    x, y = _ramp()
    rows, columns = int(rng.integers(6, 14)), int(rng.integers(3, 7))
    row = np.floor(y * rows)
    shift = 0.5 * np.mod(row, 2)
    cell = (row * 31 + np.floor(x * columns + shift) * 17).astype(np.int64) % 64
    rgb = _mottled(rng, _color(rng, (0.4, 0.2, 0.14), (0.62, 0.55, 0.48)), 0.1)
    rgb = rgb * rng.uniform(0.8, 1.15, 64).astype(np.float32)[cell][..., None]
    joint = (_saw(y, rows) < 0.06) | (_saw(x, columns, shift) < 0.03)
    return Texture(_tile(_gaps(rng, rgb, joint, 0.3)), rng.uniform(1.2, 2.4))


def tiles(rng: Rng) -> Texture:
    x, y = _ramp()
    periods = int(rng.integers(4, 9))
    rgb = _mottled(rng, _color(rng, (0.45, 0.4, 0.36), (0.82, 0.8, 0.76)), 0.05)
    joint = (_saw(x, periods) < 0.05) | (_saw(y, periods) < 0.05)
    return Texture(_tile(_gaps(rng, rgb, joint, 0.35)), rng.uniform(1.0, 2.4))


def woven_plastic(rng: Rng) -> Texture:
    x, y = _ramp()
    rows = 2 * int(rng.integers(12, 20))
    rgb = _mottled(rng, _color(rng, (0.2, 0.22, 0.3), (0.7, 0.68, 0.5)), 0.05)
    odd = np.mod(np.floor(x * rows / 2) + np.floor(y * rows / 2), 2) > 0
    along, across = np.where(odd, x, y), np.where(odd, y, x)
    gap = (_saw(across, rows) < 0.42) & (np.abs(_saw(along, rows // 2) - 0.5) < 0.38)
    return Texture(_tile(_gaps(rng, rgb, gap, rng.uniform(0.05, 0.25))), rng.uniform(0.8, 1.4))


def shavings(rng: Rng) -> Texture:
    ground = _mottled(rng, _color(rng, (0.4, 0.3, 0.2), (0.7, 0.58, 0.42)), 0.16)
    low, high = _color(rng, (0.5, 0.38, 0.24), (0.6, 0.5, 0.36)), _color(rng, (0.8, 0.68, 0.5), (0.9, 0.84, 0.7))
    return Texture(_strewn(rng, ground, 2200, (2, 8), low, high), rng.uniform(1.4, 2.4))


def planks(rng: Rng) -> Texture:
    _, y = _ramp()
    rows = int(rng.integers(8, 16))
    grain = noise(rng, (TILE_PX, 64), 4, 5)
    rgb = _color(rng, (0.3, 0.22, 0.14), (0.62, 0.5, 0.36)) * (
        1 + 0.12 * cv2.resize(grain, (TILE_PX, TILE_PX), interpolation=cv2.INTER_LINEAR)[..., None]
    )
    rgb = rgb * rng.uniform(0.8, 1.15, rows).astype(np.float32)[np.floor(y * rows).astype(np.int64)][..., None]
    return Texture(_tile(_gaps(rng, rgb.astype(np.float32), _saw(y, rows) < 0.06, 0.15)), rng.uniform(1.2, 2.0))


def honeycomb(rng: Rng) -> Texture:
    x, y = _ramp()
    rows = 2 * int(rng.integers(10, 18))
    shift = 0.5 * np.mod(np.floor(y * rows), 2)
    rgb = _mottled(rng, _color(rng, (0.3, 0.3, 0.32), (0.6, 0.6, 0.58)), 0.08)
    hole = np.hypot(_saw(x, rows, shift) - 0.5, _saw(y, rows) - 0.5) < rng.uniform(0.24, 0.36)
    return Texture(_tile(_gaps(rng, rgb, hole, rng.uniform(0.05, 0.25))), rng.uniform(0.7, 1.2))


def steel_bars(rng: Rng) -> Texture:
    x, y = _ramp()
    side = rng.uniform(0.7, 1.2)
    periods = int(side / rng.uniform(0.02, 0.03))
    rgb = _mottled(rng, _color(rng, (0.35, 0.34, 0.34), (0.7, 0.69, 0.67)), 0.08)
    gap = (_saw(x, periods) < 0.45) & (_saw(y, int(rng.integers(5, 9))) > 0.08)
    return Texture(_tile(_gaps(rng, rgb, gap, rng.uniform(0.08, 0.3))), side)


FloorPainter = Callable[[Rng], Texture]
FLOORS: dict[str, FloorPainter] = {
    painter.__name__: painter
    for painter in (
        slats, plastic_grid, concrete, straw, mat, dirt, slotted_concrete,
        tiles, woven_plastic, shavings,
        planks, honeycomb, pavers, steel_bars,
    )
}  # fmt: skip
FLOOR_FAMILIES: dict[str, tuple[str, ...]] = {
    "train": ("slats", "plastic_grid", "concrete", "straw", "mat", "dirt", "slotted_concrete"),
    "val": ("tiles", "woven_plastic", "shavings"),
    "test": ("planks", "honeycomb", "pavers", "steel_bars"),
}


def stains(rng: Rng) -> Bytes:
    """Wear, manure and wet patches of a whole pen as a multiplier (256, 256, 3); 255 leaves the floor as it is."""
    wet = noise(rng, (256, 256), 3, 5, 0.6)
    manure = noise(rng, (256, 256), 8, 5, 0.6)
    tone = np.ones((256, 256, 3), np.float32)
    strength = rng.uniform(0.0, 0.45)
    tone *= 1 - strength * np.clip((wet - rng.uniform(-0.3, 1.0)) * 2, 0, 1)[..., None]
    brown = np.array([0.45, 0.34, 0.22], np.float32) * rng.uniform(0.7, 1.5)
    cover = rng.uniform(0.2, 0.9) * np.clip((manure - rng.uniform(0.4, 2.5)) * 3, 0, 1)[..., None]
    tone = tone * (1 - cover) + brown * cover
    return _tile(tone * (1 - 0.1 * rng.random()))


def panel_paint(rng: Rng, kind: str) -> Bytes:
    """The face of a wall, gate or box as RGBA (96, 192, 4): ``solid``, ``boards``, ``bars``, ``rails`` or ``mesh``."""
    palette: list[tuple[float, float, float]] = [
        (0.72, 0.72, 0.7), (0.45, 0.45, 0.46), (0.25, 0.26, 0.28), (0.8, 0.78, 0.72),
        (0.3, 0.42, 0.55), (0.32, 0.45, 0.34), (0.5, 0.36, 0.22), (0.6, 0.25, 0.2),
    ]  # fmt: skip
    base = _color(rng, palette[int(rng.integers(len(palette)))], (0.6, 0.6, 0.58))
    face = np.empty((96, 192, 4), np.float32)
    face[..., :3] = base * (1 + 0.12 * noise(rng, (96, 192), 3, 5, 0.6)[..., None])
    v = np.linspace(0, 1, 96, dtype=np.float32)[:, None]
    splash = np.clip((v - rng.uniform(0.4, 1.0)) * 2 + 0.2 * noise(rng, (96, 192), 6), 0, 1)[..., None]
    face[..., :3] = face[..., :3] * (1 - 0.6 * splash) + 0.6 * splash * np.array([0.3, 0.24, 0.17], np.float32)
    u = np.linspace(0, 1, 192, dtype=np.float32)[None, :]
    alpha = np.ones((96, 192), np.float32)
    if kind == "boards":
        face[..., :3] *= np.where(np.mod(v * rng.integers(3, 8), 1) < 0.08, 0.5, 1.0)[..., None]
    elif kind in ("bars", "rails", "mesh"):
        upright = np.mod(u * rng.integers(10, 26), 1) + 0 * v
        level = np.mod(v * rng.integers(2, 6) * 0.999, 1) + 0 * u
        width = rng.uniform(0.12, 0.3)
        frame = (u < 0.02) | (u > 0.98) | (v < 0.08) | (v > 0.92)
        metal = {"bars": upright < width, "rails": level < width, "mesh": (upright < width) | (level < width)}[kind]
        rounding = np.where(upright < width, np.sin(np.pi * upright / width), 1.0)
        face[..., :3] *= (0.55 + 0.45 * rounding)[..., None]
        alpha = (metal | frame).astype(np.float32)
    face[..., 3] = alpha
    return np.asarray(np.clip(face * 255, 0, 255), np.uint8)
