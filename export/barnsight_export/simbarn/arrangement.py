"""Still life: how a herd lies and stands in one picture (piles, huddles, rows at the trough, stalls, scattered)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from barnsight_export.simbarn.animals import Animal, Pose, spine_points
from barnsight_export.simbarn.scene import Scene
from barnsight_export.simbarn.textures import Rng

HALF_WIDTH = {"pig": 0.115, "cow": 0.13}  # of a body, in body lengths
_SOFT, _PRESS_STEPS = 0.12, 60


def arrange(scene: Scene, rng: Rng) -> list[Pose]:
    """One pose per animal. Upright animals keep apart; lying ones touch and, in piles, lie on each other a little."""
    herd, spec = scene.herd, scene.spec
    mode = spec.crowding or str(rng.choice(["scatter", "pile", "huddle", "feeding"], p=_chances(scene)))
    poses: list[Pose] = []
    grouped = 0
    if mode in ("pile", "huddle") and len(herd) > 2:
        grouped = max(round(len(herd) * rng.uniform(0.6, 1.0)), 3)
        place = _pile if mode == "pile" else _huddle
        poses += place(scene, herd[:grouped], rng)
    elif mode == "feeding" and "feeder" in scene.zones_m:
        grouped = min(int(np.ceil(len(herd) * rng.uniform(0.3, 0.9))), len(herd))
        poses += _at_feeder(scene, herd[:grouped], rng)
        grouped = len(poses)
    elif scene.stalls and herd:
        grouped = min(len(scene.stalls), int(np.ceil(len(herd) * rng.uniform(0.5, 1.0))))
        poses += _in_stalls(scene, grouped, rng)
    taken = [spine_points(a, p) for a, p in zip(herd, poses, strict=False)]
    lying_share = rng.uniform(0.2, 0.9)
    for animal in herd[grouped:]:
        pose = _find_room(scene, animal, taken, lying_share, rng)
        poses.append(pose)
        taken.append(spine_points(animal, pose))
    return poses


def pressed(scene: Scene, poses: list[Pose]) -> list[Pose]:
    """The same herd, its lying animals pushed and turned aside until their bodies touch instead of passing through.

    Bodies are capsules around `spine_points`; each step takes back half of what a pair overlaps by, as in
    position-based dynamics (Müller et al. 2007). An overlap of `_SOFT` of a body's width stays: flesh gives way. In a
    full pen more may stay.
    """
    down = [k for k, pose in enumerate(poses) if pose.upright == 0.0]
    if len(down) < 2:
        return poses
    lengths = np.array([scene.herd[k].length_m for k in down])  # (A,)
    half = (1 - _SOFT) * HALF_WIDTH[scene.spec.species] * lengths
    within = np.maximum(np.array(scene.pen_m) / 2 - half[:, None], 0.0)  # (A, 2)
    centers = np.array([(poses[k].x_m, poses[k].y_m) for k in down])
    bodies = np.stack([spine_points(scene.herd[k], poses[k]) for k in down]) - centers[:, None]  # (A, P, 2)
    turns = np.zeros(len(down))
    for _ in range(_PRESS_STEPS):
        cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
        x, y = bodies[..., 0], bodies[..., 1]
        levers = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
        points = levers + centers[:, None]
        away = points[:, None, :, None] - points[None, :, None]  # (A, A, P, P, 2), from the second to the first
        away = away.reshape(len(down), len(down), -1, 2)
        distance = np.hypot(away[..., 0], away[..., 1])
        nearest = distance.argmin(axis=2)[..., None]  # (A, A, 1)
        gap = np.take_along_axis(distance, nearest, 2)
        overlap = np.maximum(half[:, None, None] + half[:, None] - gap, 0.0)
        overlap[np.diag_indices(len(down))] = 0.0
        if overlap.max() < 0.05 * half.min():
            break
        toward = np.take_along_axis(away, nearest[..., None], 2)[:, :, 0]  # (A, A, 2)
        toward = _unit(toward) + 0.5 * _unit(centers[:, None] - centers)  # the centers tell bodies that cross where to
        push = overlap / 4 * _unit(toward)
        lever = np.take_along_axis(levers[:, None], nearest[..., None] // points.shape[1], 2)[:, :, 0]
        torque = lever[..., 0] * push[..., 1] - lever[..., 1] * push[..., 0]
        turns += torque.sum(axis=1) / lengths**2
        centers = np.clip(centers + push.sum(axis=1), -within, within)
    poses = list(poses)
    for k, (x_m, y_m), turn in zip(down, centers.tolist(), turns.tolist(), strict=True):
        poses[k] = replace(poses[k], x_m=x_m, y_m=y_m, heading_rad=poses[k].heading_rad + turn)
    return poses


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors (..., 2) of length 1, but for those of none."""
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return unit


