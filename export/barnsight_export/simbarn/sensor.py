"""From radiance to picture: exposure, lens faults, noise, compression and the recorder's text."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from barnsight_export.simbarn.scene import Sensor
from barnsight_export.simbarn.textures import Bytes, Floats, noise


def expose(radiance: Floats, sensor: Sensor, frame: int) -> Bytes:
    """Radiance (H, W, 3) to uint8 RGB. The lens's dirt stays where it is; noise and grain differ by ``frame``."""
    height, width = radiance.shape[:2]
    lens, grain = np.random.default_rng(sensor.seed), np.random.default_rng([sensor.seed, frame])
    light = radiance * (np.asarray(sensor.balance, np.float32) * np.float32(sensor.exposure))
    grey = light @ np.array([0.35, 0.5, 0.15], np.float32)
    if sensor.monochrome:
        light = np.repeat(grey[..., None], 3, axis=2)
    else:
        light = grey[..., None] + np.float32(sensor.saturation) * (light - grey[..., None])
    light *= _veil(lens, sensor, height, width)[..., None]
    if sensor.glow:
        small = cv2.resize(light, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
        halo = cv2.resize(cv2.GaussianBlur(small, (0, 0), 3), (width, height), interpolation=cv2.INTER_LINEAR)
        light = light * np.float32(1 - 0.5 * sensor.glow) + np.float32(sensor.glow) * halo
    if sensor.motion_px:
        light = cv2.filter2D(light, -1, _streak(sensor.motion_px, sensor.motion_rad))
    if sensor.blur_px:
        light = cv2.GaussianBlur(light, (0, 0), sensor.blur_px)
    tone = np.asarray(cv2.pow(np.clip(light, 0, 4), sensor.gamma), np.float32)
    tone = (tone - 0.4) * np.float32(sensor.contrast) + np.float32(0.4)
    channels = 1 if sensor.monochrome else 3
    speckle = _grain(grain, height * width * channels).reshape(height, width, channels)
    tone = tone + speckle * (np.float32(sensor.noise) * (0.5 + 0.5 * np.sqrt(np.clip(tone, 0, 1))))
    picture = np.asarray(np.clip(tone * 255, 0, 255), np.uint8)
    if sensor.overlay:
        size = max(height / 900, 0.3)
        where = (6, int(24 * size) + 4) if sensor.seed % 2 else (6, height - 8)
        cv2.putText(picture, sensor.overlay, where, cv2.FONT_HERSHEY_SIMPLEX, size, (245, 245, 245), 1, cv2.LINE_AA)
    if sensor.jpeg_quality < 100:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, sensor.jpeg_quality])
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return picture


@cache
def _grain_bank() -> Floats:
    return np.random.default_rng(7).standard_normal(1 << 23, dtype=np.float32)


def _grain(rng: np.random.Generator, count: int) -> Floats:
    """``count`` normal values from a fixed bank at a random place: drawing them anew takes longer than the rest."""
    bank = _grain_bank()
    start = int(rng.integers(len(bank) - count))
    return bank[start : start + count]


def _veil(lens: np.random.Generator, sensor: Sensor, height: int, width: int) -> Floats:
    """What the lens takes away (H, W): vignette, dust and cobwebs."""
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    veil = 1 - np.float32(sensor.vignette) * np.clip((x * x + y * y) / 2, 0, 1)
    if sensor.lens_dirt:
        dust = cv2.resize(noise(lens, (48, 48), 6, 3), (width, height), interpolation=cv2.INTER_CUBIC)
        veil = veil * (1 - np.float32(sensor.lens_dirt) * np.clip(dust - 1.0, 0, 1))
    if sensor.cobwebs:
        web = np.zeros((height, width), np.float32)
        for _ in range(sensor.cobwebs):
            a, b = (lens.uniform(0, 1, 2) * (width, height) for _ in range(2))
            cv2.line(
                web, a.astype(int).tolist(), b.astype(int).tolist(), float(lens.uniform(0.15, 0.5)), 2, cv2.LINE_AA
            )
        veil = veil * (1 - cv2.GaussianBlur(web, (0, 0), 2.0))
    return np.asarray(veil, np.float32)


def _streak(length_px: float, angle_rad: float) -> Floats:
    """A normalised line kernel of motion blur."""
    size = 2 * int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    middle, dx, dy = size // 2, np.cos(angle_rad) * size / 2, np.sin(angle_rad) * size / 2
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0, 1)
    return np.asarray(kernel / kernel.sum(), np.float32)
