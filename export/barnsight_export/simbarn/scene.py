"""A pen as drawn from a seed: floor, fittings, herd, camera, light and sensor.

``sample_scene`` is a pure function of its arguments. The split chooses the families of floors and of layouts (tables
``FLOOR_FAMILIES`` and ``LAYOUT_FAMILIES``), so that val and test pens are built from things that training never saw.
World frame: meters, floor at z = 0, the pen centered on the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from barnsight_export.simbarn.animals import ANATOMY, Animal, animal_of
from barnsight_export.simbarn.camera import Camera, aim
from barnsight_export.simbarn.fittings import (
    FITTINGS,
    LAYOUT_FAMILIES,
    LAYOUTS,
    Ball,
    Color,
    Fittings,
    Panel,
    Pipe,
    Point,
    build_fence,
)
from barnsight_export.simbarn.textures import FLOOR_FAMILIES, FLOORS, Bytes, Rng, Texture, stains

Split = Literal["train", "val", "test"]
LightKind = Literal["day", "dusk", "night"]
Crowding = Literal["scatter", "pile", "huddle", "feeding"]
# The whole pen from above, as research pens have it; a part of it from close above, as over a passage or a feeder; down
# a barn from its end.
View = Literal["overhead", "close", "aisle"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
USUAL_KG = {"pig": 45.0, "cow": 600.0}  # what a pen is built for where the herd brings its own weights
BACK_HEIGHT = 0.59  # of a standing animal, in body lengths


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """Everything a scene is drawn from."""

    seed: int
    species: str
    animals: int
    split: Split
    width: int
    height: int
    light: LightKind | None = None
    crowding: Crowding | None = None
    view: View | None = None  # None: any mount
    herd_seed: int | None = None
    day: int = 0


@dataclass(frozen=True, slots=True)
class FloorZone:
    """A texture on the half plane ``x * normal_x + y * normal_y > offset_m`` of the pen's floor."""

    texture: Texture
    angle_rad: float
    normal: tuple[float, float]
    offset_m: float


@dataclass(frozen=True, slots=True)
class SunPatch:
    """Where a window's light falls on the floor."""

    x_m: float
    y_m: float
    width_m: float
    depth_m: float
    gain: float


@dataclass(frozen=True, slots=True)
class Light:
    kind: LightKind
    ambient: Color
    key: Color
    direction: Point  # towards the lamp or window
    softness_px: float  # blur of cast shadows on the light map
    lamps: tuple[tuple[float, float, float], ...]  # x, y, gain of pools of light
    windows: tuple[SunPatch, ...]


@dataclass(frozen=True, slots=True)
class Sensor:
    """What lens, sensor and encoder do to the light."""

    exposure: float
    gamma: float
    balance: Color
    saturation: float
    contrast: float
    vignette: float
    blur_px: float
    motion_px: float
    motion_rad: float
    noise: float
    jpeg_quality: int
    glow: float
    lens_dirt: float
    cobwebs: int
    overlay: str
    monochrome: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    spec: SceneSpec
    floor_family: str
    layout: str
    pen_m: tuple[float, float]
    camera: Camera
    floors: tuple[FloorZone, ...]  # the first covers everything, later ones lie over it
    stains: Bytes
    panels: tuple[Panel, ...]
    pipes: tuple[Pipe, ...]
    balls: tuple[Ball, ...]
    zones_m: dict[str, tuple[tuple[float, float], ...]]
    stalls: tuple[tuple[float, float, float], ...]  # x, y, heading of lying places of cattle
    light: Light
    sensor: Sensor
    herd: tuple[Animal, ...]


# -- sampling ---------------------------------------------------------------------------------------------------------


def _group_weight_kg(rng: Rng, species: str, animals: int) -> float:
    if species == "cow":
        return float(rng.uniform(380, 720))
    if animals <= 6 and rng.random() < 0.15:
        return float(rng.uniform(150, 260))
    low, high = ((6, 25), (20, 60), (55, 120))[int(rng.choice(3, p=(0.34, 0.36, 0.30)))]
    return float(rng.uniform(low, high))


