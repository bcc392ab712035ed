"""Compiling with TensorRT-RTX, which is real and needs no GPU: what can be built is, what cannot is named."""

from __future__ import annotations

import gc
import json
import resource
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from onnx import TensorProto, helper

from barnsight_engines import tensorrt_builder
from barnsight_engines.errors import EngineError, ModelSetDataError, RuntimeMissingError
from barnsight_engines.tensorrt_builder import BuildSettings, build_engine
from barnsight_export.cli import main

NANO = Path(__file__).parents[2] / "engines" / "nano"
SM86 = BuildSettings(target="SM86")


def write_model(path: Path, *operators: str, batch: int | str = 1, width: int | str = 3) -> Path:
    """A chain of `operators` on x (batch, width, 3); each node is named `layers/<its number>/<operator>`."""
    nodes = [
        helper.make_node(operator, [f"x{i}" if i else "x"], [f"x{i + 1}"], name=f"layers/{i}/{operator}")
        for i, operator in enumerate(operators)
    ]
    shape = [batch, width, 3]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{len(operators)}", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize("role", ["encoder", pytest.param("detector", marks=pytest.mark.slow)])
def test_the_shipped_networks_build(tmp_path: Path, role: str) -> None:
    built = build_engine(NANO / f"{role}.onnx", tmp_path / f"{role}.engine", SM86, "tensorrt-rtx")
    assert built.file.stat().st_size == built.size_bytes > 1_000_000
    assert built.layers > 100
    assert list(tmp_path.iterdir()) == [built.file]


def test_no_garbage_is_collected_while_a_builder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT logs with its lock held: a builder that is collected in that call waits for the lock forever."""
    collects: list[bool] = []

    class Watching(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: object, message: str) -> None:
            collects.append(gc.isenabled())

    monkeypatch.setattr(tensorrt_builder, "message_log", lambda _: Watching())
    another = trt.Builder(trt.Logger(trt.Logger.ERROR))  # beside it, a new log is worth a message
    build_engine(write_model(tmp_path / "m.onnx", "Relu"), tmp_path / "m.engine", SM86, "tensorrt-rtx")
    assert collects[0] is False
    assert gc.isenabled()
    assert another


def test_an_open_batch_gets_its_profile(tmp_path: Path) -> None:
    model = write_model(tmp_path / "open.onnx", "Relu", "Exp", batch="B")
    assert build_engine(model, tmp_path / "open.engine", SM86, "tensorrt-rtx").layers == 2


def test_only_the_batch_may_be_open(tmp_path: Path) -> None:
    model = write_model(tmp_path / "open.onnx", "Relu", width="W")
    with pytest.raises(ModelSetDataError, match=r"input 'x' must be open in its batch alone, got \(1, -1, 3\)"):
        build_engine(model, tmp_path / "open.engine", SM86, "tensorrt-rtx")


def test_an_operator_that_tensorrt_does_not_have_is_named_with_its_node(tmp_path: Path) -> None:
    model = write_model(tmp_path / "odd.onnx", "Relu", "Det")
    with pytest.raises(ModelSetDataError) as refused:
        build_engine(model, tmp_path / "odd.engine", SM86, "tensorrt-rtx")
    assert str(refused.value).startswith(f"{model}: tensorrt-rtx cannot use node 'layers/1/Det' with the operator Det")
    assert refused.value.exit_code == 65
    assert not (tmp_path / "odd.engine").exists()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelSetDataError, match=r"text\.onnx: "):
        build_engine(tmp_path / "text.onnx", tmp_path / "text.engine", SM86, "tensorrt-rtx")


def test_a_truncated_file(tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes((NANO / "encoder.onnx").read_bytes()[:1_000_000])
    with pytest.raises(ModelSetDataError, match=r"half\.onnx: "):
        build_engine(tmp_path / "half.onnx", tmp_path / "half.engine", SM86, "tensorrt-rtx")


def test_a_gpu_that_tensorrt_rtx_does_not_know(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", "Relu")
    with pytest.raises(RuntimeMissingError, match=r"cannot build for 'SM87'; it builds for: .*SM86"):
        build_engine(model, tmp_path / "m.engine", BuildSettings(target="SM87"), "tensorrt-rtx")


def test_a_full_disk_leaves_the_engine_that_was_there(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", "Relu")
    (tmp_path / "m.engine").write_bytes(b"the one before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the write ends in the middle
    try:
        with pytest.raises(EngineError, match=r"m\.engine: cannot be written \(File too large\); free space"):
            build_engine(model, tmp_path / "m.engine", SM86, "tensorrt-rtx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "m.engine").read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.onnx"]


class TestTheCommand:
    """`barnsight-export build` on a folder of ONNX files."""

    def test_each_engine_is_reported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_model(tmp_path / "a.onnx", "Relu")
        write_model(tmp_path / "b.onnx", "Relu", "Exp", "Relu", batch="B")
        assert main(["build", "--models", str(tmp_path), "--json", "--out", str(tmp_path / "built")]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["runtime"], report["target"]) == ("tensorrt-rtx", "SM86")
        assert [(engine["engine"], engine["layers"]) for engine in report["engines"]] == [("a", 1), ("b", 3)]
        assert sorted(path.name for path in (tmp_path / "built").iterdir()) == ["a.engine", "b.engine"]

    def test_one_that_fails_leaves_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_model(tmp_path / "a.onnx", "Relu")
        write_model(tmp_path / "b.onnx", "Det")
        assert main(["build", "--models", str(tmp_path), "--out", str(tmp_path / "built")]) == 65
        assert "'layers/0/Det'" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]

    def test_a_folder_without_networks(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["build", "--models", str(tmp_path)]) == 66
        assert "holds no manifest.json and no *.onnx" in capsys.readouterr().err

    @pytest.mark.parametrize("batches", ["1,2", "4,2,8", "0,1,2", "-1,2,3", "few"])
    def test_batches_that_make_no_sense(self, tmp_path: Path, batches: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["build", "--models", str(tmp_path), "--batches", batches]) == 64
        assert "--batches" in capsys.readouterr().err
