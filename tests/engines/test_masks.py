"""Masks: what overlaps, what a box holds, and what becomes of a blob in the frame."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from barnsight_engines.masks import (
    areas,
    box_px,
    decode_rle,
    encode_rle,
    intersections,
    mask_iou,
    tight_boxes,
    to_image,
    to_window,
    without_specks,
)


def grid(*rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


LEFT = grid("##..", "##..", "....")
MIDDLE = grid(".##.", ".##.", "....")
NOTHING = grid("....", "....", "....")


def test_half_overlapping_squares_share_a_third() -> None:
    a, b = np.stack([LEFT, NOTHING]), np.stack([LEFT, MIDDLE, NOTHING])
    assert intersections(a, b).tolist() == [[4, 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(mask_iou(a, b), [[1, 1 / 3, 0], [0, 0, 0]], rtol=1e-6)
    assert areas(b).tolist() == [4, 4, 0]


def test_no_masks_overlap_nothing() -> None:
    none = np.zeros((0, 3, 4), np.bool_)
    assert mask_iou(none, np.stack([LEFT, MIDDLE])).shape == (0, 2)
    assert mask_iou(none, none).shape == (0, 0)
    assert tight_boxes(none).shape == (0, 4)


def test_a_tight_box_ends_behind_its_last_pixel() -> None:
    assert tight_boxes(np.stack([MIDDLE, NOTHING, grid("....", "....", "...#")])).tolist() == [
        [1, 0, 3, 2],
        [0, 0, 0, 0],
        [3, 2, 4, 3],
    ]


@settings(max_examples=60, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    pixels=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
)
def test_enlarging_only_the_blob_equals_enlarging_everything(
    cells: tuple[int, int], pixels: tuple[int, int], seed: int, density: float
) -> None:
    size = tuple(max(c, p) for c, p in zip(cells, pixels, strict=True))  # a frame is finer than the grid
    rng = np.random.default_rng(seed)
    logits = np.where(rng.random(cells) < density, 1, -1) * rng.uniform(0.5, 5, cells)
    logits = logits.astype(np.float32)
    whole = cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(size)
    clear = np.abs(whole) > 1e-4  # on the contour itself the last bit decides
    mask = to_image(logits, (size[0], size[1]))
    np.testing.assert_array_equal(mask[clear], (whole > 0)[clear])
    assert np.count_nonzero(to_window(logits, (size[0], size[1]))[0]) == np.count_nonzero(mask)


def test_an_empty_mask_enlarges_to_an_empty_frame() -> None:
    logits = np.full((4, 4), -1, np.float32)
    assert not to_image(logits, (36, 64)).any()
    assert to_window(logits, (36, 64))[0].shape == (0, 0)


def test_only_the_blob_is_computed() -> None:
    logits = np.full((80, 80), -5, np.float32)
    logits[40:50, 20:30] = 5
    window, (top, left) = to_window(logits, (720, 1280))
    # 10 cells and one on either side, of 9 x 16 pixels each
    assert window.shape == (108, 192)
    assert (top, left) == (351, 304)


def test_run_lengths_come_back_as_the_same_mask() -> None:
    mask = to_image(np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32), (120, 90))
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), (120, 90)), mask)
    np.testing.assert_array_equal(decode_rle(encode_rle(np.asfortranarray(mask)), (120, 90)), mask)


@given(
    frame=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    share=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_run_lengths_of_a_part_are_cocos_of_the_whole_frame(
    frame: tuple[int, int], share: tuple[float, ...], seed: int, density: float
) -> None:
    (top, bottom), (left, right) = (
        sorted(round(edge * side) for edge in edges) for side, edges in zip(frame, (share[:2], share[2:]), strict=True)
    )
    window = np.random.default_rng(seed).random((bottom - top, right - left)) < density
    whole = np.zeros(frame, np.bool_)
    whole[top:bottom, left:right] = window
    expected = coco.encode(np.asfortranarray(whole).view(np.uint8))["counts"]
    assert encode_rle(window, frame, (top, left)) == encode_rle(whole) == expected


def test_run_lengths_are_cocos_column_by_column() -> None:
    # 2 rows, 3 columns; down the columns: 0 1 1 1 0 0 -> runs 1, 3, 2, each one character from '0' on
    assert encode_rle(grid(".#.", "##.")) == b"132"


def test_a_box_is_as_fine_as_the_frame() -> None:
    logits = np.full((8, 8), -4, np.float32)
    logits[2:4, 3:6] = 4
    mask = to_image(logits, (80, 160))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert box_px(logits, (80, 160)).tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert box_px(np.full((8, 8), -4, np.float32), (80, 160)).tolist() == [0, 0, 0, 0]


def test_small_holes_are_filled_and_small_specks_removed() -> None:
    logits = np.full((12, 12), -3, np.float32)
    logits[1:7, 1:7] = 3
    logits[3, 3] = -3  # a hole
    logits[10, 10] = logits[11, 11] = 3  # a speck of two, joined at the corner
    clean = without_specks(logits, 2)
    expected = np.zeros((12, 12), bool)
    expected[1:7, 1:7] = True
    assert ((clean > 0) == expected).all()
    assert ((without_specks(logits, 1) > 0).sum()) == expected.sum() + 2
    assert without_specks(logits, 0) is logits


def test_a_mask_that_is_all_small_is_no_speck() -> None:
    logits = np.full((12, 12), -3, np.float32)
    logits[5, 5:8] = 3
    assert (without_specks(logits, 9) > 0).sum() == 3