def _pen(rng: Rng, spec: SceneSpec, weight_kg: float) -> tuple[float, float]:
    """Width and depth in meters for the group: space per animal follows 0.03 * W^0.667 m2 and more."""
    spaces, aspects = {
        None: ((1.2, 3.2), (1.0, 2.2)),
        "overhead": ((2.6, 4.2), (1.7, 2.2)),
        "close": ((1.0, 3.2), (1.0, 2.2)),
        "aisle": ((2.0, 4.5), (1.4, 3.0)),
    }[spec.view]
    space = rng.uniform(*spaces)
    room = 0.03 * weight_kg**0.667 * space if spec.species == "pig" else 2.6 * space
    area = max(max(spec.animals, 3) * room, 1.2 if spec.species == "pig" else 16.0)
    aspect = rng.uniform(*aspects)
    return float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))


def _camera(rng: Rng, spec: SceneSpec, pen_m: tuple[float, float], top_m: float) -> Camera:
    """Overhead, tilted, fisheye, a corner mount, close above a part of the pen, or from one end along the barn."""
    w, d = pen_m
    corners = np.array(
        [(sx * w / 2, sy * d / 2, z) for sx in (-1, 1) for sy in (-1, 1) for z in (0, 0.5 * top_m)], np.float32
    )
    size = {"width_px": spec.width, "height_px": spec.height}
    reach = max(w, d)
    if spec.view == "overhead":
        height = max(0.62 * reach, 3.2 * top_m)
        position = (rng.uniform(-0.05, 0.05) * w, rng.uniform(-0.1, 0.1) * d, height)
        return aim(position, (0, 0, 0), rng.normal(0, 0.02), corners, lens_k=0.7, fill=0.96, **size)
    if spec.view == "close":
        length = top_m / BACK_HEIGHT
        x, y = rng.uniform(-0.4, 0.4, 2) * pen_m
        height = rng.uniform(1.3, 2.6) * length
        leans_x, leans_y = rng.uniform(-0.6, 0.6, 2) * height
        turn = rng.normal(0, 0.08) + rng.integers(4) * np.pi / 2
        part = np.array([x, y, 0], np.float32) + length * np.exp(rng.uniform(-0.8, 0.4)) * np.array(
            [(sx, sy, 0) for sx in (-1, 1) for sy in (-1, 1)], np.float32
        )
        lens = rng.uniform(0.5, 1.0)
        return aim((x + leans_x, y + leans_y, height), (x, y, 0), turn, part, lens_k=lens, fill=1.0, **size)
    if spec.view == "aisle":
        end = int(rng.choice([-1, 1]))
        position = (end * rng.uniform(0.35, 0.7) * w, rng.uniform(-0.35, 0.35) * d, rng.uniform(2.6, 5.5))
        target = (-end * rng.uniform(0.0, 0.4) * w, rng.uniform(-0.15, 0.15) * d, 0.0)
        beyond = corners * np.array([0.6, 1.0, 1.0], np.float32) - np.array([end * 0.2 * w, 0, 0], np.float32)
        lens, fill = rng.uniform(0.5, 1.0), rng.uniform(1.0, 1.9)
        return aim(position, target, rng.normal(0, 0.5), beyond, lens_k=lens, fill=fill, **size)
    share = [0.42, 0.22, 0.13, 0.23] if spec.species == "pig" else [0.2, 0.25, 0.1, 0.45]
    mount = rng.choice(["overhead", "tilted", "fisheye", "corner"], p=share)
    turn = rng.normal(0, 0.08) + (rng.integers(4) * np.pi / 2 if rng.random() < 0.25 else 0.0)
    fill = rng.uniform(0.95, 2.1)
    if mount == "corner":
        angle = rng.uniform(0, 2 * np.pi)
        away = rng.uniform(0.45, 0.8)
        position = (np.cos(angle) * away * w, np.sin(angle) * away * d, rng.uniform(0.35, 0.75) * reach + 1.2 * top_m)
        see = corners * np.array([0.7, 0.7, 1.0], np.float32)
        return aim(
            position,
            (0, 0, 0.2),
            rng.normal(0, 0.5),
            see,
            lens_k=rng.uniform(0.6, 1.0),
            fill=rng.uniform(1.2, 2.2),
            **size,
        )
    height = max(rng.uniform(0.45, 1.0) * reach, 2.6 * top_m)
    if mount == "fisheye":
        height *= 0.75
    lean = 0.1 if mount != "tilted" else 0.65
    position = (rng.uniform(-lean, lean) * w, rng.uniform(-lean, lean) * d, height)
    target = (rng.uniform(-0.15, 0.15) * w, rng.uniform(-0.15, 0.15) * d, 0.0)
    lens = rng.uniform(0.1, 0.45) if mount == "fisheye" else rng.uniform(0.6, 1.0)
    return aim(position, target, turn, corners, lens_k=lens, fill=fill, **size)