def _chances(scene: Scene) -> list[float]:
    if scene.spec.species == "cow":
        return [0.62, 0.03, 0.1, 0.25]
    return [0.42, 0.26, 0.17, 0.15] if len(scene.herd) >= 6 else [0.66, 0.06, 0.13, 0.15]


def _lying(pose: Pose, rng: Rng, species: str, *, flat: float) -> Pose:
    """Sternal, half or wholly on the side; ``flat`` is the chance of the side."""
    lateral = rng.random() < (flat if species == "pig" else 0.12 * flat)
    roll = rng.uniform(1.2, 1.55) if lateral else abs(rng.normal(0, 0.25))
    return replace(
        pose,
        upright=0.0,
        roll_rad=float(roll * rng.choice([-1, 1])),
        bend_rad=float(rng.normal(0, 0.28) if rng.random() < 0.8 else rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)),
        head_yaw_rad=float(rng.normal(0, 0.3) if species == "pig" or rng.random() < 0.7 else rng.choice([-1, 1]) * 1.6),
        head_pitch_rad=float(rng.normal(-0.1, 0.12) if species == "pig" else rng.normal(0.1, 0.2)),
    )


def _upright(pose: Pose, rng: Rng, species: str) -> Pose:
    sits = species == "pig" and rng.random() < 0.08
    walking = rng.random() < 0.5
    down = rng.random() < 0.4
    return replace(
        pose,
        upright=1.0,
        sit=1.0 if sits else 0.0,
        bend_rad=float(rng.normal(0, 0.22)),
        head_yaw_rad=float(rng.normal(0, 0.35)),
        head_pitch_rad=float(rng.normal(-0.65, 0.2) if down and not sits else rng.normal(-0.1, 0.2)),
        gait=float(rng.random()),
        stride=float(rng.uniform(0.4, 1.0) if walking and not sits else 0.15),
    )


def _find_room(scene: Scene, animal: Animal, taken: list[np.ndarray], lying_share: float, rng: Rng) -> Pose:
    """A free place of many tried; the least crowded one when none is free."""
    w, d = scene.pen_m
    margin = 0.3 * animal.length_m
    best, best_gap = None, -np.inf
    lies = rng.random() < lying_share
    wanted = animal.length_m * (0.20 if lies else 0.25) * (1.0 if animal.species == "pig" else 1.15)
    others = np.concatenate(taken) if taken else np.zeros((0, 2))
    for _ in range(12):
        x = float(rng.uniform(-1, 1) * max(w / 2 - margin, 0.1))
        y = float(rng.uniform(-1, 1) * max(d / 2 - margin, 0.1))
        pose = Pose(x, y, float(rng.uniform(-np.pi, np.pi)))
        pose = _lying(pose, rng, animal.species, flat=0.5) if lies else _upright(pose, rng, animal.species)
        points = spine_points(animal, pose)
        away = points[:, None] - others[None]
        gap = float(np.sqrt((away**2).sum(axis=2).min())) if len(others) else 9.0
        out = max(float((np.abs(points) - np.array([w, d]) / 2).max()) + 0.05, 0.0)
        gap -= 2 * out
        if gap > best_gap:
            best, best_gap = pose, gap
        if best_gap > wanted:
            break
    if best is None:
        raise RuntimeError(f"no place was tried for animal {animal.number}")
    return best


def _pile(scene: Scene, herd: tuple[Animal, ...], rng: Rng) -> list[Pose]:
    """Rows of animals side by side, heads mostly one way, tight and slightly over each other."""
    w, d = scene.pen_m
    length = float(np.mean([a.length_m for a in herd]))
    step = 2 * HALF_WIDTH[herd[0].species] * length * rng.uniform(0.82, 1.1)
    row_gap = length * rng.uniform(0.72, 1.0)
    columns = int(np.clip(round(np.sqrt(len(herd) * row_gap / step) * rng.uniform(0.8, 1.5)), 2, len(herd)))
    turn = float(rng.uniform(-np.pi, np.pi)) if rng.random() < 0.5 else float(rng.integers(4)) * np.pi / 2
    rows = int(np.ceil(len(herd) / columns))
    center = rng.uniform(-0.3, 0.3, 2) * np.array([w, d])
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    mostly_flat = rng.uniform(0.1, 0.9)
    poses = []
    for k in range(len(herd)):
        row, column = divmod(k, columns)
        spot = center + along * (row - (rows - 1) / 2) * row_gap + across * (column - (columns - 1) / 2) * step
        spot = spot + rng.normal(0, 0.06 * length, 2)
        spot = np.clip(spot, -np.array([w, d]) / 2 + 0.15 * length, np.array([w, d]) / 2 - 0.15 * length)
        flip = np.pi if rng.random() < 0.25 else 0.0
        heading = turn + flip + float(rng.normal(0, 0.16))
        pose = Pose(float(spot[0]), float(spot[1]), heading, lift_m=float(0.05 * length * rng.random() * (k % 3)))
        pose = _lying(pose, rng, herd[k].species, flat=mostly_flat)
        poses.append(replace(pose, bend_rad=float(rng.normal(0, 0.18)), head_yaw_rad=float(rng.normal(0, 0.2))))
    return poses


