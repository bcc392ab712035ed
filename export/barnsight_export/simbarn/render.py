"""Pictures of a scene with exact instance ids: rays against ellipsoids, panels and pipes, then light, then the sensor.

Every surface is intersected with the camera's own rays, so any lens is exact. Parts of one animal are blended where
they meet (weights exp(-depth / s)), which turns thirty ellipsoids into one smooth body; animals and fittings are
ordered by a shared z-buffer. Light is one ambient and one key light with a shadow map on the floor plane, plus
occlusion from the height map of the view; at night the lamp sits at the camera, as infrared lamps do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from barnsight_export.simbarn.animals import Animal, Body, Pose, body_of
from barnsight_export.simbarn.fittings import Ball, Panel, Pipe
from barnsight_export.simbarn.scene import Light, Scene, Sensor
from barnsight_export.simbarn.sensor import expose
from barnsight_export.simbarn.textures import Bytes, Floats

Window = tuple[slice, slice]
FAR_M = 60.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture and its truth. ``ids`` is 0 for background and k for the visible pixels of animal k of the herd."""

    image: Bytes  # (H, W, 3) RGB
    ids: npt.NDArray[np.int16]  # (H, W)
    visible_fraction: Floats  # (animals,) visible pixels over the whole silhouette, frame edges included


@dataclass(slots=True)
class Surfaces:
    """What each pixel sees, before light."""

    depth_m: Floats  # (H, W) along the ray
    albedo: Floats  # (H, W, 3)
    normal: Floats  # (H, W, 3)

    def copy(self) -> Surfaces:
        return Surfaces(self.depth_m.copy(), self.albedo.copy(), self.normal.copy())