def sample_light(rng: Rng, spec: SceneSpec, pen_m: tuple[float, float]) -> Light:
    kind: LightKind = spec.light or ("day", "dusk", "night")[int(rng.choice(3, p=(0.66, 0.14, 0.20)))]
    azimuth, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.3)
    direction = np.array([np.cos(azimuth) * slope, np.sin(azimuth) * slope, 1.0])
    direction /= np.linalg.norm(direction)
    warm = rng.normal(0, 0.06)
    tint = np.array([1 + warm, 1.0, 1 - warm])
    share = rng.uniform(0.25, 0.75) if kind != "night" else 0.15
    level = {"day": rng.uniform(0.85, 1.15), "dusk": rng.uniform(0.3, 0.6), "night": 0.9}[kind]
    ambient, key = tint * (1 - share) * level, np.array([1 - warm, 1.0, 1 + warm]) * share * level * 1.3
    w, d = pen_m
    lamps = tuple(
        (float(rng.uniform(-w, w)), float(rng.uniform(-d, d)), float(rng.uniform(0.2, 0.7)))
        for _ in range(int(rng.integers(0, 4)) if kind != "night" else 0)
    )
    sunny = kind == "day" and rng.random() < 0.25
    low, high = np.array([-w / 2, -d / 2, 0.3, 0.3, 0.5]), np.array([w / 2, d / 2, 1.2, 1.2, 1.8])
    windows = tuple(SunPatch(*rng.uniform(low, high).tolist()) for _ in range(int(rng.integers(1, 4)) if sunny else 0))
    return Light(kind, _triple(ambient), _triple(key), _triple(direction), float(rng.uniform(1.5, 9.0)), lamps, windows)


def _triple(v: object) -> tuple[float, float, float]:
    a, b, c = np.asarray(v, np.float64).tolist()
    return (a, b, c)


def sample_sensor(rng: Rng, light: Light) -> Sensor:
    night = light.kind == "night"
    bright = rng.random() < 0.25  # white skin burns out
    year, month, day = rng.integers((2019, 1, 1), (2027, 13, 29)).tolist()
    hour, minute, second = rng.integers((0, 0, 0), (24, 60, 60)).tolist()
    stamp = f"{year}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
    return Sensor(
        exposure=float(rng.uniform(1.4, 2.2) if bright else rng.uniform(0.6, 1.3)),
        gamma=float(rng.uniform(0.75, 1.15)),
        balance=_triple(np.exp(rng.normal(0, 0.06, 3))),
        saturation=float(rng.uniform(0.5, 1.15)),
        contrast=float(rng.uniform(0.8, 1.25)),
        vignette=float(rng.uniform(0.2, 0.9) if night else rng.uniform(0.0, 0.45)),
        blur_px=float(rng.uniform(0.4, 1.3) if rng.random() < 0.6 else 0.0),
        motion_px=float(rng.uniform(2, 6) if rng.random() < 0.12 else 0.0),
        motion_rad=float(rng.uniform(0, np.pi)),
        noise=float(rng.uniform(0.02, 0.09) if night else rng.uniform(0.004, 0.035)),
        jpeg_quality=int(rng.integers(30, 95)),
        glow=float(rng.uniform(0.0, 0.25) if rng.random() < 0.4 else 0.0),
        lens_dirt=float(rng.uniform(0.1, 0.6) if rng.random() < 0.3 else 0.0),
        cobwebs=int(rng.integers(1, 5)) if rng.random() < 0.12 else 0,
        overlay=str(rng.choice([stamp, f"CAM {rng.integers(1, 33):02d}", f"{stamp} PEN {rng.integers(1, 60)}"]))
        if rng.random() < 0.4
        else "",
        monochrome=night or bool(rng.random() < 0.06),
        seed=int(rng.integers(1 << 31)),
    )


