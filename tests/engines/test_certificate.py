"""Parity on golden inputs: a swap of near-equal queries passes, a wrong number does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines.certificate import (
    TOLERANCES,
    Certificate,
    EngineRecord,
    Machine,
    Parity,
    answers,
    certify,
    measure,
    read_certificate,
)
from barnsight_engines.errors import ModelSetDataError, ModelSetMissingError
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


def test_masks_are_compared_as_areas_too(golden: Path) -> None:
    assert [p.mask_iou for p in measured(golden, answer()) if p.output == "masks"] == [1]
    flipped = answer()
    sampled = flipped["masks"][0, :3, ::4, ::4]  # the better half, as the golden file holds it
    area = (sampled > 0).sum()
    first = np.argwhere(sampled > 0)[0]
    flipped["masks"][0, first[0], 4 * first[1], 4 * first[2]] = -0.001
    (parity,) = [p for p in measured(golden, flipped) if p.output == "masks"]
    assert parity.mask_iou == pytest.approx((area - 1) / area)


def test_scores_are_compared_as_the_daemon_computes_them(golden: Path) -> None:
    shifted = answer()
    shifted["logits"] += 0.1
    (parity,) = [p for p in measured(golden, shifted) if p.output == "logits"]
    score = [1 / (1 + np.exp(-(2 + shift))) / 2 for shift in (0, 0.1)]  # presence 0 is a half
    assert parity.score_difference == pytest.approx(score[1] - score[0], abs=1e-4)


def test_scores_alone_can_fail(tmp_path: Path) -> None:
    told = answer() | {"logits": np.array([[30, 0, -1, -2, -4, -5]], np.float32), "presence": np.full((1, 1), 20.0)}
    np.savez(tmp_path / "golden.npz", x=X, **told)
    shifted = told | {"logits": told["logits"] + np.float32(0.2)}  # under a hundredth of the largest, which is 30
    with pytest.raises(ModelSetDataError, match=r"output 'logits' .* score difference 0\.05"):
        certify(tmp_path / "golden.npz", [(engine(shifted), "fp32")])


def measured(golden: Path, outputs: dict[str, NDArray[Any]]) -> tuple[Parity, ...]:
    with np.load(golden) as arrays:
        return measure(golden, dict(arrays), [engine(outputs)])["detector"]


def test_another_runtime_is_measured_on_whole_answers(golden: Path) -> None:
    reference = answers(golden, {"x": X}, [engine(answer())])
    assert {"x", "detector.masks", "detector.logits"} <= reference.keys()
    off = answer()
    off["masks"][0, 0, 1, 1] += 7  # between the rows and columns that a golden file keeps
    assert next(p for p in measured(golden, off) if p.output == "masks").absolute == 0
    whole = measure(golden, reference, [engine(off)])["detector"]
    assert next(p for p in whole if p.output == "masks").absolute == pytest.approx(7, abs=1e-5)


def test_two_engines_may_use_one_name_for_different_things(tmp_path: Path) -> None:
    mem, pix = np.full((1, 2), 3, np.float32), np.full((1, 2), 4, np.float32)
    attention = ScriptedBackend(
        EngineSpec("memory_attention", specs_of({"mem": mem}), specs_of({"pix": pix})),
        lambda given: {"pix": given["mem"] + 1},
    )
    encoder = ScriptedBackend(
        EngineSpec("memory_encoder", specs_of({"pix": pix}), specs_of({"mem": mem})),
        lambda given: {"mem": given["pix"] * 2},
    )
    golden = {"memory_attention.mem": mem, "pix": pix, "memory_encoder.mem": 2 * pix}
    report = measure(tmp_path, golden, [attention, encoder])
    assert [(role, p.output, p.absolute) for role, (p,) in report.items()] == [
        ("memory_attention", "pix", 0),
        ("memory_encoder", "mem", 0),
    ]


class TestTheFile:
    """A certificate is written and read back as it was, and says itself what failed."""

    def certificate(self, cosine: float) -> Certificate:
        outputs = (Parity("d4", 0.99999, 0.0), Parity("d2", cosine, 0.001, 0.002))
        limits = TOLERANCES["fp16"]
        encoder = EngineRecord(
            file="encoder.engine", sha256="0" * 64, role="encoder", precision="fp16", limits=limits, outputs=outputs
        )
        machine = Machine(runtime="tensorrt", version="10.3.0", device="Orin (8.7)", driver="CUDA 12.6")
        verdict = "pass" if encoder.failure is None else "fail"
        return Certificate(
            model_set="0123456789ab", machine=machine, reference="onnxruntime", verdict=verdict, engines=(encoder,)
        )

    @pytest.mark.parametrize(("cosine", "verdict"), [(0.9999, "pass"), (0.9, "fail"), (-1.0, "fail")])
    def test_there_and_back(self, tmp_path: Path, cosine: float, verdict: str) -> None:
        self.certificate(cosine).write(tmp_path)
        assert read_certificate(tmp_path) == self.certificate(cosine)
        assert read_certificate(tmp_path).verdict == verdict
        assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]

    def test_it_names_the_output_and_its_figure(self) -> None:
        assert self.certificate(0.9999).failure is None
        assert (
            self.certificate(0.9).failure == "engine 'encoder': output 'd2' (cosine 0.90000, largest difference 0.001)"
        )

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(
            ModelSetMissingError, match=r"certificate\.json: No such file .*; run: barnsight engine build"
        ):
            read_certificate(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 2}'])
    def test_a_damaged_one(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "certificate.json").write_text(content)
        with pytest.raises(ModelSetDataError, match=r"certificate\.json: .*; run: barnsight engine build"):
            read_certificate(tmp_path)