class Renderer:
    """Renders one scene for many poses: rays, floor and fittings are computed once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.camera = scene.camera
        self.origin = np.asarray(scene.camera.position_m, np.float32)
        self.rays = scene.camera.rays()
        self.planes = np.ascontiguousarray(self.rays.transpose(2, 0, 1))
        self.shape = self.rays.shape[:2]
        self.background = self._floor()
        for panel in scene.panels:
            self._draw_panel(panel)
        for pipe in scene.pipes:
            self._draw_pipe(pipe)
        for ball in scene.balls:
            self._draw_ball(ball)
        self.light_map = LightMap(scene)
        self.gain = self._metered()

    def relight(self, light: Light, sensor: Sensor) -> None:
        """The same pen at another hour, seen through another lens and recorder."""
        self.scene = replace(self.scene, light=light, sensor=sensor)
        self.light_map = LightMap(self.scene)
        self.gain = self._metered()

    def _metered(self) -> float:
        """Exposure by the mean of the empty pen, as a camera's automatic does it, damped."""
        sparse = (slice(None, None, 4), slice(None, None, 4))
        b = self.background
        thin = Surfaces(b.depth_m[sparse], b.albedo[sparse], b.normal[sparse])
        radiance = self._shade(thin, self.rays[sparse], np.zeros(thin.depth_m.shape, np.int16), [])
        return float((0.30 / max(float(radiance.mean()), 0.01)) ** 0.85)

    def render(self, poses: Sequence[Pose], *, frame: int = 0) -> Rendered:
        """Picture of the herd in ``poses`` (one per animal of the scene); ``frame`` seeds the sensor's noise."""
        if len(poses) != len(self.scene.herd):
            raise ValueError(f"expected {len(self.scene.herd)} poses, one per animal, got {len(poses)}")
        bodies = [body_of(animal, pose) for animal, pose in zip(self.scene.herd, poses, strict=True)]
        surfaces = self.background.copy()
        ids = np.zeros(self.shape, np.int16)
        silhouettes = np.zeros(len(bodies), np.float32)
        for number, (animal, body) in enumerate(zip(self.scene.herd, bodies, strict=True), start=1):
            silhouettes[number - 1] = self._draw_animal(surfaces, ids, number, animal, body)
        visible = np.bincount(ids.ravel(), minlength=len(bodies) + 1)[1:].astype(np.float32)
        radiance = self._shade(surfaces, self.rays, ids, bodies)
        image = expose(radiance * np.float32(self.gain), self.scene.sensor, frame)
        return Rendered(image, ids, np.asarray(visible / np.maximum(silhouettes, 1.0), np.float32))

    # -- surfaces -----------------------------------------------------------------------------------------------------

    def _floor(self) -> Surfaces:
        down = self.rays[..., 2]
        hits = down < -0.02
        depth = np.where(hits, self.origin[2] / -np.where(hits, down, -1), FAR_M).astype(np.float32)
        depth = np.minimum(depth, FAR_M)
        x = self.origin[0] + depth * self.rays[..., 0]
        y = self.origin[1] + depth * self.rays[..., 1]
        albedo = np.zeros((*self.shape, 3), np.float32)
        for zone in self.scene.floors:
            cos, sin = np.float32(np.cos(zone.angle_rad)), np.float32(np.sin(zone.angle_rad))
            scale = np.float32(zone.texture.tile.shape[0] / zone.texture.side_m)
            u, v = (x * cos + y * sin) * scale, (y * cos - x * sin) * scale
            paint = cv2.remap(zone.texture.tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            covered = (x * zone.normal[0] + y * zone.normal[1] > zone.offset_m)[..., None]
            albedo = np.where(covered, paint.astype(np.float32) / 255, albedo)
        span = np.float32(256 / (1.6 * max(self.scene.pen_m)))
        wear = cv2.remap(
            self.scene.stains, x * span + 128, y * span + 128, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        albedo = albedo * (wear.astype(np.float32) / 255)
        albedo[~hits] = 0.12
        normal = np.zeros((*self.shape, 3), np.float32)
        normal[..., 2] = 1
        return Surfaces(depth, albedo.astype(np.float32), normal)

    def _window(self, points_m: Floats, margin_px: float) -> Window | None:
        """The part of the frame that holds these points, or None when they are out of view or behind."""
        pixels, ahead = self.camera.project(points_m)
        if (ahead < 0.02).all():
            return None
        pixels = pixels[ahead > -0.5]
        low = np.floor(pixels.min(axis=0) - margin_px).astype(int)
        high = np.ceil(pixels.max(axis=0) + margin_px).astype(int)
        x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
        x1, y1 = min(int(high[0]), self.shape[1]), min(int(high[1]), self.shape[0])
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def _draw_panel(self, panel: Panel) -> None:
        corner, u, v = (np.asarray(a, np.float32) for a in (panel.corner, panel.edge_u, panel.edge_v))
        grid = np.linspace(0, 1, 5, dtype=np.float32)
        rim = np.concatenate([corner + a * u + b * v for a in grid for b in (0, 1)]).reshape(-1, 3)
        rim = np.concatenate([rim, np.stack([corner + a * u + b * v for a in (0, 1) for b in grid])])
        window = self._window(rim.astype(np.float32), 2)
        if window is None:
            return
        rays, s = self.rays[window], self.background
        normal = np.cross(u, v)
        normal /= np.linalg.norm(normal)
        away = rays @ normal
        depth = ((corner - self.origin) @ normal) / np.where(np.abs(away) < 1e-5, 1e-5, away)
        point = self.origin + depth[..., None] * rays - corner
        a, b = point @ (u / (u @ u)), point @ (v / (v @ v))
        height, width = panel.paint.shape[:2]
        hit = (depth > 0.05) & (depth < s.depth_m[window]) & (a >= 0) & (a < 1) & (b >= 0) & (b < 1)
        if not hit.any():
            return
        rgba = panel.paint[(b[hit] * height).astype(int), (a[hit] * width).astype(int)]
        solid = rgba[:, 3] > 127
        hit[hit] = solid
        s.depth_m[window][hit] = depth[hit]
        s.albedo[window][hit] = rgba[solid, :3].astype(np.float32) / 255
        s.normal[window][hit] = normal if normal @ (self.origin - corner) > 0 else -normal

    def _draw_pipe(self, pipe: Pipe) -> None:
        start, end = np.asarray(pipe.start, np.float32), np.asarray(pipe.end, np.float32)
        path = start + np.linspace(0, 1, 24, dtype=np.float32)[:, None] * (end - start)
        pixels, ahead = self.camera.project(path)
        keep = ahead > 0.05
        if keep.sum() < 2:
            return
        pixels = np.clip(pixels[keep], -5000, 5000)
        nearest = max(float(np.linalg.norm(path[keep] - self.origin, axis=1).min()), 0.05)
        stencil = np.zeros(self.shape, np.uint8)
        thickness = int(np.clip(3 * pipe.radius_m * self.camera.focal_px / nearest * 1.6 + 3, 3, 250))
        cv2.polylines(stencil, [np.round(pixels).astype(np.int32)], False, 255, thickness)
        rows, columns = np.nonzero(stencil)
        if not len(rows):
            return
        # Ray against cylinder: both without their part along the pipe's axis.
        axis = (end - start) / np.linalg.norm(end - start)
        rays = self.rays[rows, columns]
        flat = rays - (rays @ axis)[:, None] * axis
        offset = self.origin - start
        offset_flat = offset - (offset @ axis) * axis
        a = (flat * flat).sum(axis=1) + 1e-9
        half_b = flat @ offset_flat
        root = half_b**2 - a * (offset_flat @ offset_flat - pipe.radius_m**2)
        depth = (-half_b - np.sqrt(np.maximum(root, 0))) / a
        point = offset + depth[:, None] * rays
        along = point @ axis
        s = self.background
        hit = (root > 0) & (depth > 0.05) & (along >= 0) & (along <= np.linalg.norm(end - start))
        hit &= depth < s.depth_m[rows, columns]
        rows, columns = rows[hit], columns[hit]
        s.depth_m[rows, columns] = depth[hit]
        s.albedo[rows, columns] = np.asarray(pipe.color, np.float32)
        s.normal[rows, columns] = (point[hit] - along[hit, None] * axis) / pipe.radius_m

    def _draw_ball(self, ball: Ball) -> None:
        center, radii = np.asarray(ball.center, np.float32), np.asarray(ball.radii_m, np.float32)
        window = self._ellipsoid_windows(center[None], np.eye(3, dtype=np.float32)[None], radii[None])[0]
        if window is None:
            return
        s = self.background
        depth, hit = self._depth_of_ellipsoid(window, np.diag(1 / radii), (self.origin - center) / radii)
        hit &= depth < s.depth_m[window]
        normal = (self.origin - center + depth[hit, None] * self.rays[window][hit]) / radii**2
        s.depth_m[window][hit] = depth[hit]
        s.albedo[window][hit] = np.asarray(ball.color, np.float32)
        s.normal[window][hit] = normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def _ellipsoid_windows(self, center: Floats, axes: Floats, radii: Floats) -> list[Window | None]:
        """Frame window of each of K ellipsoids: extent of the projected axes (exact if affine) and a margin."""
        ends = axes.transpose(0, 2, 1) * radii[:, :, None]  # (K, 3 axes, 3)
        probes = np.stack([center[:, None] + ends, center[:, None] - ends], axis=2)  # (K, 3, 2, 3)
        pixels, ahead = self.camera.project(probes.reshape(-1, 3))
        pixels = pixels.reshape(-1, 3, 2, 2)
        half = np.sqrt((((pixels[:, :, 0] - pixels[:, :, 1]) / 2) ** 2).sum(axis=1)) * 1.12 + 1.5  # (K, 2)
        middle = pixels.mean(axis=(1, 2))
        low = np.floor(middle - half).clip(0, None).astype(int)
        high = np.ceil(middle + half).clip(None, np.array(self.shape[::-1])).astype(int)
        unseen = (ahead.reshape(-1, 6) < 0.1).any(axis=1) | ((half - 1.5).max(axis=1) < 0.6)  # or below a pixel
        return [
            None if gone or x1 <= x0 or y1 <= y0 else (slice(y0, y1), slice(x0, x1))
            for (x0, y0), (x1, y1), gone in zip(low.tolist(), high.tolist(), unseen.tolist(), strict=True)
        ]

    def _depth_of_ellipsoid(
        self, window: Window, to_unit: Floats, offset: Floats
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Depth along each ray of the window to the front of an ellipsoid, and where it is hit: (h, w) each."""
        rays = self.planes[:, window[0], window[1]]  # (3, h, w): planes are contiguous rows, several times faster
        direction = to_unit.T @ rays.reshape(3, -1)
        a = np.einsum("ij,ij->j", direction, direction)
        half_b = offset @ direction
        root = half_b * half_b - a * (offset @ offset - 1)
        depth = (-half_b - np.sqrt(np.maximum(root, 0))) / a
        return depth.reshape(rays.shape[1:]), (root > 0).reshape(rays.shape[1:])

    def _draw_animal(
        self, surfaces: Surfaces, ids: npt.NDArray[np.int16], number: int, animal: Animal, body: Body
    ) -> float:
        """Blend one body into the buffers; returns its whole silhouette in pixels, out-of-frame part estimated."""
        windows = self._ellipsoid_windows(body.center_m, body.axes, body.radii_m)
        seen = [w for w in windows if w is not None]
        if not seen:
            return 0.0
        top, left = min(w[0].start for w in seen), min(w[1].start for w in seen)
        bottom, right = max(w[0].stop for w in seen), max(w[1].stop for w in seen)
        width = right - left
        nearest = np.full((bottom - top, width), np.inf, np.float32)
        blend = np.zeros((11, bottom - top, width), np.float32)  # weight, normal, rest, tint, bare
        middle = float(np.linalg.norm(body.center_m[4] - self.origin))
        sharpness = np.float32(1 / (0.03 * animal.length_m))
        for window, to_unit, offset, affine in zip(windows, *self._blend_terms(animal, body), strict=True):
            if window is None:
                continue
            patch = (
                slice(window[0].start - top, window[0].stop - top),
                slice(window[1].start - left, window[1].stop - left),
            )
            depth, hit = self._depth_of_ellipsoid(window, to_unit, offset)
            weight = np.exp(np.clip((middle - depth) * sharpness, -60, 60)) * hit
            terms = np.empty((4, *depth.shape), np.float32)
            terms[0] = weight
            np.multiply(self.planes[:, window[0], window[1]], weight * depth, out=terms[1:])
            blend[:, patch[0], patch[1]] += (affine.T @ terms.reshape(4, -1)).reshape(11, *depth.shape)
            np.minimum(nearest[patch], np.where(hit, depth, np.inf), out=nearest[patch])
        nearest, blend = nearest.ravel(), blend.reshape(11, -1)
        body_px = np.flatnonzero(np.isfinite(nearest))
        if not len(body_px):
            return 0.0
        whole = len(body_px) / self._framed_share(body)
        rows, columns = body_px // width + top, body_px % width + left
        front = nearest[body_px] < surfaces.depth_m[rows, columns]
        rows, columns, body_px = rows[front], columns[front], body_px[front]
        mix = blend[:, body_px].T  # (n, 11)
        mix = mix / mix[:, :1]
        normal = mix[:, 1:4] / (np.linalg.norm(mix[:, 1:4], axis=1, keepdims=True) + 1e-9)
        surfaces.depth_m[rows, columns] = nearest[body_px]
        surfaces.normal[rows, columns] = normal
        surfaces.albedo[rows, columns] = _coat_color(animal, mix[:, 4:7], mix[:, 10:]) * mix[:, 7:10]
        ids[rows, columns] = number
        return whole

    def _blend_terms(self, animal: Animal, body: Body) -> tuple[Floats, Floats, Floats]:
        """Per ellipsoid: world to unit sphere (K, 3, 3), the camera there (K, 3), and blended columns (K, 4, 11).

        Normal, rest position, tint and bareness are affine in the hit point, so in (1, depth * ray): one product each.
        """
        to_unit = body.axes / body.radii_m[:, None, :]  # world offset @ to_unit lies on the unit sphere's scale
        offset = np.einsum("ki,kij->kj", self.origin - body.center_m, to_unit)
        bare = (body.rest[:, 0] > 2).astype(np.float32)[:, None]
        columns = np.zeros((len(bare), 4, 11), np.float32)  # of (1, point on the unit sphere)
        columns[:, 0, 0] = 1
        columns[:, 1:, 1:4] = to_unit.transpose(0, 2, 1) * body.radii_m.min(axis=1)[:, None, None]
        columns[:, 0, 4:7] = body.rest * (1 - bare)
        columns[:, 1:, 4:7] = np.eye(3, dtype=np.float32) * (body.radii_m / animal.length_m * (1 - bare))[:, :, None]
        columns[:, 0, 7:10] = body.tint
        columns[:, 0, 10] = bare[:, 0]
        affine = np.empty_like(columns)
        affine[:, 0] = columns[:, 0] + np.einsum("ki,kij->kj", offset, columns[:, 1:])
        affine[:, 1:] = to_unit @ columns[:, 1:]
        return to_unit, offset, affine

    def _framed_share(self, body: Body) -> float:
        """Share of the body, by the ellipsoids' cross sections, that lies inside the frame."""
        pixels, ahead = self.camera.project(body.center_m)
        inside = (ahead > 0) & (pixels >= 0).all(axis=1) & (pixels < np.array(self.shape[::-1])).all(axis=1)
        area = body.radii_m.prod(axis=1) ** (2 / 3)
        return float(max((area * inside).sum() / area.sum(), 0.05))

    # -- light --------------------------------------------------------------------------------------------------------

    def _shade(self, s: Surfaces, rays: Floats, ids: npt.NDArray[np.int16], bodies: list[Body]) -> Floats:
        """Radiance (H, W, 3) that reaches the lens."""
        light = self.scene.light
        point = self.origin + s.depth_m[..., None] * rays  # (H, W, 3)
        height = np.ascontiguousarray(point[..., 2])
        facing = np.clip(-np.einsum("hwc,hwc->hw", s.normal, rays), 0, 1)
        if light.kind == "night":
            fall = np.clip(s.depth_m / np.median(s.depth_m), 0.3, None) ** -1.3
            gain = (0.22 + 0.78 * facing) * fall
            # Near infrared sees what is dark brighter than the eye does. A pen of cattle keeps more of its contrast,
            # for the sake of their black hair.
            reflectance = s.albedo ** np.float32(0.5 if self.scene.spec.species == "pig" else 0.7)
            radiance = reflectance * (gain * self._occlusion(height))[..., None]
        else:
            lamp = np.asarray(light.direction, np.float32)
            towards = np.clip(s.normal @ lamp, 0, 1)
            lit, pools = self.light_map.sample(point, bodies)
            sky = (0.62 + 0.38 * s.normal[..., 2]) * (0.72 + 0.28 * facing) * self._occlusion(height)
            radiance = np.asarray(light.ambient, np.float32) * sky[..., None]
            radiance += np.asarray(light.key, np.float32) * (towards * lit)[..., None]
            radiance *= pools[..., None]
            radiance *= s.albedo
            gloss = np.square(np.square(np.square(np.clip(2 * towards * s.normal[..., 2] - lamp[2], 0, 1))))
            sheen = (ids > 0) * gloss * np.float32(0.05) * lit
            radiance += sheen[..., None]
        return np.asarray(radiance, np.float32)

    def _occlusion(self, height: Floats) -> Floats:
        """Darkness in hollows: how far a pixel lies below its surroundings, at two scales."""
        small = cv2.resize(height, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        size = max(min(small.shape) // 24, 1)
        scale = 0.25 if self.scene.spec.species == "pig" else 0.7
        shade = np.zeros_like(small)
        for radius in (size, 3 * size):
            shade += np.clip((cv2.blur(small, (2 * radius + 1, 2 * radius + 1)) - small) / scale, 0, 1)
        # A fine scale keeps the line where two bodies touch.
        fine = np.clip((cv2.blur(height, (7, 7)) - height) / (0.25 * scale), 0, 1)
        coarse = cv2.resize(shade, height.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.clip(1 - 0.5 * coarse - 0.35 * fine, 0.25, 1), np.float32)


def _coat_color(animal: Animal, rest: Floats, bare: Floats) -> Floats:
    """Albedo (n, 3) of body points: the coat wrapped around the spine, white where bare (tint gives the color)."""
    rows, columns = animal.coat.shape[:2]
    u = (rest[:, 0] + 0.5) * (columns - 1)
    v = (np.arctan2(rest[:, 1], rest[:, 2]) / (2 * np.pi) + 0.5) * (rows - 1)
    u = np.ascontiguousarray(u.clip(0, columns - 1), np.float32)[None]
    v = np.ascontiguousarray(v, np.float32)[None]
    color = np.empty((len(rest), 3), np.float32)
    for begin in range(0, len(rest), 32000):  # remap addresses at most 32767 columns
        part = slice(begin, begin + 32000)
        color[part] = cv2.remap(animal.coat, u[:, part], v[:, part], cv2.INTER_LINEAR)[0].astype(np.float32) / 255
    return np.asarray(color * (1 - bare) + bare, np.float32)


class LightMap:
    """The key light on the floor plane: shadows of bodies and pipes, sun patches, pools under lamps.

    A point at height z is looked up where its light ray meets the floor; the map stores how high the occluder there is.
    """

    def __init__(self, scene: Scene, size_px: int = 224) -> None:
        self.scene = scene
        self.size = size_px
        self.span_m = 1.5 * max(scene.pen_m) + 1.0
        self.scale = size_px / self.span_m
        direction = scene.light.direction
        self.slope = np.array([direction[0] / direction[2], direction[1] / direction[2]], np.float32)
        self.fixed = np.zeros((size_px, size_px), np.float32)
        for pipe in scene.pipes:
            a, b = self._to_px(np.array([pipe.start, pipe.end], np.float32))
            thickness = max(1, round(2 * pipe.radius_m * self.scale))
            cv2.line(self.fixed, a.tolist(), b.tolist(), float(max(pipe.start[2], pipe.end[2])), thickness)
        self.pools = self._pools()

    def _to_px(self, points_m: Floats) -> npt.NDArray[np.int32]:
        flat = points_m[:, :2] - points_m[:, 2:3] * self.slope
        return np.clip(np.round(flat * self.scale + self.size / 2), -4000, 4000).astype(np.int32)

    def _pools(self) -> Floats:
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.scale - self.span_m / 2
        x, y = np.meshgrid(axis, axis)
        gain = np.ones((self.size, self.size), np.float32)
        for px, py, strength in self.scene.light.lamps:
            gain += strength * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (0.3 * self.span_m) ** 2))
        gain /= gain.mean()
        for sun in self.scene.light.windows:
            patch = (np.abs(x - sun.x_m) < sun.width_m / 2) & (np.abs(y - sun.y_m) < sun.depth_m / 2)
            gain += sun.gain * cv2.GaussianBlur(patch.astype(np.float32), (0, 0), 1.2)
        return gain

    def sample(self, point_m: Floats, bodies: list[Body]) -> tuple[Floats, Floats]:
        """Share of the key light that arrives, and the gain of pools and patches, per pixel: (H, W) each."""
        occluder = self.fixed.copy()
        if bodies:
            center = np.concatenate([b.center_m for b in bodies])
            spread = np.concatenate([b.axes * b.radii_m[:, None, :] for b in bodies])[:, :2]  # (K, 2, 3)
            spread = (
                spread - np.concatenate([(b.axes * b.radii_m[:, None, :])[:, 2:] for b in bodies]) * self.slope[:, None]
            )
            covariance = spread @ spread.transpose(0, 2, 1)
            value, vector = np.linalg.eigh(covariance)
            half = np.maximum(np.round(np.sqrt(np.maximum(value, 0)) * self.scale), 1).astype(int)
            angle = np.degrees(np.arctan2(vector[:, 1, 1], vector[:, 0, 1]))
            place = self._to_px(center)
            for k in np.argsort(center[:, 2]):
                axes = (int(half[k, 1]), int(half[k, 0]))
                cv2.ellipse(occluder, place[k].tolist(), axes, float(angle[k]), 0, 360, float(center[k, 2]), -1)
        occluder = cv2.GaussianBlur(occluder, (0, 0), max(self.scene.light.softness_px * 0.35, 0.6))
        u = ((point_m[..., 0] - point_m[..., 2] * self.slope[0]) * self.scale + self.size / 2).astype(np.float32)
        v = ((point_m[..., 1] - point_m[..., 2] * self.slope[1]) * self.scale + self.size / 2).astype(np.float32)
        above = cv2.remap(occluder, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) - point_m[..., 2]
        softness = 0.12 if self.scene.spec.species == "pig" else 0.3
        lit = 1 - 0.85 * np.clip(above / softness, 0, 1)
        pools = cv2.remap(self.pools, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(lit, np.float32), np.asarray(pools, np.float32)


def render(scene: Scene, poses: Sequence[Pose], *, frame: int = 0) -> Rendered:
    """One picture of a scene; for many pictures of the same scene keep a ``Renderer``."""
    return Renderer(scene).render(poses, frame=frame)
