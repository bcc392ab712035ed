"""The animal: a body of about thirty ellipsoids along a bent spine, with its coat, build, weight and pose.

Anatomy tables are in units of the length from nose to tail root. That length grows with weight as 0.30 * W^0.33 m for
pigs (allometry of finishing pigs) and 0.283 * W^0.33 m for cattle. An animal is a pure function of (herd seed, number,
species, day): the same number keeps its coat and build over days, only its weight moves on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from barnsight_export.simbarn.textures import Bytes, Floats, Rng, noise

COAT_PX = (96, 192)  # around the body (the back is the middle row), along the body (tail first)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One species' proportions, in body lengths."""

    spine: Floats  # (S, 4): position along the body, half width, half height, rise of the center
    stand: float  # height of the torso's axis above the floor when standing
    front_hip: tuple[float, float, float]
    hind_hip: tuple[float, float, float]
    thigh: tuple[float, float]  # thickness of front and hind upper legs
    shank: float
    leg: float  # length of a stretched leg
    ear: tuple[float, float]  # length, width
    poll: tuple[float, float, float]  # where the ears sit, on the station of the head
    head_from: float  # the spine turns as neck from here on
    length_factor: float


PIG = Anatomy(
    spine=np.array(
        [
            (-0.465, 0.060, 0.070, 0.012), (-0.405, 0.096, 0.104, 0.010), (-0.320, 0.113, 0.120, 0.006),
            (-0.225, 0.111, 0.124, 0.004), (-0.120, 0.110, 0.126, 0.002), (-0.015, 0.114, 0.128, 0.000),
            (0.080, 0.116, 0.128, 0.000), (0.165, 0.110, 0.120, 0.000), (0.235, 0.094, 0.105, 0.000),
            (0.300, 0.078, 0.092, 0.000), (0.360, 0.062, 0.076, -0.006), (0.410, 0.043, 0.053, -0.020),
            (0.452, 0.034, 0.038, -0.030), (0.480, 0.030, 0.031, -0.034),
        ],
        np.float32,
    ),
    stand=0.30, front_hip=(0.15, 0.070, -0.05), hind_hip=(-0.35, 0.072, -0.03), thigh=(0.045, 0.062), shank=0.021,
    leg=0.25, ear=(0.056, 0.036), poll=(-0.035, 0.050, 0.054), head_from=0.17, length_factor=0.30,
)  # fmt: skip
COW = Anatomy(
    spine=np.array(
        [
            (-0.470, 0.056, 0.062, 0.060), (-0.415, 0.094, 0.100, 0.045), (-0.335, 0.116, 0.130, 0.022),
            (-0.235, 0.120, 0.146, 0.004), (-0.135, 0.144, 0.156, -0.010), (-0.035, 0.150, 0.156, -0.010),
            (0.055, 0.128, 0.146, -0.004), (0.130, 0.102, 0.130, 0.004), (0.190, 0.074, 0.100, 0.020),
            (0.250, 0.058, 0.080, 0.030), (0.310, 0.050, 0.064, 0.036), (0.360, 0.049, 0.058, 0.022),
            (0.415, 0.039, 0.046, -0.004), (0.465, 0.035, 0.036, -0.026),
        ],
        np.float32,
    ),
    stand=0.44, front_hip=(0.10, 0.062, -0.06), hind_hip=(-0.37, 0.070, -0.03), thigh=(0.042, 0.062), shank=0.020,
    leg=0.33, ear=(0.070, 0.030), poll=(-0.020, 0.054, 0.036), head_from=0.13, length_factor=0.283,
)  # fmt: skip
ANATOMY = {"pig": PIG, "cow": COW}


