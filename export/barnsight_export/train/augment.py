"""Augmentation that carries simulated pens over to real barns: where the camera hangs, what light and what sensor.

Geometry is one affine map from the cached square picture to the training picture; tone is one look-up table per
channel; the rest imitates sensors and codecs. Every choice comes from the generator that is passed in.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_SCALE = (0.7, 1.5)  # at 320 px; smaller training pictures look closer, so that animals keep their size in pixels
_SMALL_TURN_DEG, _LARGE_TURN_DEG = 8.0, 45.0
_ASPECT = 0.25  # standard deviation of the logarithm: 16:9, 4:3 and portrait all become squares


def augment(image: Image, ids: Image, size: tuple[int, int], rng: np.random.Generator) -> tuple[Image, Image, float]:
    """A new view of a picture (S, S, 3) and its instance map (S, S): both of `size`, and the area's scale factor.

    `size` is (height, width) in pixels.
    """
    matrix = _view(image.shape[0], size, rng)
    area_scale = abs(float(np.linalg.det(matrix[:, :2])))
    if area_scale < 0.45 and rng.random() < 0.7:  # the rest stays aliased, as fast resizers leave it
        image = np.asarray(cv2.blur(image, (2, 2)) if area_scale > 0.2 else cv2.blur(image, (3, 3)), np.uint8)
    border = tuple(int(v) for v in rng.integers(0, 256, 3)) if rng.random() < 0.5 else (int(rng.integers(256)),) * 3
    target = size[::-1]
    image = np.asarray(cv2.warpAffine(image, matrix, target, flags=cv2.INTER_LINEAR, borderValue=border), np.uint8)
    ids = np.asarray(cv2.warpAffine(ids, matrix, target, flags=cv2.INTER_NEAREST, borderValue=0), np.uint8)
    if rng.random() < 0.2:
        image, ids = _occlude(image.copy(), ids.copy(), rng)
    return _sense(_tone(image, rng), rng), ids, area_scale


def _view(source_px: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """The affine map (2, 3) of source pixels to target pixels: flip, transpose, turn, zoom, stretch, shift."""
    turn_deg = _LARGE_TURN_DEG if rng.random() < 0.15 else _SMALL_TURN_DEG
    angle = math.radians(rng.uniform(-turn_deg, turn_deg))
    closer = (320**2 / math.prod(size)) ** 0.3
    zoom = closer * (math.exp(rng.uniform(*np.log(_SCALE))) if rng.random() < 0.8 else 1.0)
    stretch = math.exp(float(np.clip(rng.normal(0, _ASPECT), -0.5, 0.5)) / 2)
    linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = np.diag([stretch, 1 / stretch]) @ linear * zoom
    if rng.random() < 0.5:
        linear[:, 0] *= -1
    if rng.random() < 0.4:
        linear[:, 1] *= -1
    if rng.random() < 0.3:
        linear = linear[:, ::-1]
    slack = abs(1 - zoom) / 2 + 0.06
    sides = np.array(size[::-1])  # x, y
    linear = np.diag(sides / source_px) @ linear  # last, so that a view is cut as it would be from a square
    center = sides * (0.5 + rng.uniform(-slack, slack, 2))
    shift = center - linear @ np.full(2, source_px / 2)
    return np.concatenate([linear, shift[:, None]], axis=1)


def _occlude(image: Image, ids: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    """Put bars across, or a box into, the picture; what they hide leaves the instance map too."""
    sides = image.shape[1::-1]  # x, y
    size = min(sides)
    color = tuple(int(v) for v in rng.integers(0, 256, 3))
    if rng.random() < 0.6:
        width_px = int(rng.integers(1, max(2, size // 24)))
        for _ in range(int(rng.integers(1, 4))):
            start, end = rng.integers(0, sides, (2, 2))
            along = (end - start) * 4
            a, b = (start - along).tolist(), (end + along).tolist()
            cv2.line(image, a, b, color, width_px, cv2.LINE_AA)
            cv2.line(ids, a, b, 0, width_px)
    else:
        x, y = rng.integers(0, sides)
        h, w = rng.integers(size // 20, size // 5, 2)
        texture = rng.integers(-20, 21, (h, w, 1)) + np.array(color)
        box = image[y : y + h, x : x + w]
        box[:] = np.clip(texture[: box.shape[0], : box.shape[1]], 0, 255)
        ids[y : y + h, x : x + w] = 0
    return image, ids


def _tone(image: Image, rng: np.random.Generator) -> Image:
    """Exposure, gamma, contrast and color cast; infrared gray; skin that is burnt out."""
    if rng.random() < 0.15:
        image = np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    gain = math.exp(rng.normal(0, 0.2))
    if rng.random() < 0.1:
        gain *= rng.uniform(1.4, 2.4)
    gamma = math.exp(rng.normal(0, 0.25))
    cast = np.exp(rng.normal(0, 0.08 if rng.random() < 0.7 else 0.25, 3))
    haze = rng.uniform(0, 0.25) if rng.random() < 0.2 else 0.0
    level = np.arange(256)[:, None] / 255.0  # (256, 1) -> (256, 3)
    level = np.clip(gain * cast * level**gamma, 0, 1) * (1 - haze) + haze * rng.uniform(0.3, 1)
    table = np.clip(level * 255 + rng.normal(0, 6), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[None]), np.uint8)


def _sense(image: Image, rng: np.random.Generator) -> Image:
    """What lens, sensor and codec do: fall-off to the corners, blur, noise, compression."""
    size = image.shape[:2]
    if rng.random() < 0.15:
        fall = _falloff(size)[..., None] * rng.uniform(0.2, 0.7)
        image = (image * (1 - fall)).astype(np.uint8)
    choice = rng.random()
    if choice < 0.2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6)), np.uint8)
    elif choice < 0.28:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        kernel[length // 2] = 1 / length
        kernel = kernel if rng.random() < 0.5 else kernel.T.copy()
        image = np.asarray(cv2.filter2D(image, -1, kernel), np.uint8)
    elif choice < 0.4:
        soft = cv2.GaussianBlur(image, (0, 0), 1.2)
        image = np.asarray(cv2.addWeighted(image, 1.8, soft, -0.8, 0), np.uint8)
    if rng.random() < 0.25:
        bank = _noise(size)
        y, x = rng.integers(0, size)
        strength = rng.uniform(0.1, 1.0) ** 2
        noise = bank[y : y + size[0], x : x + size[1]]
        noise = noise[..., :1] if rng.random() < 0.5 else noise
        image = np.clip(image + strength * noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        quality = int(rng.integers(20, 85))
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return image


@functools.lru_cache(maxsize=4)
def _falloff(size: tuple[int, int]) -> NDArray[np.float32]:
    """Squared distance from the center, 1 at the corners: (height, width)."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in size)
    return np.asarray((y[:, None] + x) / 2, np.float32)


@functools.lru_cache(maxsize=4)
def _noise(size: tuple[int, int]) -> NDArray[np.float32]:
    """A bank of sensor noise, 25 gray levels strong, twice the picture's size: cut anywhere, it looks fresh."""
    return np.random.default_rng(size).normal(0, 25, (2 * size[0], 2 * size[1], 3)).astype(np.float32)
