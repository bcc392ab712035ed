"""Export to a model set: the graphs load in ONNX Runtime, agree with PyTorch, and match their manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from barnsight_export.networks.sam3 import DetectorConfig
from barnsight_export.networks.student import StudentConfig
from barnsight_export.onnx.export import TOLERANCE, Exported, export_model_set
from barnsight_export.onnx.patches import check_versions
from barnsight_export.presets import Preset

TINY = Preset(
    name="tiny",
    image_size=64,
    grid=4,
    concepts=("pig", "cow"),
    student=StudentConfig(stem=8, stages=(8, 16, 40), expansion=2, attention_blocks=1, neck=16),
    detector=DetectorConfig(
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=1,
        queries=6,
        upsampling_stages=2,
        dropout=0.0,
        top_k=4,
    ),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    return export_model_set(TINY.build(), TINY, tmp_path_factory.mktemp("set"), trained_on="nothing")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PyTorch's exporter warns of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_onnx_runtime_agrees_with_pytorch(exported: Exported) -> None:
    assert set(exported.differences) == {"encoder", "detector"}
    assert all(difference <= TOLERANCE for difference in exported.differences.values())


def test_the_graphs_suit_old_runtimes_and_name_no_path(exported: Exported) -> None:
    for role in ("encoder", "detector"):
        path = exported.folder / f"{role}.onnx"
        check_versions(onnx.load(path))
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_a_graph_for_newer_runtimes_is_refused() -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ValueError, match="opset 21"):
        check_versions(model)


def test_the_manifest_describes_what_is_there(exported: Exported) -> None:
    folder = exported.folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["schema_version"], manifest["image_size"], manifest["grid"], manifest["mask_size"]) == (
        1,
        64,
        4,
        16,
    )
    for entry in (manifest["concepts"], manifest["golden"], *manifest["engines"]):
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    for engine in manifest["engines"]:
        session = ort.InferenceSession(str(folder / engine["file"]), providers=["CPUExecutionProvider"])
        for declared, actual in (
            (engine["inputs"], session.get_inputs()),
            (engine["outputs"], session.get_outputs()),
        ):
            assert [(d["name"], d["shape"]) for d in declared] == [(a.name, a.shape) for a in actual]


def test_each_concept_has_its_prompt(exported: Exported) -> None:
    with np.load(exported.folder / "concepts.npz") as prompts:
        assert sorted(prompts) == ["cow", "pig"]
        assert all(prompts[name].shape == (1, 4, 16) and prompts[name].dtype == np.float32 for name in prompts)


def test_the_golden_run_repeats(exported: Exported) -> None:
    with np.load(exported.folder / "golden.npz") as file:
        golden = dict(file)
    encoder, detector = (
        ort.InferenceSession(str(exported.folder / f"{role}.onnx"), providers=["CPUExecutionProvider"])
        for role in ("encoder", "detector")
    )
    d4, d2, d1 = encoder.run(["d4", "d2", "d1"], {"image": golden["image"]})
    np.testing.assert_allclose(d4[..., ::4, ::4], golden["d4_every4"], atol=TOLERANCE)
    logits, masks = detector.run(["logits", "masks"], {"d4": d4, "d2": d2, "d1": d1, "text": golden["text"]})
    np.testing.assert_allclose(logits, golden["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(masks[..., ::4, ::4], golden["masks_every4"], atol=TOLERANCE)
