"""Lower precision: what stays exact, which layers bear INT8, which frames calibrate, and sets that are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("transformers")

from onnx import TensorProto, helper, numpy_helper

from barnsight_engines.certificate import judged_as
from barnsight_engines.loader import load_model_set
from barnsight_engines.manifest import EngineEntry
from barnsight_export.cli import main
from barnsight_export.datasets.simulated import write_pictures
from barnsight_export.datasets.variety import choose_varied, spread
from barnsight_export.onnx.graph import open_session
from barnsight_export.onnx.half import exact_nodes, to_half
from barnsight_export.onnx.quantize import fewest_kept, layers_of, least_agreement, quantize, rounds_halves

NANO = Path(__file__).parents[2] / "engines" / "nano"
WIDTH = 8


def write_network(path: Path, *, outlier: float = 1.0) -> Path:
    """x -> first -> Relu -> norm -> second -> Relu -> scale -> third -> clamp -> Log.

    `outlier` stretches one channel of what the second product gives and the third reads, so that eight bits have to
    span it.
    """
    noise = np.random.default_rng(0)
    weights = {name: noise.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 3 for name in ("first", "second", "third")}
    stretch = np.ones(WIDTH, np.float32)
    stretch[0] = outlier
    weights["third"][0] /= outlier
    constants = {
        **weights,
        "one": np.ones(WIDTH, np.float32),
        "zero": np.zeros(WIDTH, np.float32),
        "stretch": stretch,
        "least": np.float32(1e-5),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("LayerNormalization", ["b", "one", "zero"], ["c"], name="norm"),
        helper.make_node("MatMul", ["c", "second"], ["d"], name="second"),
        helper.make_node("Mul", ["d", "stretch"], ["e"], name="stretch"),
        helper.make_node("MatMul", ["e", "third"], ["f"], name="third"),
        helper.make_node("Mul", ["f", "f"], ["g"], name="square"),
        helper.make_node("Clip", ["g", "least"], ["h"], name="clamp"),
        helper.make_node("Log", ["h"], ["y"], name="log"),
    ]
    shape = [4, WIDTH]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "c", "d", "e", "f", "g")
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("f", "y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        value_info=values[:-2] + values[-1:],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def inputs(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    noise = np.random.default_rng(seed)
    return [{"x": noise.normal(size=(4, WIDTH)).astype(np.float32)} for _ in range(count)]


def test_half_precision_keeps_norms_and_what_a_logarithm_reads_exact(tmp_path: Path) -> None:
    model = onnx.load(write_network(tmp_path / "net.onnx"))
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    assert exact_nodes(model.graph) == {"log", "clamp", "square"}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    written = {node.name: node.output[0] for node in half.graph.node}
    assert types[written["second"]] == TensorProto.FLOAT16
    assert all(types[written[name]] == TensorProto.FLOAT for name in ("norm", "square", "clamp"))
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {
        TensorProto.FLOAT
    }
    onnx.save(half, str(tmp_path / "half.onnx"))
    given = inputs(1, 3)[0]
    exact, rounded = (open_session(tmp_path / f"{name}.onnx").run(["f"], given)[0] for name in ("net", "half"))
    np.testing.assert_allclose(rounded, exact, atol=5e-3)


def test_the_layer_that_eight_bits_cannot_span_stays_as_it_was(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", outlier=300.0)
    found = quantize(path, inputs(50, 1), inputs(10, 2), least_cosine=0.99)
    assert {sensitivity.layer.node for sensitivity in found.sensitivities} == {"first", "second", "third"}
    assert found.sensitivities[0].layer.node == "third"
    assert found.sensitivities[0].cosine < 0.95
    assert found.kept == 1
    assert found.cosine >= 0.99
    weights = {tensor.name: tensor.data_type for tensor in found.model.graph.initializer}
    assert weights["third"] == TensorProto.FLOAT
    assert sum(kind == TensorProto.INT8 and "quantized" in name for name, kind in weights.items()) == 2


def test_a_well_behaved_network_is_quantized_throughout(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx")
    found = quantize(path, inputs(50, 1), inputs(10, 2), least_cosine=0.9)
    assert found.kept == 0
    assert len(layers_of(onnx.load(path))) == 3
    assert 0.9 <= found.cosine < 1


@pytest.mark.parametrize(("needed", "count"), [(0, 9), (4, 9), (9, 9), (1, 1)])
def test_bisection_finds_the_fewest_layers_to_keep(needed: int, count: int) -> None:
    asked: list[int] = []

    def cosine_of(kept: int) -> float:
        asked.append(kept)
        return 0.9 + kept / 100

    kept, cosine = fewest_kept(cosine_of, count, 0.9 + needed / 100)
    assert kept == needed
    assert cosine == (1.0 if needed == count else 0.9 + needed / 100)
    assert len(asked) <= 4


def test_agreement_is_that_of_the_worst_output_and_no_number_agrees_with_nothing() -> None:
    want = [{"a": np.array([1.0, 0.0]), "b": np.array([0.0, 2.0])}]
    assert least_agreement(want, want) == pytest.approx(1.0)
    assert least_agreement(want, [{"a": np.array([1.0, 0.0]), "b": np.array([2.0, 0.0])}]) == pytest.approx(0.0)
    assert least_agreement(want, [{"a": np.array([np.nan, 0.0]), "b": np.array([0.0, 2.0])}]) == -1.0


class Pens:
    """Fifty alike frames by day, one by night and one in color."""

    def __len__(self) -> int:
        return 52

    def __getitem__(self, index: int) -> np.ndarray:
        frame = np.random.default_rng(index).integers(110, 120, (48, 64, 3)).astype(np.uint8)
        if index == 20:
            frame //= 8
        if index == 31:
            frame[..., 0] = 240
        return frame


def test_calibration_takes_the_frames_that_differ() -> None:
    assert set(choose_varied(Pens(), 6)[1:3]) == {20, 31}
    assert choose_varied(Pens(), 60) == list(range(52))
    assert spread([[0.0], [1.0], [10.0], [11.0]], 2) in ([1, 3], [2, 0], [1, 0], [2, 3])


def test_an_engine_is_judged_by_the_coarsest_precision_before_it_unless_it_stands_alone() -> None:
    def entry(role: str, precision: str) -> EngineEntry:
        content = {"role": role, "file": "f.onnx", "sha256": "0" * 64, "precision": precision}
        return EngineEntry.model_validate({**content, "inputs": (), "outputs": ()})

    engines = [entry("encoder", "int8"), entry("detector", "fp16"), entry("embedder", "fp16")]
    assert judged_as(engines) == ["int8", "int8", "fp16"]
    assert judged_as([entry("encoder", "fp32"), entry("detector", "fp16")]) == ["fp32", "fp16"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for split in ("train", "val"):
        write_pictures(folder / split, split, 32, 5, 1)
    return folder


def run_quantize(*options: str | Path) -> int:
    return main(["quantize", str(NANO), *map(str, options)])


@pytest.mark.slow
def test_the_shipped_set_in_fp16_is_taken_by_a_daemon(tmp_path: Path) -> None:
    assert run_quantize("--precision", "fp16", "--out", tmp_path / "half") == 0
    with load_model_set(tmp_path / "half", runtime="onnxruntime") as loaded:
        assert {entry.precision for entry in loaded.manifest.engines} == {"fp16"}
        assert loaded.manifest.name == "nano-fp16"
    halves = [(tmp_path / "half" / f"{role}.onnx").stat().st_size for role in ("encoder", "detector")]
    wholes = [(NANO / f"{role}.onnx").stat().st_size for role in ("encoder", "detector")]
    assert all(half < 0.65 * whole for half, whole in zip(halves, wholes, strict=True))
    # what is FP16 already is no start for INT8
    again = ["quantize", str(tmp_path / "half"), "--precision", "fp16", "--out", str(tmp_path / "again")]
    assert main(again) == 64
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_the_shipped_encoder_in_int8_and_a_set_that_would_lose_too_much(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = ("--data", pictures, "--format", "simulated", "--calibrate", "24", "--measure", "2")
    rest = "fp16" if rounds_halves() else "fp32"
    int8 = ("--precision", "int8", "--rest", rest, *calibration)
    assert run_quantize(*int8, "--loss", "1", "--out", tmp_path / "int8") == 0
    said = capsys.readouterr().out
    assert "layers in INT8" in said
    manifest = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    precisions = {engine["role"]: engine["precision"] for engine in manifest["engines"]}
    assert precisions.pop("encoder") == "int8"
    assert set(precisions.values()) == {rest}
    with (tmp_path / "int8" / "sensitivity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 30
    assert [float(row["cosine_alone"]) for row in rows] == sorted(float(row["cosine_alone"]) for row in rows)
    assert {row["int8"] for row in rows} == {"True", "False"}
    with load_model_set(tmp_path / "int8", runtime="onnxruntime") as loaded:
        assert loaded.manifest.engine("encoder").precision == "int8"

    assert run_quantize(*int8, "--loss", "-1", "--out", tmp_path / "refused") == 65
    assert "AP50 falls from" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_runtime_that_cuts_halves_judges_no_set_in_int8_and_fp16(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("barnsight_export.precision.rounds_halves", lambda: False)
    options = ("--data", pictures, "--format", "simulated", "--rest", "fp16", "--out", tmp_path / "int8")
    assert run_quantize("--precision", "int8", *options) == 64
    assert "cuts where it should round FP16 to INT8" in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--precision", "int8"), 64, "--precision int8 needs --data"),
        (("--precision", "fp16", "--engine", "encoder"), 64, "FP16 needs no calibration"),
        (("--precision", "int8", "--data", "{tmp}", "--cosine", "2"), 64, "--cosine must lie between 0 and 1, got 2.0"),
        (("--precision", "int8", "--data", "{tmp}"), 66, "no videos in it"),
        (("--precision", "int8", "--data", "{tmp}", "--format", "simulated"), 66, "simulate --pictures does"),
    ],
)
def test_what_cannot_be_quantized_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, message: str
) -> None:
    given = [option.replace("{tmp}", str(tmp_path)) for option in options]
    assert run_quantize(*given, "--out", tmp_path / "out") == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_engine_that_the_set_does_not_have(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", pictures, "--format", "simulated")
    assert run_quantize("--precision", "int8", "--engine", "embedder", *data, "--out", tmp_path / "out") == 64
    assert "has no engine 'embedder'; it has detector, encoder" in capsys.readouterr().err
