"""A model set is opened whole or not at all, and each refusal says what, where and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barnsight_engines.errors import EngineError, ModelSetMismatchError, RuntimeMissingError
from barnsight_engines.loader import load_model_set

Folder = Any  # ModelSetFolder of conftest.py


def test_a_whole_set_opens_and_finds_animals(model_set_folder: Folder) -> None:
    with load_model_set(model_set_folder.path, threads=1) as models:
        features = models.encoder.encode(np.full((32, 64, 3), 255, np.uint8))
        found = models.detector.detect(features, (32, 64), "pig")
    # a white frame: every logit is 1 + 1, and masks that would cover the whole frame end at their own boxes
    assert len(found) == 3
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-2)) / (1 + np.exp(-3)), abs=1e-5)
    assert found.boxes_px.tolist() == [[0, 0, 32, 16], [32, 0, 64, 16], [0, 16, 32, 32]]
    assert models.runtime == "onnxruntime"
    assert [parity.output for parity in models.parity] == ["d4", "boxes", "logits", "presence", "masks"]


def test_the_hash_names_every_byte_of_the_set(model_set_folder: Folder) -> None:
    first = load_model_set(model_set_folder.path).hash
    model_set_folder.write_arrays(
        "concepts.npz", {"pig": np.zeros((1, 1, 3), np.float32), "cow": np.ones((1, 1, 3), np.float32)}
    )
    model_set_folder.seal()
    second = load_model_set(model_set_folder.path).hash
    assert len(first) == len(second) == 12
    assert first != second


def test_a_closed_set_refuses_to_run(model_set_folder: Folder) -> None:
    models = load_model_set(model_set_folder.path)
    models.close()
    models.close()
    with pytest.raises(EngineError, match="engine 'encoder' is closed; load the model set again"):
        models.encoder.encode(np.zeros((16, 16, 3), np.uint8))


def test_a_concept_the_set_was_not_made_for(model_set_folder: Folder) -> None:
    with load_model_set(model_set_folder.path) as models:
        features = models.encoder.encode(np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(ModelSetMismatchError, match="no concept 'sheep'; choose one of: cow, pig") as refused:
            models.detector.detect(features, (16, 16), "sheep")
    assert refused.value.exit_code == 78


def test_an_absent_concept_finds_nothing(model_set_folder: Folder) -> None:
    with load_model_set(model_set_folder.path) as models:
        features = models.encoder.encode(np.full((16, 16, 3), 255, np.uint8))
        assert len(models.detector.detect(features, (16, 16), "cow")) == 0


def _no_folder(folder: Folder) -> None:
    shutil.rmtree(folder.path)


def _not_json(folder: Folder) -> None:
    (folder.path / "manifest.json").write_text("{")


def _not_an_object(folder: Folder) -> None:
    (folder.path / "manifest.json").write_text("[1]")


def _unknown_schema(folder: Folder) -> None:
    folder.manifest["schema_version"] = 7
    folder.save()


def _unknown_key(folder: Folder) -> None:
    folder.manifest["thresholds"]["skore"] = 0.5
    folder.save()


def _outside(folder: Folder) -> None:
    folder.manifest["engines"][0]["file"] = "../encoder.onnx"
    folder.save()


def _missing_role(folder: Folder) -> None:
    del folder.manifest["engines"][1]
    folder.save()


def _nameless_behaviors(folder: Folder) -> None:
    detector = folder.manifest["engines"][1]
    logits = {"name": "logits", "dtype": "float32", "shape": [None, 9]}
    folder.manifest["engines"].append({**detector, "role": "behavior", "outputs": [logits]})
    folder.save()


def _behaviors_without_an_engine(folder: Folder) -> None:
    folder.manifest["behaviors"] = ["standing", "lying"]
    folder.save()


def _missing_file(folder: Folder) -> None:
    (folder.path / "detector.onnx").unlink()


def _wrong_hash(folder: Folder) -> None:
    path = folder.path / "encoder.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _truncated(folder: Folder) -> None:
    path = folder.path / "encoder.onnx"
    path.write_bytes(path.read_bytes()[:100])
    folder.seal()


def _wrong_shape(folder: Folder) -> None:
    from onnx import helper

    node = helper.make_node("AveragePool", ["image"], ["d4"], kernel_shape=[2, 2], strides=[2, 2])
    nodes = [node, *_nodes(folder)[1:]]
    shapes = {"d4": [1, 3, 8, 8], "d2": [1, 3, 2, 2], "d1": [1, 3, 1, 1]}
    folder.write_onnx("encoder.onnx", nodes, {"image": [1, 3, 16, 16]}, shapes)
    folder.seal()


def _wrong_dtype(folder: Folder) -> None:
    from onnx import TensorProto

    shapes = {"d4": [1, 3, 4, 4], "d2": [1, 3, 2, 2], "d1": [1, 3, 1, 1]}
    folder.write_onnx("encoder.onnx", _nodes(folder), {"image": [1, 3, 16, 16]}, shapes, TensorProto.FLOAT16)
    folder.seal()


def _wrong_name(folder: Folder) -> None:
    shapes = {"d4": [1, 3, 4, 4], "d2": [1, 3, 2, 2]}
    folder.write_onnx("encoder.onnx", _nodes(folder)[:2], {"image": [1, 3, 16, 16]}, shapes)
    folder.seal()


def _nodes(folder: Folder) -> list[Any]:
    import onnx

    return list(onnx.load(folder.path / "encoder.onnx").graph.node)


def _other_grid(folder: Folder) -> None:
    folder.manifest["grid"] = [2, 1]
    folder.save()


def _channels_differ(folder: Folder) -> None:
    folder.manifest["engines"][1]["inputs"][2]["shape"] = [1, 5, 1, 1]
    folder.save()


def _concepts_not_arrays(folder: Folder) -> None:
    (folder.path / "concepts.npz").write_bytes(b"PK\x03\x04 not a zip file")
    folder.seal()


def _concept_missing(folder: Folder) -> None:
    folder.write_arrays("concepts.npz", {"pig": np.zeros((1, 1, 3), np.float32)})
    folder.seal()


def _concept_of_another_width(folder: Folder) -> None:
    folder.write_arrays(
        "concepts.npz", {"pig": np.zeros((1, 1, 3), np.float32), "cow": np.zeros((1, 1, 9), np.float32)}
    )
    folder.seal()


def _golden_differs(folder: Folder) -> None:
    folder.write_arrays("golden.npz", {**folder.golden, "logits": folder.golden["logits"] + 0.1})
    folder.seal()


def _golden_of_another_shape(folder: Folder) -> None:
    folder.write_arrays("golden.npz", {**folder.golden, "logits": np.zeros((1, 9), np.float32)})
    folder.seal()


def _golden_without_input(folder: Folder) -> None:
    folder.write_arrays("golden.npz", {"image": folder.golden["image"], "d4": folder.golden["d4"]})
    folder.seal()


def _golden_without_outputs(folder: Folder) -> None:
    folder.write_arrays("golden.npz", {"image": folder.golden["image"], "text": folder.golden["text"]})
    folder.seal()


REFUSALS = [
    # what is wrong,         exit code, file named,      words of the message
    (_no_folder, 66, "manifest.json", "No such file or directory; point models.path at a folder"),
    (_not_json, 65, "manifest.json", "not JSON"),
    (_not_an_object, 78, "manifest.json", "schema_version must be 1, got None"),
    (_unknown_schema, 78, "manifest.json", "schema_version must be 1, got 7; use a model set exported for"),
    (_unknown_key, 78, "manifest.json", "thresholds.skore: Extra inputs are not permitted, got 0.5"),
    (_outside, 78, "manifest.json", "engines.0.file: String should match pattern"),
    (_missing_role, 78, "manifest.json", "needs one engine with the role 'detector', has 0"),
    (_nameless_behaviors, 78, "manifest.json", "tells 9 behaviors apart, 'behaviors' names 0"),
    (_behaviors_without_an_engine, 78, "manifest.json", "tells 0 behaviors apart, 'behaviors' names 2"),
    (_missing_file, 66, "detector.onnx", "No such file or directory; copy the model set again"),
    (_wrong_hash, 65, "encoder.onnx", "SHA-256 must be "),
    (_truncated, 65, "encoder.onnx", "ONNX Runtime cannot open it"),
    (_wrong_shape, 78, "encoder.onnx", "'d4' must be float32 (1, 3, 4, 4), got float32 (1, 3, 8, 8)"),
    (_wrong_dtype, 78, "encoder.onnx", "'image' must be float32 (1, 3, 16, 16), got float16 (1, 3, 16, 16)"),
    (_wrong_name, 78, "encoder.onnx", "'d1' is missing"),
    (_other_grid, 78, "manifest.json", "'d4' must be float32 (1, 3, 8, 4), got float32 (1, 3, 4, 4)"),
    (_channels_differ, 78, "manifest.json", "'d1' must be float32 (1, 3, 1, 1), got float32 (1, 5, 1, 1)"),
    (_concepts_not_arrays, 65, "concepts.npz", "not an .npz of arrays"),
    (_concept_missing, 78, "concepts.npz", "'cow' is missing"),
    (_concept_of_another_width, 78, "concepts.npz", "'cow' must be float32 (1, 1, 3), got float32 (1, 1, 9)"),
    (_golden_differs, 65, "golden.npz", "engine 'detector': output 'logits' is not the golden one on onnxruntime"),
    (_golden_of_another_shape, 65, "golden.npz", "output 'logits' must have the shape (1, 3), got (1, 9)"),
    (_golden_without_input, 65, "golden.npz", "engine 'detector': input 'text' is missing"),
    (_golden_without_outputs, 65, "golden.npz", "engine 'encoder': its outputs are missing"),
]


@pytest.mark.parametrize(
    ("spoil", "exit_code", "file", "words"), REFUSALS, ids=[spoil.__name__[1:] for spoil, *_ in REFUSALS]
)
def test_a_spoiled_set_is_refused(
    model_set_folder: Folder, spoil: Callable[[Folder], None], exit_code: int, file: str, words: str
) -> None:
    spoil(model_set_folder)
    with pytest.raises(EngineError) as refused:
        load_model_set(model_set_folder.path)
    message = str(refused.value)
    assert refused.value.exit_code == exit_code
    assert message.startswith(str(model_set_folder.path / file))
    assert words in message
    assert "again" in message or "models.path" in message or "exported for" in message, "it names the next step"
    assert "\n" not in message


def test_a_runtime_this_version_does_not_have(model_set_folder: Folder) -> None:
    with pytest.raises(RuntimeMissingError, match=r"set models\.runtime to one of: auto, onnxruntime") as refused:
        load_model_set(model_set_folder.path, runtime="openvino")
    assert refused.value.exit_code == 69


def test_a_machine_without_onnx_runtime(model_set_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "barnsight_engines.onnx_backend", None)
    with pytest.raises(RuntimeMissingError, match="install the package 'onnxruntime'"):
        load_model_set(model_set_folder.path)


def test_the_shipped_set_reproduces_its_golden_answers() -> None:
    folder = Path(__file__).parents[2] / "engines" / "nano"
    if not (folder / "manifest.json").exists():
        pytest.skip("the nano set is not in this checkout")
    with load_model_set(folder, threads=1) as models:
        assert set(models.manifest.concepts.names) >= {"pig", "cow"}
        assert all(parity.cosine > 0.9999 for parity in models.parity)
        assert json.loads((folder / "manifest.json").read_text())["name"] == models.manifest.name
