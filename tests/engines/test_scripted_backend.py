"""The shipped fake: it says what its script says, and is as strict as a real engine."""

from __future__ import annotations

import numpy as np
import pytest

from barnsight_engines.detector import Detections
from barnsight_engines.errors import EngineError
from barnsight_engines.scripted_backend import ScriptedBackend, scripted_model_set
from barnsight_engines.spec import EngineSpec, TensorSpec

DOUBLER = EngineSpec("doubler", (TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 2)),))
FRAME = np.zeros((72, 128, 3), np.uint8)


def one_pig(column: int) -> Detections:
    """A pig that begins in this column of the mask grid, whose cells are 1.6 x 0.9 pixels."""
    masks = np.full((1, 80, 80), -4, np.float32)
    masks[0, 10:30, column : column + 20] = 4
    box_px = np.array([[1.6 * column, 9, 1.6 * column + 32, 27]], np.float32)
    return Detections(box_px, np.array([0.9], np.float32), masks, (72, 128))


def test_a_function_answers_its_inputs() -> None:
    backend = ScriptedBackend(DOUBLER, lambda inputs: {"y": inputs["x"] * 2})
    assert backend.run({"x": np.ones((3, 2), np.float32)})["y"].tolist() == [[2, 2]] * 3
    assert backend.runs == 1


def test_a_sequence_answers_run_by_run_and_then_ends() -> None:
    backend = ScriptedBackend(DOUBLER, [{"y": np.full((1, 2), n, np.float32)} for n in (5, 6)])
    x = {"x": np.ones((1, 2), np.float32)}
    assert [backend.run(x)["y"][0, 0] for _ in range(2)] == [5, 6]
    with pytest.raises(EngineError, match="its script ends after 2 runs"):
        backend.run(x)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 3), np.float32)}, r"input 'x' must be float32 \(any, 2\), got float32 \(1, 3\)"),
        ({"x": np.ones((1, 2))}, r"input 'x' must be float32 \(any, 2\), got float64 \(1, 2\)"),
        ({"x": np.ones((1, 2), np.float32), "z": np.ones(1)}, "input 'z' is not expected"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError, match=f"engine 'doubler': {words}"):
        ScriptedBackend(DOUBLER, []).run(inputs)


def test_a_wrong_script_is_refused() -> None:
    backend = ScriptedBackend(DOUBLER, [{"y": np.ones((1, 9), np.float32)}])
    with pytest.raises(EngineError, match=r"engine 'doubler': output 'y' must be float32 \(any, 2\)"):
        backend.run({"x": np.ones((1, 2), np.float32)})


def test_a_scripted_model_set_finds_what_it_was_told_to() -> None:
    with scripted_model_set([one_pig(10), Detections.empty((72, 128), (80, 80))]) as models:
        first, second = (models.detector.detect(models.encoder.encode(FRAME), (72, 128), "pig") for _ in range(2))
    np.testing.assert_allclose(first.boxes_px, [[16, 9, 48, 27]], rtol=1e-5)
    np.testing.assert_allclose(first.scores, [0.9], rtol=1e-5)
    assert len(second) == 0
    with pytest.raises(EngineError, match="is closed"):
        models.encoder.encode(FRAME)


def test_a_scripted_model_set_can_go_on_for_ever() -> None:
    models = scripted_model_set(one_pig)
    lefts = [models.detector.detect(models.encoder.encode(FRAME), (72, 128), "cow").boxes_px[0, 0] for _ in range(3)]
    assert lefts == pytest.approx([0, 1.6, 3.2])
