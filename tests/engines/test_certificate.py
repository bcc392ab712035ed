"""Parity on golden inputs: a swap of near-equal queries passes, a wrong number does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines.certificate import certify
from barnsight_engines.errors import ModelSetDataError
from barnsight_engines.scripted_backend import ScriptedBackend
from barnsight_engines.spec import EngineSpec, specs_of

X = np.ones((1, 1), np.float32)


def answer() -> dict[str, NDArray[Any]]:
    """Six queries, the first two nearly equal in logit and far apart in the picture."""
    rng = np.random.default_rng(0)
    return {
        "logits": np.array([[3.00001, 3, 2, 1, -4, -5]], np.float32),
        "boxes": rng.random((1, 6, 4), np.float32),
        "masks": rng.normal(size=(1, 6, 8, 8)).astype(np.float32),
        "presence": np.zeros((1, 1), np.float32),
    }


def engine(outputs: dict[str, NDArray[Any]]) -> ScriptedBackend:
    return ScriptedBackend(EngineSpec("detector", specs_of({"x": X}), specs_of(outputs)), [outputs])


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    kept = {("masks_every4" if name == "masks" else name): value for name, value in answer().items()}
    kept["masks_every4"] = kept["masks_every4"][..., ::4, ::4]
    np.savez(tmp_path / "golden.npz", x=X, **kept)
    return tmp_path / "golden.npz"


def test_the_same_answer_is_at_parity(golden: Path) -> None:
    report = certify(golden, [(engine(answer()), "fp32")])
    assert {parity.output: (parity.cosine, parity.difference) for parity in report} == {
        name: (pytest.approx(1), 0) for name in ("logits", "boxes", "masks", "presence")
    }


def test_two_near_equal_queries_may_swap_places(golden: Path) -> None:
    swapped = {name: value[:, [1, 0, 2, 3, 4, 5]] if name != "presence" else value for name, value in answer().items()}
    assert all(parity.difference < 1e-5 for parity in certify(golden, [(engine(swapped), "fp32")]))


def test_another_last_query_is_no_difference(golden: Path) -> None:
    tail = answer()
    tail["boxes"][:, 5] = 0
    certify(golden, [(engine(tail), "fp32")])


@pytest.mark.parametrize("output", ["logits", "boxes", "masks", "presence"])
def test_a_wrong_number_is_named(golden: Path, output: str) -> None:
    wrong = answer()
    wrong[output].flat[0] += 0.3
    with pytest.raises(ModelSetDataError, match=f"engine 'detector': output '{output}' is not the golden one"):
        certify(golden, [(engine(wrong), "fp32")])


def test_a_coarser_precision_is_given_more_room(golden: Path) -> None:
    rounded = answer()
    rounded["logits"] *= 1.02
    with pytest.raises(ModelSetDataError):
        certify(golden, [(engine(rounded), "fp32")])
    certify(golden, [(engine(rounded), "fp16")])


def test_an_answer_that_is_not_a_number_never_passes(golden: Path) -> None:
    broken = answer()
    broken["presence"][:] = np.nan
    with pytest.raises(ModelSetDataError, match="'presence'"):
        certify(golden, [(engine(broken), "int8")])
