"""A camera in the barn: position, view and lens, as exact rays and exact projection.

The lens family ``r = f * tan(k * theta) / k`` spans the lenses of barns with one number: ``k = 1`` is a pinhole,
``k = 1/2`` stereographic, ``k -> 0`` the equidistant fisheye. World frame: meters, floor at z = 0, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Camera:
    """Rows of ``rotation`` are the image's right, the image's down and the viewing direction, in world axes."""

    width_px: int
    height_px: int
    position_m: tuple[float, float, float]
    rotation: tuple[tuple[float, float, float], ...]
    focal_px: float
    lens_k: float

    def rays(self) -> Floats:
        """Unit viewing direction of each pixel's center in world axes: (H, W, 3)."""
        x = np.arange(self.width_px, dtype=np.float32) + 0.5 - self.width_px / 2
        y = np.arange(self.height_px, dtype=np.float32) + 0.5 - self.height_px / 2
        xx, yy = np.meshgrid(x, y)
        radius = np.hypot(xx, yy) + 1e-6
        theta = np.arctan(self.lens_k * radius / self.focal_px) / self.lens_k
        side = np.sin(theta) / radius
        local = np.stack([xx * side, yy * side, np.cos(theta)], axis=-1)
        return (local @ np.asarray(self.rotation, np.float32)).astype(np.float32)

    def project(self, points_m: npt.ArrayLike) -> tuple[Floats, Floats]:
        """World points (N, 3) to pixels (N, 2) and their distance along the viewing axis (N,) in meters."""
        local = (np.asarray(points_m, np.float32) - np.asarray(self.position_m, np.float32)) @ np.asarray(
            self.rotation, np.float32
        ).T
        side = np.hypot(local[:, 0], local[:, 1]) + 1e-9
        theta = np.minimum(np.arctan2(side, local[:, 2]), 1.5 / self.lens_k)
        scale = self.focal_px * np.tan(self.lens_k * theta) / self.lens_k / side
        center = np.array([self.width_px / 2, self.height_px / 2], np.float32)
        return (local[:, :2] * scale[:, None] + center).astype(np.float32), local[:, 2].astype(np.float32)


def aim(
    position_m: npt.ArrayLike,
    target_m: npt.ArrayLike,
    roll_rad: float,
    must_see_m: Floats,
    *,
    width_px: int,
    height_px: int,
    lens_k: float,
    fill: float,
) -> Camera:
    """A camera looking from position to target, zoomed until ``must_see_m`` (N, 3) spans ``fill`` of the frame."""
    position = np.asarray(position_m, np.float64)
    forward = np.asarray(target_m, np.float64) - position
    forward /= np.linalg.norm(forward)
    reference = np.array([np.sin(roll_rad), np.cos(roll_rad), 0.0]) if abs(forward[2]) > 0.9 else np.array([0, 0, 1.0])
    right = np.cross(forward, reference)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    if abs(forward[2]) <= 0.9:  # an oblique camera keeps the horizon level but for a small tilt
        tilt = 0.1 * np.sin(roll_rad)
        right, down = right * np.cos(tilt) + down * np.sin(tilt), down * np.cos(tilt) - right * np.sin(tilt)
    rotation = np.stack([right, down, forward])
    local = (must_see_m - position) @ rotation.T
    theta = np.arctan2(np.hypot(local[:, 0], local[:, 1]), local[:, 2])
    lens_k = float(min(lens_k, 1.2 / max(theta.max(), 1e-3)))
    radius = np.tan(lens_k * theta) / lens_k  # in focal lengths
    unit = local[:, :2] / (np.hypot(local[:, 0], local[:, 1])[:, None] + 1e-9)
    spread = np.abs(unit * radius[:, None]) / np.array([width_px / 2, height_px / 2])
    rows = tuple((float(row[0]), float(row[1]), float(row[2])) for row in rotation)
    x, y, z = (float(v) for v in position)
    return Camera(width_px, height_px, (x, y, z), rows, float(fill / spread.max()), lens_k)