@dataclass(frozen=True, slots=True)
class Animal:
    """One individual: ``coat`` (96, 192, 3) is wrapped around the body; tints multiply it on ears and snout."""

    number: int
    species: str
    weight_kg: float
    length_m: float
    girth: float  # width over the species' mean
    coat: Bytes
    ear_tint: Floats
    snout_tint: Floats
    ear_tag: Floats | None
    ear_angle_rad: float
    horns: bool
    condition: float  # 0 thin .. 1 fat


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an animal is and how it holds itself; every field varies smoothly in a clip."""

    x_m: float
    y_m: float
    heading_rad: float
    upright: float = 1.0  # 0 recumbent .. 1 standing
    roll_rad: float = 0.0  # 0 sternal, +-pi/2 on its side
    sit: float = 0.0
    bend_rad: float = 0.0
    head_yaw_rad: float = 0.0
    head_pitch_rad: float = 0.0
    gait: float = 0.0  # phase in strides
    stride: float = 0.0  # 0 still .. 1 full swing of the legs
    lift_m: float = 0.0  # raised by the neighbors it lies on


@dataclass(frozen=True, slots=True)
class Body:
    """Ellipsoids of one animal in world meters; ``rest`` places them on the coat, ``tint`` (K, 3) multiplies it."""

    center_m: Floats  # (K, 3)
    axes: Floats  # (K, 3, 3) columns are unit axes
    radii_m: Floats  # (K, 3)
    rest: Floats  # (K, 3) in body lengths
    tint: Floats  # (K, 3)


# -- individuals ------------------------------------------------------------------------------------------------------


def animal_of(herd_seed: int, number: int, species: str, *, day: int = 0, weight_kg: float | None = None) -> Animal:
    """The individual ``number`` of a herd on a day; ``weight_kg`` is its weight on day 0 (drawn where None)."""
    rng = np.random.default_rng([herd_seed, number, 0 if species == "pig" else 1])
    start = rng.uniform(25, 60) if species == "pig" else rng.uniform(480, 720)
    gain = rng.normal(0.85, 0.08) if species == "pig" else rng.normal(0.05, 0.03)
    weight = float((start if weight_kg is None else weight_kg * rng.uniform(0.9, 1.1)) + gain * day)
    condition = float(np.clip(rng.normal(0.5, 0.2), 0, 1))
    girth = float((0.88 + 0.24 * condition) * rng.uniform(0.97, 1.03))
    anatomy = ANATOMY[species]
    coat, dark = _pig_coat(rng, _breed(herd_seed)) if species == "pig" else _cow_coat(rng)
    pink = np.array([1.0, 0.86, 0.82], np.float32) * rng.uniform(0.85, 1.02)
    neutral = np.full(3, rng.uniform(0.75, 1.0), np.float32)
    tags = np.array([(0.95, 0.8, 0.1), (0.95, 0.5, 0.1), (0.9, 0.9, 0.9), (0.2, 0.4, 0.8), (0.3, 0.7, 0.3)], np.float32)
    tagged = rng.random() < (0.5 if species == "pig" else 0.85)
    lop = rng.random() < 0.35
    return Animal(
        number=number,
        species=species,
        weight_kg=weight,
        length_m=float(anatomy.length_factor * weight**0.33),
        girth=girth,
        coat=_marked(rng, coat, species),
        ear_tint=neutral if dark or species == "cow" else pink,
        snout_tint=neutral if dark else pink * np.float32(0.97),
        ear_tag=tags[int(rng.integers(len(tags)))] if tagged else None,
        ear_angle_rad=float(rng.uniform(-0.5, 0.1) if lop else rng.uniform(0.3, 1.3)),
        horns=bool(species == "cow" and rng.random() < 0.15),
        condition=condition,
    )


def _skin(rng: Rng, tone: Floats, depth: float) -> Floats:
    """A coat of one tone with fine hair and broad blotches: (96, 192, 3)."""
    fine, broad = noise(rng, COAT_PX, 24, 2), noise(rng, COAT_PX, 3, 3)
    return np.asarray(tone * (1 + depth * (0.6 * broad + 0.5 * fine))[..., None], np.float32)


def _blend(base: Floats, over: Floats, mask: Floats) -> Floats:
    return np.asarray(base * (1 - mask[..., None]) + over * mask[..., None], np.float32)


def _patches(rng: Rng, cells: int, share: float, edge: float = 6.0) -> Floats:
    """A mask (96, 192) of blotches that covers about ``share`` of the coat, with a soft edge."""
    field = noise(rng, COAT_PX, cells, 3, 0.4)
    return np.asarray(np.clip((field - np.quantile(field, 1 - share)) * edge + 0.5, 0, 1), np.float32)


PIG_COATS = ("light", "white", "spotted", "black", "brown", "belted")
BREEDS = {  # shares of PIG_COATS: pens are mostly of one breed
    "white": (0.62, 0.36, 0.02, 0.0, 0.0, 0.0),
    "crossbred": (0.55, 0.22, 0.15, 0.04, 0.04, 0.0),
    "mixed": (0.28, 0.14, 0.18, 0.13, 0.17, 0.10),
    "dark": (0.05, 0.0, 0.1, 0.35, 0.4, 0.1),
}


def _breed(herd_seed: int) -> tuple[float, ...]:
    breed = np.random.default_rng([herd_seed, 11]).choice(list(BREEDS), p=(0.46, 0.27, 0.19, 0.08))
    return BREEDS[str(breed)]


def _pig_coat(rng: Rng, shares: tuple[float, ...]) -> tuple[Floats, bool]:
    """Coat (96, 192, 3) in 0..1 and whether snout and ears are dark."""
    pink = np.array([0.90, 0.68, 0.60], np.float32) * rng.uniform(0.8, 1.08)
    pale = np.array([0.95, 0.85, 0.79], np.float32) * rng.uniform(0.92, 1.06)
    black = np.array([0.12, 0.11, 0.11], np.float32) * rng.uniform(0.6, 1.6)
    brown = np.array([0.50, 0.30, 0.18], np.float32) * rng.uniform(0.55, 1.2)
    light = pink if rng.random() < 0.45 else pale * 0.6 + pink * 0.4
    kind = rng.choice(PIG_COATS, p=shares)
    if kind == "white":
        return _skin(rng, pale, 0.025), False
    if kind == "spotted":
        return _blend(_skin(rng, light, 0.04), _skin(rng, black, 0.15), _patches(rng, 5, rng.uniform(0.08, 0.5))), False
    if kind == "black":
        return _skin(rng, black, 0.2), True
    if kind == "brown":
        return _skin(rng, brown, 0.1), True
    if kind == "belted":
        along = np.linspace(0, 1, COAT_PX[1], dtype=np.float32)[None, :] + 0.03 * noise(rng, COAT_PX, 4, 2)
        belt = np.clip((0.09 - np.abs(along - 0.62)) * 30 + 0.5, 0, 1)
        return _blend(_skin(rng, black, 0.15), _skin(rng, light, 0.04), belt.astype(np.float32)), True
    return _skin(rng, light, 0.04), False


def _cow_coat(rng: Rng) -> tuple[Floats, bool]:
    white = np.array([0.88, 0.86, 0.82], np.float32) * rng.uniform(0.88, 1.05)
    black = np.array([0.09, 0.085, 0.085], np.float32) * rng.uniform(0.7, 1.6)
    red = np.array([0.45, 0.24, 0.13], np.float32) * rng.uniform(0.6, 1.2)
    fawn = np.array([0.62, 0.46, 0.30], np.float32) * rng.uniform(0.6, 1.15)
    kind = rng.choice(
        ["holstein", "red_holstein", "red", "fawn", "black", "white"], p=[0.58, 0.12, 0.1, 0.09, 0.07, 0.04]
    )
    if kind in ("holstein", "red_holstein"):
        dark = black if kind == "holstein" else red
        cover = _patches(rng, int(rng.integers(2, 6)), rng.uniform(0.15, 0.92), 12.0)
        return _blend(_skin(rng, white, 0.03), _skin(rng, dark, 0.12), cover), kind == "holstein"
    tone = {"red": red, "fawn": fawn, "black": black, "white": white}[str(kind)]
    return _skin(rng, tone, 0.08), kind == "black"


def _marked(rng: Rng, coat: Floats, species: str) -> Bytes:
    """Dirt, scratches, and for pigs the farmer's spray: a stripe, dots or a number on the back."""
    if rng.random() < 0.55:
        mud = np.array([0.30, 0.23, 0.15], np.float32) * rng.uniform(0.5, 1.4)
        coat = _blend(
            coat, _skin(rng, mud, 0.15), _patches(rng, 6, rng.uniform(0.03, 0.35), 3.0) * rng.uniform(0.3, 0.9)
        )
    if rng.random() < 0.3:  # the belly and flanks soak up more
        around = np.abs(np.linspace(-1, 1, COAT_PX[0], dtype=np.float32))[:, None] + 0 * coat[..., 0]
        coat = coat * (1 - 0.5 * np.clip((around - 0.45) * 3, 0, 1) * rng.random())[..., None].astype(np.float32)
    paint = np.ascontiguousarray(np.clip(coat * 255, 0, 255).astype(np.uint8))
    if species == "pig" and rng.random() < 0.3:
        sprays = [(200, 40, 40), (40, 60, 190), (40, 140, 60), (90, 40, 130), (30, 30, 30)]
        color = sprays[int(rng.integers(len(sprays)))]
        layer, middle = paint.copy(), COAT_PX[0] // 2
        what = rng.choice(["number", "dot", "stripe", "cross"])
        x = int(rng.integers(50, 110))
        if what == "number":
            text = str(int(rng.integers(1, 40)))
            cv2.putText(layer, text, (x, middle + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.9, color, 4, cv2.LINE_AA)
        elif what == "dot":
            cv2.circle(layer, (x, middle + int(rng.integers(-8, 8))), int(rng.integers(3, 8)), color, -1, cv2.LINE_AA)
        elif what == "stripe":
            cv2.line(layer, (x, 20), (x + int(rng.integers(-6, 30)), 76), color, int(rng.integers(3, 7)), cv2.LINE_AA)
        else:
            cv2.line(layer, (x, middle), (x + 40, middle), color, 4, cv2.LINE_AA)
            cv2.line(layer, (x + 20, middle - 14), (x + 20, middle + 14), color, 4, cv2.LINE_AA)
        worn = np.clip(rng.uniform(0.5, 1.0) + 0.25 * noise(rng, COAT_PX, 12, 2), 0, 1)[..., None]
        paint = (paint * (1 - worn) + layer * worn).astype(np.uint8)
    return np.asarray(paint, np.uint8)


# -- body -------------------------------------------------------------------------------------------------------------


def _rotation(yaw: Floats, pitch: Floats, roll: Floats) -> Floats:
    """(N,) angles to (N, 3, 3): turn about z, then nose up about y, then about the spine itself."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    rows = [
        [cy * cp, -sy * cr - cy * sp * sr, sy * sr - cy * sp * cr],
        [sy * cp, cy * cr - sy * sp * sr, -cy * sr - sy * sp * cr],
        [sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows, np.float32), -1, 0)


def body_of(animal: Animal, pose: Pose) -> Body:
    """The ellipsoids of an animal in a pose, in world meters."""
    anatomy = ANATOMY[animal.species]
    along, half_width, half_height, rise = anatomy.spine.T
    girth = np.where(along < anatomy.head_from + 0.1, animal.girth, 1.0)
    half_width, half_height = half_width * girth, half_height * (0.5 + 0.5 * girth)

    # The spine: yaw bends it in the plane of the floor, pitch raises the head or the whole front when sitting.
    neck = np.clip((along - anatomy.head_from) / 0.16, 0, 1)
    yaw = pose.bend_rad * np.clip(along / 0.45, -1, 1) + pose.head_yaw_rad * neck
    pitch = pose.head_pitch_rad * neck + pose.sit * 0.55 * np.clip((along + 0.42) / 0.12, 0, 1) * (1 - 0.8 * neck)
    roll = pose.roll_rad * (1 - 0.15 * neck)
    frame = _rotation(yaw, pitch, roll)
    middle = 0.5 * (frame[1:, :, 0] + frame[:-1, :, 0])
    path = np.zeros((len(along), 3), np.float32)
    path[1:] = np.cumsum(middle * np.diff(along)[:, None], axis=0)
    torso = int(np.argmin(np.abs(along + 0.05)))
    path[:, :2] -= path[torso, :2]
    lying = float(np.hypot(np.cos(pose.roll_rad) * half_height[3], np.sin(pose.roll_rad) * half_width[3]))
    upright = pose.upright * (1 - pose.sit)
    path[:, 2] += upright * anatomy.stand + (1 - upright) * lying * 0.96
    center = path + frame[:, :, 2] * rise[:, None]
    spacing = np.gradient(along)
    radii = np.stack([np.where(along < 0.2, 2.0, 1.35) * spacing, half_width, half_height], axis=1)
    radii[0, 0], radii[-1, 0] = 0.045, 0.016
    floor_gap = half_height * np.abs(frame[:, 2, 2]) + half_width * np.abs(frame[:, 2, 1])
    center[:, 2] = np.maximum(center[:, 2], 0.8 * floor_gap)
    rest = np.stack([along, 0 * along, 0 * along], axis=1)
    snout = np.clip((along - 0.40) / 0.05, 0, 1)[:, None]
    tint = 1 - snout + snout * animal.snout_tint

    parts: list[tuple[Floats, ...]] = [
        (center, frame, radii, rest, tint),
        _legs(animal, anatomy, pose, along, path, frame),
        _details(animal, anatomy, along, center, frame, half_width, half_height),
    ]
    local, axes, radius, rests, tints = (np.concatenate([p[i] for p in parts]).astype(np.float32) for i in range(5))

    turn = _rotation(*np.array([[pose.heading_rad], [0.0], [0.0]], np.float32))[0]
    world = local @ turn.T * animal.length_m + np.array([pose.x_m, pose.y_m, pose.lift_m], np.float32)
    return Body(world.astype(np.float32), turn @ axes, radius * animal.length_m, rests, tints)


Reals = npt.NDArray[np.floating[Any]]
Ellipsoids = tuple[Reals, Reals, Reals]  # center (K, 3), axes (K, 3, 3), radii (K, 3)


def _segments(start: Reals, end: Reals, thickness: Reals) -> Ellipsoids:
    """Elongated ellipsoids from start to end (K, 3), with thickness (K,)."""
    along = end - start
    length = np.sqrt((along**2).sum(axis=1, keepdims=True)) + 1e-6
    x = along / length
    upward = np.abs(x[:, 2:]) > 0.95
    side = np.where(upward, [[1.0, 0.0, 0.0]], np.stack([-x[:, 1], x[:, 0], 0 * x[:, 0]], axis=1))
    y = side - x * (side * x).sum(axis=1, keepdims=True)
    y /= np.sqrt((y**2).sum(axis=1, keepdims=True))
    z = np.stack(
        [
            x[:, 1] * y[:, 2] - x[:, 2] * y[:, 1],
            x[:, 2] * y[:, 0] - x[:, 0] * y[:, 2],
            x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0],
        ],
        axis=1,
    )
    thick = np.asarray(thickness, np.float32)[:, None]
    radii = np.concatenate([length / 2 + 0.7 * thick, thick, thick], axis=1)
    return (start + end) / 2, np.stack([x, y, z], axis=2), np.asarray(radii, np.float32)


LIMBS = np.array([(0, 1, 0.0), (0, -1, 0.5), (1, 1, 0.25), (1, -1, 0.75)])  # hind or not, side, phase of the gait


def _legs(
    animal: Animal, anatomy: Anatomy, pose: Pose, along: Floats, path: Floats, frame: Floats
) -> tuple[Floats, ...]:
    """Upper and lower segment of four legs: down to the floor, folded under, or stretched out on the side."""
    hind, side, phase = LIMBS[:, :1] > 0, LIMBS[:, 1:2], LIMBS[:, 2:]  # (4, 1) each
    hip_body = np.where(hind, anatomy.hind_hip, anatomy.front_hip)  # (4, 3)
    station = np.abs(along[:, None] - hip_body[:, 0]).argmin(axis=0)
    base = frame[station]  # (4, 3, 3)
    sideways, downward = base[:, :, 1], base[:, :, 2]
    hip = path[station] + sideways * side * hip_body[:, 1:2] * animal.girth + downward * hip_body[:, 2:]
    flat = base[:, :, 0] * [1, 1, 0]
    flat = flat / (np.sqrt((flat**2).sum(axis=1, keepdims=True)) + 1e-6)
    left = np.stack([-flat[:, 1], flat[:, 0], 0 * flat[:, 0]], axis=1)
    up = np.array([0.0, 0.0, 1.0])

    angle = 2 * np.pi * (pose.gait + phase)
    down = hip * [1, 1, 0] + pose.stride * (flat * 0.11 * np.sin(angle) + up * 0.05 * np.maximum(np.cos(angle), 0))
    fold = hip + flat * np.where(hind, 0.10, -0.05) + left * side * np.where(hind, 0.035, 0.006)
    fold = fold * [1, 1, 0] + up * anatomy.shank
    swing = base[:, :, 0] * (np.where(hind, -0.06, 0.05) + 0.03 * side)
    stretch = hip + anatomy.leg * (swing - downward) * [1, 1, 0.35]
    stretch[:, 2] = np.maximum(stretch[:, 2], anatomy.shank)

    on_side = abs(float(np.sin(pose.roll_rad)))
    weight = np.array([pose.upright, (1 - pose.upright) * (1 - on_side), (1 - pose.upright) * on_side]) + 1e-9
    sitting = np.where(hind, 0.0, pose.sit)
    share = weight / weight.sum() * (1 - sitting) + sitting * np.array([1.0, 0.0, 0.0])  # (4, 3)
    foot = share[:, :1] * down + share[:, 1:2] * fold + share[:, 2:] * stretch
    knee = 0.55 * hip + 0.45 * foot + base[:, :, 0] * np.where(hind, 0.03, -0.015)
    knee = knee + left * side * share[:, 1:2] * np.where(hind, 0.03, 0.015)
    thick = np.where(hind[:, 0], anatomy.thigh[1], anatomy.thigh[0])
    shape = _segments(
        np.concatenate([hip, knee]), np.concatenate([knee, foot]), np.concatenate([thick, np.full(4, anatomy.shank)])
    )
    rest = np.concatenate([hip_body[:, :1], 0.05 * side, np.full((4, 1), -0.02)], axis=1)
    tint = np.repeat([[1.0, 1.0, 1.0], [0.88, 0.86, 0.85]], 4, axis=0)
    return *shape, np.concatenate([rest, rest]), tint


BARE = (9.0, 0.0, 0.0)  # a rest position off the coat: the tint alone is the color
DARK = np.array([0.05, 0.04, 0.04], np.float32)
HORN = np.array([0.72, 0.66, 0.54], np.float32)
UDDER = np.array([1.0, 0.82, 0.78], np.float32)


def _details(
    animal: Animal,
    anatomy: Anatomy,
    along: Floats,
    center: Floats,
    frame: Floats,
    half_width: Floats,
    half_height: Floats,
) -> tuple[Floats, ...]:
    """Ears, tag, tail, eyes, and for cattle horns and udder."""
    pig = animal.species == "pig"
    head = int(np.abs(along - 0.345).argmin())
    here, turn = center[head], frame[head]
    both = np.array([[1, 1, 1], [1, -1, 1]], np.float32)
    lift = animal.ear_angle_rad
    out = np.array([np.cos(2.2 - lift), 0.85, 0.25 + 0.4 * np.sin(lift)] if pig else [-0.3, 1.0, -0.05])
    root = here + (np.array(anatomy.poll) * both) @ turn.T
    tip = root + (out / np.sqrt(out @ out) * anatomy.ear[0] * 1.5 * both) @ turn.T
    rump = center[0] + frame[0] @ np.array([-0.04, 0, 0.03])
    end = rump + frame[0] @ np.array([-0.055, 0.012, -0.03] if pig else [-0.02, 0.01, -0.22])
    end[2] = max(end[2], 0.012)
    starts, ends, thick = [*root, rump], [*tip, end], [anatomy.ear[1], anatomy.ear[1], 0.010]
    rests: list[tuple[float, float, float]] = [(0.33, 0.05, 0.0), (0.33, -0.05, 0.0), (-0.48, 0.0, 0.02)]
    tints = [animal.ear_tint, animal.ear_tint, np.ones(3, np.float32)]
    if animal.horns:
        horn = root + (np.array([0.0, -0.02, 0.02]) * both) @ turn.T
        starts, ends = [*starts, *horn], [*ends, *(horn + (np.array([0.05, 0.05, 0.05]) * both) @ turn.T)]
        thick, rests, tints = [*thick, 0.012, 0.012], [*rests, BARE, BARE], [*tints, HORN, HORN]
    centers, axes, radii = _segments(np.array(starts), np.array(ends), np.array(thick))
    radii[:2, 2] = 0.011  # ears are flat

    eyes = here + (np.array([0.035, half_width[head] * 0.86, half_height[head] * 0.45]) * both) @ turn.T
    spots, sizes, frames = [*eyes], [(0.009, 0.009, 0.009)] * 2, [turn, turn]
    rests, tints = [*rests, BARE, BARE], [*tints, DARK, DARK]
    if animal.ear_tag is not None:
        spots.append(0.4 * root[0] + 0.6 * tip[0] + turn @ np.array([0, 0, 0.012]))
        sizes, frames = [*sizes, (0.016, 0.014, 0.010)], [*frames, axes[0]]
        rests, tints = [*rests, BARE], [*tints, animal.ear_tag]
    if not pig:
        hind = int(np.abs(along + 0.3).argmin())
        spots.append(center[hind] + frame[hind] @ np.array([0, 0, -0.11]))
        sizes, frames = [*sizes, (0.07, 0.065, 0.055)], [*frames, frame[hind]]
        rests, tints = [*rests, (-0.3, 0.0, -0.1)], [*tints, UDDER]
    return (
        np.concatenate([centers, np.array(spots)]),
        np.concatenate([axes, np.array(frames)]),
        np.concatenate([radii, np.array(sizes)]),
        np.array(rests, np.float32),
        np.array(tints, np.float32),
    )


def spine_points(animal: Animal, pose: Pose, count: int = 7) -> npt.NDArray[np.float64]:
    """Points (count, 2) in meters along the body's axis on the floor plane: for spacing and collisions."""
    t = np.linspace(-0.42, 0.46, count)
    turn = (
        pose.heading_rad
        + pose.bend_rad * np.clip(t / 0.45, -1, 1)
        + pose.head_yaw_rad * np.clip((t - 0.17) / 0.16, 0, 1)
    )
    step = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (t[1] - t[0])
    path = np.cumsum(step, axis=0)
    path -= path[int(np.argmin(np.abs(t + 0.05)))]
    return np.asarray(path * animal.length_m + np.array([pose.x_m, pose.y_m]), np.float64)
