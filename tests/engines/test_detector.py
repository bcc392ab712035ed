"""What the detector makes of its engine's raw answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines.detector import Detections, Detector, decode, distinct, near_masks, within_boxes
from barnsight_engines.errors import EngineError
from barnsight_engines.manifest import Thresholds
from barnsight_engines.masks import tight_boxes
from barnsight_engines.scripted_backend import raw_outputs
from barnsight_engines.spec import EngineSpec, TensorSpec

FRAME = (80, 160)  # height, width
THRESHOLDS = Thresholds(score=0.5, nms_iou=0.5)


def mask(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.float32]:
    logits = np.full((40, 40), -4, np.float32)
    logits[y1:y2, x1:x2] = 4
    return logits


def found(*animals: tuple[float, NDArray[np.float32]]) -> Detections:
    scores = np.array([score for score, _ in animals], np.float32)
    masks = np.stack([logits for _, logits in animals])
    boxes = tight_boxes(masks > 0) * np.array([4, 2, 4, 2], np.float32)  # the grid is 40 x 40
    return Detections(boxes, scores, masks, FRAME)


def test_animals_come_back_as_they_were_best_first() -> None:
    pen = found((0.6, mask(0, 0, 9, 9)), (0.9, mask(20, 0, 29, 9)))
    result = decode(raw_outputs(pen, queries=8), FRAME, THRESHOLDS, min_score=0.5)
    np.testing.assert_allclose(result.scores, [0.9, 0.6], rtol=1e-5)
    np.testing.assert_allclose(result.boxes_px, pen.boxes_px[[1, 0]], rtol=1e-5)
    np.testing.assert_array_equal(result.mask_logits, pen.mask_logits[[1, 0]])
    assert result.image_size == FRAME


def test_a_score_below_the_least_one_falls_out() -> None:
    outputs = raw_outputs(found((0.6, mask(0, 0, 9, 9)), (0.3, mask(20, 0, 29, 9))), queries=8)
    assert len(decode(outputs, FRAME, THRESHOLDS, min_score=0.5)) == 1
    assert len(decode(outputs, FRAME, THRESHOLDS, min_score=0.2)) == 2


def test_a_concept_that_is_not_in_the_picture_finds_nothing() -> None:
    outputs = raw_outputs(found((0.99, mask(0, 0, 9, 9))), queries=8)
    outputs["presence"][:] = -5
    empty = decode(outputs, FRAME, THRESHOLDS, min_score=0.5)
    assert len(empty) == 0
    assert empty.mask_logits.shape == (0, 40, 40)
    assert empty.boxes_px.shape == (0, 4)


def test_a_box_without_a_single_mask_pixel_falls_out() -> None:
    outputs = raw_outputs(found((0.9, mask(0, 0, 0, 0)), (0.8, mask(20, 0, 29, 9))), queries=8)
    assert decode(outputs, FRAME, THRESHOLDS, min_score=0.5).scores.tolist() == pytest.approx([0.8], rel=1e-5)


@pytest.mark.parametrize("output", ["boxes", "logits", "presence"])
def test_what_is_not_a_number_never_becomes_an_animal(output: str) -> None:
    outputs = raw_outputs(found((0.9, mask(0, 0, 9, 9))), queries=8)
    outputs[output].flat[0] = np.nan
    with pytest.raises(EngineError, match=f"output '{output}' is not a number"):
        decode(outputs, FRAME, THRESHOLDS, min_score=0.5)


DUPLICATES = [
    # caption,                          better mask,      worse mask,       kept
    ("the same animal twice", mask(0, 0, 20, 10), mask(1, 0, 20, 10), [0]),
    ("side by side, touching", mask(0, 0, 20, 10), mask(0, 10, 20, 20), [0, 1]),
    ("one lies a third on the other", mask(0, 0, 20, 12), mask(0, 6, 20, 18), [0, 1]),
    ("a head inside its body", mask(0, 0, 20, 10), mask(0, 0, 5, 5), [0]),
    ("a piglet mostly beside the sow", mask(0, 0, 20, 10), mask(0, 7, 5, 17), [0, 1]),
    ("a small sure one in a big unsure one", mask(0, 0, 5, 5), mask(0, 0, 20, 10), [0, 1]),
]


@pytest.mark.parametrize(
    ("better", "worse", "kept"), [row[1:] for row in DUPLICATES], ids=[row[0] for row in DUPLICATES]
)
def test_duplicates(better: NDArray[np.float32], worse: NDArray[np.float32], kept: list[int]) -> None:
    assert distinct(np.stack([better, worse]) > 0, iou=0.5, containment=0.85) == kept


def test_a_duplicate_that_fell_out_takes_nothing_with_it() -> None:
    chain = np.stack([mask(0, 0, 20, 10), mask(6, 0, 26, 10), mask(12, 0, 32, 10)]) > 0
    # neighbors overlap by IoU .54; the first and the last by .25
    assert distinct(chain, iou=0.5, containment=0.85) == [0, 2]


def test_a_mask_ends_at_its_own_box() -> None:
    logits = np.full((1, 4, 4), 2.0, np.float32)
    left_half = np.array([[0.0, 0.0, 0.5, 1.0]], np.float32)
    found = within_boxes(logits, left_half)
    np.testing.assert_array_equal(found[0, :, :2], 2.0)
    np.testing.assert_array_equal(found[0, :, 2:], -2.0)
    np.testing.assert_array_equal(logits, 2.0)  # what the engine gave stays as it was


class Recorder:
    """A detector engine that reads `d1` and `text`, and remembers what it was given."""

    runtime = "recorder"
    spec = EngineSpec("detector", (TensorSpec("d1", "float32", (1, 2)), TensorSpec("text", "float32", (1, 2))), ())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.given = set(inputs)
        return dict(raw_outputs(found((0.9, mask(0, 0, 9, 9))), queries=8))

    def close(self) -> None:
        """Nothing is held."""


def test_a_box_ends_at_its_mask_give_or_take_a_margin() -> None:
    seen = mask(10, 10, 30, 20)[None] > 0  # of cells in a grid of 40: 20 wide, 10 high
    guessed = np.array([[2, 9, 29, 20.1]], np.float32) / 40
    left, top, right, bottom = near_masks(guessed, seen)[0] * 40
    assert left == pytest.approx(10 - 0.12 * 20 - 0.5)  # what another animal hides is no part of the box
    assert (top, right, bottom) == pytest.approx((9, 29, 20.1))  # finer than the grid


def test_a_box_smaller_than_its_mask_grows_to_it() -> None:
    seen = mask(10, 10, 30, 20)[None] > 0
    grown = near_masks(np.array([[0.45, 0.3, 0.5, 0.4]], np.float32), seen)[0] * 40
    np.testing.assert_allclose(grown, [10 + 2.4 + 0.5, 10 + 1.2 + 0.5, 30 - 2.4 - 0.5, 20 - 1.2 - 0.5], rtol=1e-5)


def test_maps_that_serve_the_tracker_alone_are_not_handed_to_the_detector() -> None:
    engine = Recorder()
    features = {name: np.zeros((1, 2), np.float32) for name in ("d1", "t4", "t1")}
    detector = Detector(engine, {"pig": np.zeros((1, 2), np.float32)}, THRESHOLDS)
    assert len(detector.detect(features, FRAME, "pig")) == 1
    assert engine.given == {"d1", "text"}


def test_no_detections_still_have_their_shapes() -> None:
    empty = Detections.empty(FRAME, (40, 40))
    assert len(empty) == 0
    assert np.concatenate([empty.mask_logits, mask(0, 0, 9, 9)[None]]).shape == (1, 40, 40)
