"""A frame on its way into the network, and boxes on their way back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from barnsight_engines.errors import EngineError
from barnsight_engines.preprocess import boxes_to_image, to_input

HALF = (0.5, 0.5, 0.5)


def test_each_channel_is_normalised_by_its_own_figures() -> None:
    frame = np.full((90, 160, 3), (255, 0, 51), np.uint8)
    tensor = to_input(frame, (32, 48), (0.5, 0.25, 0.2), (0.5, 0.5, 0.1))
    assert tensor.shape == (1, 3, 32, 48)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, :, 7, 9], [1, -0.5, 0], atol=1e-5)
    np.testing.assert_allclose(tensor.std(axis=(2, 3)), 0, atol=1e-5)


def test_shrinking_averages_all_pixels_rather_than_picking_some() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 200  # one column in four: picking would see all of them or none
    np.testing.assert_allclose(to_input(stripes, (16, 16), HALF, HALF), (50 / 255 - 0.5) / 0.5, atol=0.01)


@pytest.mark.parametrize("wanted_size", [(320, 320), (256, 384)])
@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (450, 600), (721, 1281), (200, 900), (100, 120)])
def test_a_smooth_picture_comes_out_as_an_area_average_does(
    size: tuple[int, int], wanted_size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.float32)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    wanted = cv2.resize(picture, wanted_size[::-1], interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / 127.5 - 1
    difference = np.abs(to_input(picture, wanted_size, HALF, HALF)[0] - wanted)
    assert difference.mean() < 2 / 127.5
    assert difference.max() < 12 / 127.5


def test_the_input_keeps_the_corners_of_the_frame() -> None:
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:45, 80:] = 255
    tensor = to_input(frame, (32, 48), HALF, HALF)[0, 0]
    assert tensor[0, -1] == pytest.approx(1)
    assert tensor[0, 0] == tensor[-1, 0] == tensor[-1, -1] == pytest.approx(-1)


def test_boxes_return_to_the_frame_and_end_at_its_edges() -> None:
    boxes = np.array([[0.25, 0.5, 0.75, 1], [-0.1, -0.1, 1.2, 0.1]], np.float32)
    np.testing.assert_allclose(boxes_to_image(boxes, (720, 1280)), [[320, 360, 960, 720], [0, 0, 1280, 72]])


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(np.zeros((8, 8), np.uint8), id="grey"),
        pytest.param(np.zeros((8, 8, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((8, 8, 3), np.float32), id="float"),
        pytest.param(np.zeros((0, 8, 3), np.uint8), id="empty"),
    ],
)
def test_anything_but_an_rgb_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(EngineError, match=r"a frame must be \(H, W, 3\) uint8, got"):
        to_input(frame, (16, 16), HALF, HALF)
