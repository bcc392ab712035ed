"""Every engine role as a graph: open where it says so, plain, and equal to PyTorch; a set is written whole or not."""

from __future__ import annotations

import copy
import errno
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from torch import Tensor, nn

from barnsight_engines.certificate import STANDING_ALONE
from barnsight_engines.spec import TensorSpec
from barnsight_export.errors import OutputError, ParityError
from barnsight_export.files import written_aside
from barnsight_export.networks.behavior import BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.sam3 import Detector, DetectorConfig
from barnsight_export.networks.tracker import TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import export_engine, golden_run, session_constants
from barnsight_export.onnx.graph import Graph, check_parity, compare, tensor_specs, write_graph
from barnsight_export.onnx.patches import check_versions
from barnsight_export.onnx.random_weights import random_tracker, scatter

SMALL = TrackerConfig(
    grid=(4, 4),
    width=32,
    memory_width=16,
    attention_layers=2,
    feed_forward=48,
    decoder_heads=2,
    memories=3,
    pointer_frames=3,
)
WINDOW = BehaviorConfig(features=8, hidden=6)
SLOTS, POINTERS = SMALL.layout.slots, SMALL.layout.pointers
TOKENS = SLOTS * 16 + POINTERS * 2
ATTENTION_INPUTS = ("t1", "mem", "mempos", "ptr", "ptrpos", "bias")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PyTorch's exporter warns of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Crops(nn.Module):
    """The shape of an embedder, without its depth."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patches(crops).flatten(2)  # (B, 8, 196)
        return patches[..., 0], patches.mean(dim=2)


class Doubling(nn.Module):
    """A network that exports in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def doubling() -> Graph:
    return Graph("behavior", Doubling(), lambda seed, batch: {"x": torch.full((batch, 3), 1.0 + seed)}, ("y",), ("x",))


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    tracker = random_tracker(SMALL)
    small = (
        *roles.tracker_graphs(tracker),
        roles.embedder(scatter(Crops())),
        roles.behavior(scatter(BehaviorClassifier(WINDOW))),
    )
    return {graph.role: graph for graph in small}


