"""Export to a model set: the graphs load in ONNX Runtime, agree with PyTorch, and match their manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from barnsight_engines.certificate import TOLERANCES, measure
from barnsight_engines.errors import EngineError, ModelSetDataError, ModelSetMismatchError
from barnsight_engines.loader import load_model_set
from barnsight_engines.manifest import TRACKER, read_arrays
from barnsight_engines.onnx_backend import OnnxBackend
from barnsight_export.networks.behavior import BEHAVIORS, BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.compact import CompactConfig
from barnsight_export.networks.sam3 import DetectorConfig
from barnsight_export.networks.tracker import TrackerConfig, TrackerNeck
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import SESSION_FILE, TOLERANCE, Exported, export_model_set
from barnsight_export.onnx.patches import check_versions
from barnsight_export.onnx.random_weights import random_tracker, scatter
from barnsight_export.presets import Preset
from barnsightd.tracking.memory import MemoryBank

TINY = Preset(
    name="tiny",
    image_size=(64, 80),
    grid=(4, 5),
    concepts=("pig", "cow"),
    student=CompactConfig(stem=8, stages=(8, 16, 40), expansion=2, attention_blocks=1, neck=16),
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
    tracker = random_tracker(
        TrackerConfig(grid=(4, 5), width=16, memory_width=8, attention_layers=1, feed_forward=32, decoder_heads=2)
    )
    behavior = roles.behavior(scatter(BehaviorClassifier(BehaviorConfig(features=8, hidden=4))))
    more, folder = (*roles.tracker_graphs(tracker), behavior), tmp_path_factory.mktemp("sets") / "tiny"
    neck = scatter(TrackerNeck(16))
    return export_model_set(TINY.build(), TINY, folder, trained_on="nothing", more=more, tracker=tracker, neck=neck)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PyTorch's exporter warns of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_onnx_runtime_agrees_with_pytorch(exported: Exported) -> None:
    assert list(exported.differences) == ["encoder", "detector", *TRACKER, "behavior"]
    assert all(difference <= TOLERANCE for difference in exported.differences.values())


def test_the_graphs_suit_old_runtimes_and_name_no_path(exported: Exported) -> None:
    for role in ("encoder", "detector", *TRACKER):
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
        [64, 80],
        [4, 5],
        [16, 20],
    )
    assert manifest["behaviors"] == [*BEHAVIORS]
    for entry in (manifest["concepts"], manifest["golden"], *manifest["engines"]):
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    for engine in manifest["engines"]:
        session = ort.InferenceSession(str(folder / engine["file"]), providers=["CPUExecutionProvider"])
        for declared, actual in (
            (engine["inputs"], session.get_inputs()),
            (engine["outputs"], session.get_outputs()),
        ):
            assert [(d["name"], d["shape"]) for d in declared] == [(a.name, fixed(a.shape)) for a in actual]


def fixed(shape: list[int | str]) -> list[int | None]:
    """A shape as a manifest writes it: what is open is None."""
    return [size if isinstance(size, int) else None for size in shape]


def test_a_daemon_takes_the_set_and_every_engine_reproduces_its_golden_answers(exported: Exported) -> None:
    with load_model_set(exported.folder, runtime="onnxruntime") as loaded:
        manifest = loaded.manifest
    backends = [OnnxBackend(exported.folder / entry.file, entry.spec) for entry in manifest.engines]
    golden = exported.folder / manifest.golden.file
    measured = measure(golden, read_arrays(golden), backends)
    assert [parity.output for parity in measured["memory_encoder"]] == ["mem"]
    assert [parity.output for parity in measured["behavior"]] == ["logits"]
    assert all(parity.within(TOLERANCES["fp32"]) for outputs in measured.values() for parity in outputs)


def test_what_a_session_computes_itself_lies_beside_the_engines(exported: Exported) -> None:
    with np.load(exported.folder / SESSION_FILE) as constants:
        assert {name: constants[name].shape for name in constants} == {
            "memory_positions": (7, 8),
            "pointer_weight": (8, 16),
            "pointer_bias": (8,),
            "pointer_frames": (),
        }


def test_a_session_remembers_with_what_was_loaded(exported: Exported) -> None:
    with load_model_set(exported.folder) as models:
        tracker = models.tracker
        assert tracker is not None
        assert tracker.layout == ((4, 5), 7, 19)
        features = models.encoder.encode(np.full((48, 64, 3), 90, np.uint8))
        bank = MemoryBank(3, tracker.positions, tracker.layout, batch=2)
        masks = np.full((2, 16, 20), -8, np.float32)
        masks[0, 2:9, 3:8] = masks[1, 8:14, 9:15] = 8
        memories = tracker.memorize(features, masks, np.ones(2, np.float32))
        bank.condition([0, 2], 0, memories, tracker.point_at(features, masks))
        seen = tracker.segment(features, bank.recall([2, 0], 1))
    assert seen.mask_logits.shape == (2, 16, 20)
    assert seen.pointers.shape == (2, 16)
    assert not np.array_equal(seen.mask_logits[0], seen.mask_logits[1])


def test_a_closed_set_has_no_tracker_left(exported: Exported) -> None:
    models = load_model_set(exported.folder)
    features = models.encoder.encode(np.full((48, 64, 3), 90, np.uint8))
    models.close()
    assert models.tracker is not None
    with pytest.raises(EngineError, match="engine 'memory_encoder' is closed"):
        models.tracker.memorize(features, np.zeros((1, 16, 20), np.float32), np.ones(1, np.float32))


def test_a_set_whose_tracker_lacks_something_is_refused(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(exported.folder, folder)
    with np.load(folder / SESSION_FILE) as file:
        constants = {name: file[name] for name in file if name != "pointer_bias"}
    np.savez(folder / SESSION_FILE, **constants)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tracker"]["sha256"] = hashlib.sha256((folder / SESSION_FILE).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelSetDataError, match=r"tracker\.npz: array 'pointer_bias' is missing; export the model set"):
        load_model_set(folder)

    for engine in manifest["engines"]:
        if engine["role"] == "memory_encoder":
            engine["outputs"][0]["shape"] = [None, 9, 8]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelSetMismatchError, match=r"'memory_encoder': output 'mem' must be float32 \(any, 20, 8\)"):
        load_model_set(folder)


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