def sample_scene(
    seed: int,
    *,
    species: str,
    animals: int,
    split: Split,
    width: int,
    height: int,
    light: LightKind | None = None,
    crowding: Crowding | None = None,
    view: View | None = None,
    herd_seed: int | None = None,
    day: int = 0,
) -> Scene:
    """Draw a pen, its herd and its camera. ``light``, ``crowding`` and ``view`` are drawn too where None.

    Raises ValueError for an unknown species or split, or a negative number of animals.
    """
    if species not in ("pig", "cow"):
        raise ValueError(f"species must be pig or cow, got {species!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if animals < 0:
        raise ValueError(f"animals must be 0 or more, got {animals}")
    spec = SceneSpec(seed, species, animals, split, width, height, light, crowding, view, herd_seed, day)
    rng = np.random.default_rng([seed, SPLITS.index(split), 0xBA12])
    families = FLOOR_FAMILIES[split]
    family = families[int(rng.integers(len(families)))]
    fitting = [name for name in LAYOUT_FAMILIES[split] if species in LAYOUTS[name].species]
    name = fitting[int(rng.integers(len(fitting)))]
    layout = LAYOUTS[name]
    weight = _group_weight_kg(rng, species, animals) if herd_seed is None else None
    pen = _pen(rng, spec, weight or USUAL_KG[species])
    scale = 1.8 if species == "cow" else float(np.clip((weight or 45.0) / 60.0, 0.25, 2.0) ** 0.33)

    f = Fittings(rng, *pen, scale)
    build_fence(f, layout.fence, layout.height_m)
    for fitting_name in layout.always:
        FITTINGS[fitting_name](f)
    for fitting_name, chance in layout.sometimes:
        if rng.random() < chance:
            FITTINGS[fitting_name](f)

    floors = [
        FloorZone(
            FLOORS[family](rng), float(rng.integers(4)) * np.pi / 2 + float(rng.normal(0, 0.03)), (1.0, 0.0), -1e9
        )
    ]
    if rng.random() < 0.4:  # part slatted, part solid or bedded
        second = FLOORS[families[int(rng.integers(len(families)))]](rng)
        normal = ((1.0, 0.0), (0.0, 1.0))[int(rng.integers(2))]
        floors.append(
            FloorZone(second, float(rng.integers(4)) * np.pi / 2, normal, float(rng.uniform(-0.3, 0.3)) * pen[0])
        )
    back = BACK_HEIGHT * ANATOMY[species].length_factor * (weight or USUAL_KG[species]) ** 0.33
    camera = _camera(rng, spec, pen, back)
    weather = np.random.default_rng([seed, SPLITS.index(split), day])  # light and recorder differ from day to day
    chosen_light = sample_light(weather, spec, pen)
    sensor = sample_sensor(weather, chosen_light)
    herd_key = herd_seed if herd_seed is not None else seed * 3 + SPLITS.index(split)
    herd = tuple(animal_of(herd_key, n, species, day=day, weight_kg=weight) for n in range(1, animals + 1))
    return Scene(
        spec, family, name, pen, camera, tuple(floors), stains(rng), tuple(f.panels), tuple(f.pipes), tuple(f.balls),
        f.zones_m, tuple(f.stalls), chosen_light, sensor, herd,
    )  # fmt: skip