@pytest.fixture(scope="module")
def folder(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    for graph in graphs.values():
        write_graph(graph, folder / graph.file)
    return folder


SHAPES = {  # by role: inputs, outputs; None is the open batch
    "memory_attention": (
        {
            "t1": (1, 32, 4, 4),
            "mem": (None, SLOTS * 16, 16),
            "mempos": (SLOTS, 16),
            "ptr": (None, POINTERS * 2, 16),
            "ptrpos": (None, POINTERS * 2, 16),
            "bias": (None, 1, TOKENS),
        },
        {"pix": (None, 32, 4, 4)},
    ),
    "mask_decoder": (
        {"pix": (None, 32, 4, 4), "t4": (1, 4, 16, 16), "t2": (1, 8, 8, 8)},
        {"mask": (None, 16, 16), "ptr": (None, 32), "obj": (None, 1), "iou": (None, 1)},
    ),
    "memory_encoder": (
        {"t1": (1, 32, 4, 4), "mask": (None, 1, 16, 16), "obj": (None, 1)},
        {"mem": (None, 16, 16)},
    ),
    "prompt_decoder": ({"t1": (1, 32, 4, 4), "mask": (None, 1, 16, 16)}, {"ptr": (None, 32)}),
    "embedder": ({"crops": (None, 3, 224, 224)}, {"cls": (None, 8), "patch_mean": (None, 8)}),
    "behavior": ({"window": (None, 3, 8)}, {"logits": (None, 9)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("role", SHAPES)
def test_the_graph_takes_and_gives_what_its_role_says(folder: Path, role: str) -> None:
    expected = tuple(tuple(TensorSpec(name, "float32", shape) for name, shape in side.items()) for side in SHAPES[role])
    assert tensor_specs(folder / f"{role}.onnx") == expected


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 20])
@pytest.mark.parametrize("role", SHAPES)
def test_onnx_runtime_agrees_with_pytorch_at_every_batch(
    graphs: dict[str, Graph], folder: Path, role: str, batch: int
) -> None:
    differences = compare(graphs[role], folder / f"{role}.onnx", seeds=(1, 2), batch=batch)
    assert set(differences) == set(SHAPES[role][1])
    check_parity(graphs[role], differences, relative=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("role", SHAPES)
def test_the_graph_is_plain(folder: Path, role: str) -> None:
    model = onnx.load(folder / f"{role}.onnx")
    check_versions(model)
    used = {node.op_type for node in model.graph.node}
    assert not used & {"NonZero", "GatherND", "ScatterND", "Loop", "If", "RoiAlign", "GridSample"}
    assert not (folder / f"{role}.onnx.data").exists()


@pytest.mark.slow
def test_the_rows_of_rotary_projections_are_in_order_already(folder: Path) -> None:
    graph = onnx.load(folder / "memory_attention.onnx").graph
    weights = {tensor.name for tensor in graph.initializer}
    assert [node.op_type for node in graph.node if weights.issuperset(node.input)] == []


def test_a_changed_weight_is_a_parity_error_that_names_engine_output_and_figure(tmp_path: Path) -> None:
    graph = doubling()
    write_graph(graph, tmp_path / graph.file)
    check_parity(graph, compare(graph, tmp_path / graph.file))
    graph.network.factor.data += 0.01
    with pytest.raises(
        ParityError, match=r"output 'y' of engine 'behavior' differs from PyTorch by \S+, 4\.98e-03 of its largest"
    ):
        check_parity(graph, compare(graph, tmp_path / graph.file))


def test_an_error_in_mid_export_leaves_no_half_written_set(tmp_path: Path) -> None:
    broken = doubling()
    broken.network.factor.data[:] = torch.nan
    with pytest.raises(ParityError, match="from PyTorch by nan"), written_aside(tmp_path / "set") as aside:
        export_engine(broken, aside)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused = pytest.raises(OutputError, match=r"set: No space left on device; nothing was changed")
    with refused, written_aside(tmp_path / "set") as aside:
        export_engine(doubling(), aside)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_exists_keeps_its_other_files_and_gets_its_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "training-log.csv").write_text("kept")
    (tmp_path / "set" / "manifest.json").write_text("old")
    order, replace = [], Path.replace

    def note(self: Path, target: Path) -> Path:
        order.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", note)
    with written_aside(tmp_path / "set") as aside:
        for name in ("manifest.json", "encoder.onnx", "zebra.npz"):
            (aside / name).write_text("new")
    assert order[-1] == "manifest.json"
    assert {file.name: file.read_text() for file in (tmp_path / "set").iterdir()} == {
        "manifest.json": "new",
        "encoder.onnx": "new",
        "zebra.npz": "new",
        "training-log.csv": "kept",
    }
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="choose another folder"), written_aside(tmp_path / "file" / "set"):
        pass


def test_a_golden_run_hands_maps_on_and_names_the_rest_by_role(graphs: dict[str, Graph]) -> None:
    golden = golden_run(list(graphs.values()), {})
    assert {name: value.shape for name, value in golden.items() if name.split(".")[0] not in STANDING_ALONE} == {
        "t1": (1, 32, 4, 4),
        "t2": (1, 8, 8, 8),
        "t4": (1, 4, 16, 16),
        "memory_attention.mem": (1, SLOTS * 16, 16),
        "memory_attention.mempos": (SLOTS, 16),
        "memory_attention.ptr": (1, POINTERS * 2, 16),
        "memory_attention.ptrpos": (1, POINTERS * 2, 16),
        "memory_attention.bias": (1, 1, TOKENS),
        "memory_attention.pix_every4": (1, 32, 1, 1),
        "mask_decoder.mask": (1, 16, 16),
        "mask_decoder.ptr": (1, 32),
        "mask_decoder.obj": (1, 1),
        "mask_decoder.iou": (1, 1),
        "memory_encoder.mask": (1, 1, 16, 16),
        "memory_encoder.obj": (1, 1),
        "memory_encoder.mem": (1, 16, 16),
        "prompt_decoder.mask": (1, 1, 16, 16),
        "prompt_decoder.ptr": (1, 32),
    }
    conditioned = graphs["memory_attention"].run(
        {name: torch.from_numpy(golden.get(f"memory_attention.{name}", golden.get(name))) for name in ATTENTION_INPUTS}
    )["pix"]
    fine = {name: torch.from_numpy(golden[name]) for name in ("t4", "t2")}
    decoded = graphs["mask_decoder"].run({"pix": torch.from_numpy(conditioned), **fine})
    np.testing.assert_array_equal(decoded["mask"], golden["mask_decoder.mask"])


def test_a_session_can_place_pointers_without_pytorch() -> None:
    tracker = random_tracker(SMALL)
    constants = session_constants(tracker)
    age = np.float32(4) / (constants["pointer_frames"] - 1)
    waves = age / 10000 ** (2 * (np.arange(16) // 2) / 16)
    position = constants["pointer_weight"] @ np.concatenate([np.sin(waves), np.cos(waves)]) + constants["pointer_bias"]
    with torch.no_grad():
        expected = tracker.pointer_positions(torch.tensor([4.0]))
    np.testing.assert_allclose(position, expected[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(constants["memory_positions"], tracker.memory_positions().detach().numpy())


# The detector's patches


def small_detector() -> Detector:
    torch.manual_seed(0)
    config = DetectorConfig(32, 2, 64, 2, 2, queries=10, upsampling_stages=2, dropout=0.0, top_k=4)
    return scatter(Detector(config))


def test_eager_attention_is_the_fused_one() -> None:
    eager = small_detector()
    fused = copy.deepcopy(eager)
    for module in fused.modules():
        if hasattr(module, "config") and module is not fused:
            module.config._attn_implementation = "sdpa"
    inputs = roles.detector(eager, (5, 5)).draw(1, 1)
    with torch.no_grad():
        for ours, theirs in zip(eager(*inputs.values()), fused(*inputs.values()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_prompt_without_its_padding_is_the_padded_and_masked_one() -> None:
    detector = small_detector()
    *_, d1, text = roles.detector(detector, (5, 5), text_tokens=3).draw(1, 1).values()
    padded = torch.cat([text, torch.full((1, 4, 32), 9.0)], dim=1)
    valid = torch.tensor([[True] * 3 + [False] * 4])
    with torch.no_grad():
        tokens = detector.encode(d1, text)
        states = detector.decode(tokens, text, detector.start(tokens)).states
        level = detector.position(d1.shape, d1.device, d1.dtype)
        encoded = detector.detr_encoder([d1], padded, vision_pos_embeds=[level], text_mask=valid)
        stock = detector.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=padded,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=valid,
            spatial_shapes=encoded.spatial_shapes,
        ).intermediate_hidden_states
        scores = detector.dot_product_scoring(stock, padded, text_mask=valid).squeeze(-1)
    torch.testing.assert_close(states, stock, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(detector.score(states, text), scores, rtol=1e-3, atol=1e-4)