def _huddle(scene: Scene, herd: tuple[Animal, ...], rng: Rng) -> list[Pose]:
    """A heap around a center: every heading, bodies touching, some climbing on others."""
    w, d = scene.pen_m
    length = float(np.mean([a.length_m for a in herd]))
    center = rng.uniform(-0.3, 0.3, 2) * np.array([w, d])
    radius = length * np.sqrt(len(herd) * 0.23 * rng.uniform(0.7, 1.2) / np.pi)
    poses = []
    for k, animal in enumerate(herd):
        angle, away = k * 2.4 + rng.normal(0, 0.2), radius * np.sqrt((k + 0.5) / len(herd))
        spot = center + away * np.array([np.cos(angle), np.sin(angle)])
        spot = np.clip(spot, -np.array([w, d]) / 2 + 0.2 * length, np.array([w, d]) / 2 - 0.2 * length)
        heading = angle + rng.choice([0, np.pi, np.pi / 2, -np.pi / 2]) + rng.normal(0, 0.3)
        lift = 0.07 * length * rng.random() * (rng.random() < 0.4)
        pose = Pose(float(spot[0]), float(spot[1]), float(heading), lift_m=float(lift))
        poses.append(
            _lying(pose, rng, animal.species, flat=0.45) if rng.random() < 0.85 else _upright(pose, rng, animal.species)
        )
    return poses


def _at_feeder(scene: Scene, herd: tuple[Animal, ...], rng: Rng) -> list[Pose]:
    """Heads in the feeder's zone, bodies side by side away from the nearest wall."""
    corners = np.array(scene.zones_m["feeder"])
    low, high = corners.min(axis=0), corners.max(axis=0)
    wide = int(high[1] - low[1] > high[0] - low[0])  # the axis along which animals line up
    middle = (low + high) / 2
    inward = -np.sign(middle[1 - wide]) or 1.0
    poses: list[Pose] = []
    place = low[wide]
    for animal in herd:
        width = 2 * HALF_WIDTH[animal.species] * animal.length_m * rng.uniform(0.95, 1.8)
        if place + width > high[wide] + 0.3 * animal.length_m:
            break
        spot = np.zeros(2)
        spot[wide] = place + width / 2
        spot[1 - wide] = middle[1 - wide] + inward * 0.42 * animal.length_m
        toward = np.zeros(2)
        toward[1 - wide] = -inward
        heading = float(np.arctan2(toward[1], toward[0]) + rng.normal(0, 0.15))
        pose = _upright(Pose(float(spot[0]), float(spot[1]), heading), rng, animal.species)
        poses.append(
            replace(
                pose,
                sit=0.0,
                head_pitch_rad=float(rng.normal(-0.7, 0.15)),
                bend_rad=float(rng.normal(0, 0.12)),
                head_yaw_rad=0.0,
            )
        )
        place += width
    return poses


def _in_stalls(scene: Scene, count: int, rng: Rng) -> list[Pose]:
    """Cattle lie or stand in cubicles, heads to the wall."""
    chosen = rng.permutation(len(scene.stalls))[:count]
    poses = []
    for k, animal in zip(chosen, scene.herd, strict=False):
        x, y, heading = scene.stalls[int(k)]
        back_in = rng.random() < 0.05
        pose = Pose(
            x + float(rng.normal(0, 0.08)),
            y + float(rng.normal(0, 0.12)),
            heading + np.pi * back_in + float(rng.normal(0, 0.1)),
            lift_m=0.165,
        )
        lies = rng.random() < 0.75
        pose = _lying(pose, rng, animal.species, flat=0.3) if lies else _upright(pose, rng, animal.species)
        poses.append(replace(pose, stride=0.0, bend_rad=float(rng.normal(0, 0.15))))
    return poses
