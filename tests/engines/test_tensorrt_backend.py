# ruff: noqa: N802, N815 - the fakes bear the names of what they stand for
"""TensorRT without a GPU: a fake CUDA that keeps books of its memory, a fake TensorRT that computes by ONNX Runtime.

The fakes are as strict as the real ones: copies and kernels happen when the stream is waited for, addresses must be
those of device memory, and what cannot be used is None, with a message in the log.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from barnsight_engines.certificate import read_certificate
from barnsight_engines.errors import (
    EngineError,
    ModelSetDataError,
    ModelSetMismatchError,
    ModelSetMissingError,
    RuntimeMissingError,
)
from barnsight_engines.loader import load_model_set
from barnsight_engines.spec import EngineSpec, TensorSpec
from barnsight_engines.tensorrt_backend import TensorRtBackend, this_machine
from barnsight_engines.tensorrt_builder import BuildSettings, build_engine, build_model_set

Folder = Any  # ModelSetFolder of conftest.py


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


class MemcpyKind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class FakeCuda(ModuleType):
    """The calls of `cuda.bindings.runtime` that the backend makes; `failing` maps a call's name to its error."""

    cudaError_t = CudaError
    cudaMemcpyKind = MemcpyKind

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, tuple[str, Any, int]] = {}  # address: (host or device, what holds it, bytes)
        self.streams: set[int] = set()
        self.next_stream = 7
        self.waiting: list[Callable[[], None]] = []
        self.failing: dict[str, CudaError] = {}
        self.copies = 0

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        code = self.failing.get(name, CudaError.cudaSuccess)
        return (code, *values) if code == CudaError.cudaSuccess else (code, *(None for _ in values))

    def _take(self, name: str, where: str, size: int) -> tuple[Any, ...]:
        if name in self.failing:
            return self._answer(name, 0)
        held = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(held)] = (where, held, size)
        return self._answer(name, ctypes.addressof(held))

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._answer("cudaGetDeviceCount", 1)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self._answer("cudaGetDeviceProperties", SimpleNamespace(name=b"Orin", major=8, minor=7))

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cudaDriverGetVersion", 12060)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        self.next_stream += 1
        self.streams.add(self.next_stream)
        return self._answer("cudaStreamCreate", self.next_stream)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return self._answer("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        while self.waiting:
            self.waiting.pop(0)()
        return self._answer("cudaStreamSynchronize")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._take("cudaMalloc", "device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._take("cudaMallocHost", "host", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert self.memory.pop(address)[0] == "device"
        return self._answer("cudaFree")

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        assert self.memory.pop(address)[0] == "host"
        return self._answer("cudaFreeHost")

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: MemcpyKind, stream: int) -> tuple[Any, ...]:
        places = ("host", "device") if kind is MemcpyKind.cudaMemcpyHostToDevice else ("device", "host")
        assert (self.memory[of][0], self.memory[to][0]) == places
        assert stream in self.streams
        assert size <= min(self.memory[of][2], self.memory[to][2])
        self.copies += 1
        self.waiting.append(lambda: ctypes.memmove(to, of, size) and None)
        return self._answer("cudaMemcpyAsync")


class FakeTensorRt(ModuleType):
    """The module `tensorrt`: an "engine" is a line of JSON and the ONNX file, which ONNX Runtime computes."""

    MAGIC = b"ftrt"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"

        def log(self, severity: str, message: str) -> None:
            raise NotImplementedError

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class BuilderFlag(enum.Enum):
        TF32 = 1

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 1

    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16"])

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.__version__ = "10.3.0"
        self.cuda = cuda
        self.refused = self.exhausted = self.broken = False
        self.error: dict[str, float] = {}  # by output: what this runtime computes too much
        self.built: list[dict[str, Any]] = []

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._engine(log, content))

    def Builder(self, log: Any) -> Any:
        return FakeBuilder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=network.read, num_errors=0)

    def _engine(self, log: Any, content: bytes) -> FakeEngine | None:
        if self.refused or not content.startswith(self.MAGIC):
            log.log(self.ILogger.ERROR, "Serialization assertion\n stdVersionRead == serializationVersion failed")
            log.log(self.ILogger.WARNING, "not what went wrong")
            return None
        return FakeEngine(self, content)


class FakeEngine:
    """One engine: static shapes, or an open batch within its profile."""

    num_optimization_profiles = 1

    def __init__(self, trt: FakeTensorRt, content: bytes) -> None:
        header, model = content[len(trt.MAGIC) :].split(b"\n", 1)
        self.trt, self.profile = trt, json.loads(header)
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.tensors = self.inputs | {node.name: node for node in self.session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(bfloat16)": "BF16"}
        return self.trt.DataType[names[self.tensors[name].type]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.tensors[name].shape]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert profile == 0
        return [[batch, *self.get_tensor_shape(name)[1:]] for batch in self.profile["batches"]]

    def create_execution_context(self) -> FakeContext | None:
        return None if self.trt.exhausted else FakeContext(self)


class FakeContext:
    """Reads and writes device memory at the addresses that it was given."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.reshaped = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        self.shapes[name] = shape
        self.reshaped += 1
        return -1 not in self.engine.get_tensor_shape(name) or smallest[0] <= shape[0] <= largest[0]

    def get_tensor_shape(self, name: str) -> list[int]:
        batch = next(iter(self.shapes.values()))[0]
        return list(self.shapes.get(name) or [batch if n < 0 else n for n in self.engine.get_tensor_shape(name)])

    def set_tensor_address(self, name: str, address: int) -> bool:
        where, _, size = self.cuda.memory[address]
        self.addresses[name] = address
        return where == "device" and size >= math.prod(self.get_tensor_shape(name)) * self._dtype(name).itemsize

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.cuda.streams
        assert self.addresses.keys() == self.engine.tensors.keys()
        self.cuda.waiting.append(self._compute)
        return not self.engine.trt.broken

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype({"FLOAT": np.float32, "HALF": np.float16}[self.engine.get_tensor_dtype(name).name])

    def _at(self, name: str) -> NDArray[Any]:
        shape, held = self.get_tensor_shape(name), self.cuda.memory[self.addresses[name]][1]
        return np.frombuffer(held, self._dtype(name), math.prod(shape)).reshape(shape)

    def _compute(self) -> None:
        names = [name for name in self.engine.tensors if name not in self.engine.inputs]
        found = self.engine.session.run(names, {name: self._at(name).copy() for name in self.engine.inputs})
        for name, value in zip(names, found, strict=True):
            self._at(name)[...] = value + self.engine.trt.error.get(name, 0)


class FakeBuilder:
    """Builder, network and configuration in one; the plan holds the ONNX file and the profile."""

    def __init__(self, trt: FakeTensorRt, log: Any) -> None:
        self.trt = trt
        self.record: dict[str, Any] = {"batches": None, "tf32": True}

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = SimpleNamespace(num_inputs=0, num_outputs=0, num_layers=3)

        def read(path: str) -> bool:
            self.model = Path(path).read_bytes()
            inputs = ort.InferenceSession(self.model, providers=["CPUExecutionProvider"]).get_inputs()
            shapes = [[n if isinstance(n, int) else -1 for n in node.shape] for node in inputs]
            network.num_inputs, network.num_outputs = len(inputs), 1
            network.get_input = lambda i: SimpleNamespace(name=inputs[i].name, shape=shapes[i])
            return True

        network.read = read
        return network

    def create_builder_config(self) -> Any:
        def keep(name: str) -> Callable[..., Any]:
            return lambda *values: self.record.__setitem__(name, values) or True

        return SimpleNamespace(
            set_memory_pool_limit=keep("pool"),
            clear_flag=lambda flag: self.record.__setitem__("tf32", flag is not self.trt.BuilderFlag.TF32),
            add_optimization_profile=lambda profile: self.record.__setitem__("batches", profile.batches),
            create_timing_cache=lambda known: known,
            set_timing_cache=lambda cache, ignore: self._remember(cache),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings of 10.3"),
        )

    def create_optimization_profile(self) -> Any:
        profile = SimpleNamespace(batches=None)
        profile.set_shape = lambda name, *shapes: setattr(profile, "batches", [shape[0] for shape in shapes])
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self.trt.built.append(self.record)
        plan = self.trt.MAGIC + json.dumps({"batches": self.record["batches"] or [1] * 3}).encode() + b"\n" + self.model

        class HostMemory(bytes):
            nbytes = len(plan)

        return HostMemory(plan)

    def _remember(self, cache: bytes) -> bool:
        self.record.setdefault("caches", []).append(cache)
        return cache in (b"", b"timings of 10.3")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    for package in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setattr("barnsight_engines.tensorrt_backend.DRIVER_FILES", ())
    return fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


SPEC = EngineSpec(
    "embedder", (TensorSpec("crops", "float32", (None, 3)),), (TensorSpec("doubled", "float32", (None, 3)),)
)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """doubled = crops + crops, for any batch."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("crops", "doubled")]
    graph = helper.make_graph([helper.make_node("Add", ["crops", "crops"], ["doubled"])], "g", *[[t] for t in tensors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "embedder.onnx"))
    return tmp_path / "embedder.onnx"


@pytest.fixture
def engine(onnx_file: Path, trt: FakeTensorRt) -> Path:
    build_engine(onnx_file, onnx_file.with_suffix(".engine"), BuildSettings(batches=(1, 2, 4)))
    return onnx_file.with_suffix(".engine")


def crops(batch: int, value: float = 1.5) -> dict[str, NDArray[Any]]:
    return {"crops": np.full((batch, 3), value, np.float32)}


class TestARun:
    """Inputs go in, answers come out, for every batch of the profile."""

    @pytest.mark.parametrize("batch", [1, 2, 4])
    def test_any_batch_of_the_profile(self, engine: Path, batch: int) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            assert backend.run(crops(batch))["doubled"].tolist() == [[3, 3, 3]] * batch

    def test_answers_belong_to_the_caller(self, engine: Path) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            first = backend.run(crops(2, 1))["doubled"]
            assert backend.run(crops(2, 5))["doubled"].tolist() == [[10, 10, 10]] * 2
        assert first.tolist() == [[2, 2, 2]] * 2

    def test_inputs_need_not_be_contiguous(self, engine: Path) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
            assert backend.run({"crops": turned})["doubled"].tolist() == (2 * turned).tolist()

    def test_one_copy_a_tensor_and_no_shape_set_twice(self, engine: Path, cuda: FakeCuda) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            for batch in (2, 2, 2):
                backend.run(crops(batch))
            assert cuda.copies == 2 * 3
            assert backend._context.reshaped == 2  # the largest at the start, then a batch of two

    def test_memory_is_allocated_once_for_the_largest_batch_and_given_back(self, engine: Path, cuda: FakeCuda) -> None:
        backend = TensorRtBackend(engine, SPEC)
        sizes = sorted((where, size) for where, _, size in cuda.memory.values())
        assert sizes == [("device", 48)] * 2 + [("host", 48)] * 2  # 4 crops of 3 float32, in and out
        held = set(cuda.memory)
        backend.run(crops(4))
        backend.run(crops(1))
        assert set(cuda.memory) == held
        backend.close()
        backend.close()
        assert not cuda.memory
        assert not cuda.streams

    def test_a_batch_beyond_the_profile(self, engine: Path) -> None:
        with (
            TensorRtBackend(engine, SPEC) as backend,
            pytest.raises(EngineError, match=r"input 'crops' is \(5, 3\), its largest shape is \(4, 3\)"),
        ):
            backend.run(crops(5))

    def test_another_dtype_is_refused_before_anything_is_copied(self, engine: Path, cuda: FakeCuda) -> None:
        with TensorRtBackend(engine, SPEC) as backend, pytest.raises(EngineError, match="float64"):
            backend.run({"crops": np.zeros((1, 3))})
        assert cuda.copies == 0

    def test_a_closed_engine_refuses(self, engine: Path) -> None:
        backend = TensorRtBackend(engine, SPEC)
        backend.close()
        with pytest.raises(EngineError, match="'embedder' is closed"):
            backend.run(crops(1))

    @pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
    def test_each_cuda_error_is_named(self, engine: Path, cuda: FakeCuda, call: str) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            cuda.failing[call] = CudaError.cudaErrorIllegalAddress
            with pytest.raises(EngineError, match=rf"{call}.* failed with cudaErrorIllegalAddress \(700\)"):
                backend.run(crops(1))

    def test_a_kernel_that_cannot_be_queued(self, engine: Path, trt: FakeTensorRt) -> None:
        with TensorRtBackend(engine, SPEC) as backend:
            trt.broken = True
            with pytest.raises(EngineError, match="engine 'embedder': TensorRT failed"):
                backend.run(crops(1))


class TestOpening:
    """What cannot run is refused when it opens, and leaves nothing behind."""

    def test_a_file_that_is_no_engine(self, engine: Path, cuda: FakeCuda) -> None:
        engine.write_bytes(b"something else")
        with pytest.raises(ModelSetDataError) as refused:
            TensorRtBackend(engine, SPEC)
        message = str(refused.value)
        assert message.startswith(f"{engine}: tensorrt 10.3.0 cannot open it (Serialization assertion stdVersionRead")
        assert message.endswith("run: barnsight engine build")
        assert not cuda.memory

    def test_no_file(self, tmp_path: Path, trt: FakeTensorRt) -> None:
        with pytest.raises(ModelSetDataError, match="No such file or directory; run: barnsight engine build"):
            TensorRtBackend(tmp_path / "none.engine", SPEC)

    @pytest.mark.parametrize(
        ("tensor", "words"),
        [
            (TensorSpec("crops", "float32", (None, 4)), r"'crops' must be float32 \(any, 4\), got float32 \(any, 3\)"),
            (TensorSpec("crops", "float16", (None, 3)), "'crops' must be float16"),
            (TensorSpec("image", "float32", (None, 3)), "'image' is missing"),
        ],
    )
    def test_another_networks_tensors(self, engine: Path, cuda: FakeCuda, tensor: TensorSpec, words: str) -> None:
        with pytest.raises(ModelSetMismatchError, match=words):
            TensorRtBackend(engine, EngineSpec("embedder", (tensor,), SPEC.outputs))
        assert not cuda.memory
        assert not cuda.streams

    @pytest.mark.parametrize("call", ["cudaMallocHost", "cudaMalloc"])
    def test_memory_that_is_short(self, engine: Path, cuda: FakeCuda, call: str) -> None:
        cuda.failing[call] = CudaError.cudaErrorMemoryAllocation
        with pytest.raises(EngineError, match=rf"{call}\(48 bytes\) failed with cudaErrorMemoryAllocation"):
            TensorRtBackend(engine, SPEC)
        assert not cuda.memory
        assert not cuda.streams

    def test_memory_that_is_short_for_the_context(self, engine: Path, trt: FakeTensorRt) -> None:
        trt.exhausted = True
        with pytest.raises(EngineError, match="no memory to run it"):
            TensorRtBackend(engine, SPEC)

    def test_no_gpu(self, engine: Path, cuda: FakeCuda) -> None:
        cuda.failing["cudaGetDeviceCount"] = CudaError.cudaErrorNoDevice
        with pytest.raises(RuntimeMissingError, match=r"no GPU can be used: .* cudaErrorNoDevice") as refused:
            TensorRtBackend(engine, SPEC)
        assert refused.value.exit_code == 69

    def test_no_tensorrt(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(RuntimeMissingError, match=r"tensorrt is not installed .* JetPack's package"):
            TensorRtBackend(tmp_path / "e.engine", SPEC)

    def test_no_cuda_python(self, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        monkeypatch.setitem(sys.modules, "cuda.cudart", None)
        with pytest.raises(RuntimeMissingError, match="install the package 'cuda-python'"):
            TensorRtBackend(tmp_path / "e.engine", SPEC)

    def test_an_older_cuda_python(self, engine: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        monkeypatch.setitem(sys.modules, "cuda.cudart", cuda)
        with TensorRtBackend(engine, SPEC) as backend:
            assert backend.run(crops(1))["doubled"].tolist() == [[3, 3, 3]]


class TestBuilding:
    """What the builder is told."""

    def test_precision_stays_that_of_the_file(self, engine: Path, trt: FakeTensorRt) -> None:
        (record,) = trt.built
        assert record["tf32"] is False
        assert record["batches"] == [1, 2, 4]
        assert "pool" not in record

    def test_a_bound_on_the_workspace(self, onnx_file: Path, trt: FakeTensorRt) -> None:
        build_engine(onnx_file, onnx_file.with_suffix(".engine"), BuildSettings(workspace_bytes=1 << 30))
        assert trt.built[0]["pool"] == (trt.MemoryPoolType.WORKSPACE, 1 << 30)

    def test_memory_attention_gets_no_larger_a_batch_than_fits(self, tmp_path: Path, trt: FakeTensorRt) -> None:
        shapes: dict[str, list[int | str]] = {"t1": [1, 4, 72, 72], "bias": ["batch", 1, 36364]}
        tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        pix = helper.make_tensor_value_info("pix", TensorProto.FLOAT, ["batch", 1, 36364])
        graph = helper.make_graph([helper.make_node("Identity", ["bias"], ["pix"])], "g", tensors, [pix])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, str(tmp_path / "memory_attention.onnx"))
        build_engine(tmp_path / "memory_attention.onnx", tmp_path / "memory_attention.engine", BuildSettings())
        assert trt.built[-1]["batches"] == [1, 1, 1]

    def test_timings_are_kept_for_the_next_build(self, onnx_file: Path, trt: FakeTensorRt) -> None:
        settings = BuildSettings(timing_cache=onnx_file.with_name("timing.cache"))
        for _ in range(2):
            build_engine(onnx_file, onnx_file.with_suffix(".engine"), settings)
        assert [record["caches"] for record in trt.built] == [[b""], [b"timings of 10.3"]]

    def test_timings_of_another_version_are_passed_over(self, onnx_file: Path, trt: FakeTensorRt) -> None:
        cache = onnx_file.with_name("timing.cache")
        cache.write_bytes(b"timings of 10.0")
        build_engine(onnx_file, onnx_file.with_suffix(".engine"), BuildSettings(timing_cache=cache))
        assert trt.built[0]["caches"] == [b"timings of 10.0", b""]
        assert cache.read_bytes() == b"timings of 10.3"

    def test_only_tensorrt_rtx_builds_for_another_gpu(self, onnx_file: Path, trt: FakeTensorRt) -> None:
        with pytest.raises(
            RuntimeMissingError, match="cannot build for 'SM86'; it builds for: this machine's GPU alone"
        ):
            build_engine(onnx_file, onnx_file.with_suffix(".engine"), BuildSettings(target="SM86"))


class TestAModelSet:
    """Engines are built from a set, certified against ONNX Runtime, and opened only with their certificate."""

    def test_built_certified_and_run(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        certificate = build_model_set(model_set_folder.path, BuildSettings())
        assert certificate.verdict == "pass"
        assert str(certificate.machine) == "tensorrt 10.3.0, Orin (8.7), CUDA 12.6"
        assert [record.role for record in certificate.engines] == ["encoder", "detector"]
        assert read_certificate(model_set_folder.path / "tensorrt") == certificate
        with load_model_set(model_set_folder.path) as models:
            assert models.runtime == "tensorrt"
            features = models.encoder.encode(np.full((32, 64, 3), 255, np.uint8))
            assert len(models.detector.detect(features, (32, 64), "pig")) == 3
        assert not trt.cuda.memory

    def test_the_hash_of_the_set_is_that_of_its_manifest(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        before = load_model_set(model_set_folder.path).hash
        assert build_model_set(model_set_folder.path, BuildSettings()).model_set == before
        assert load_model_set(model_set_folder.path).hash == before

    def test_an_engine_that_computes_something_else_is_refused(
        self, model_set_folder: Folder, trt: FakeTensorRt
    ) -> None:
        trt.error["logits"] = 0.25
        with pytest.raises(ModelSetDataError) as refused:
            build_model_set(model_set_folder.path, BuildSettings())
        assert refused.value.exit_code == 65
        assert "engine 'detector': output 'logits' (cosine" in str(refused.value)
        assert "largest difference 0.15" in str(refused.value)
        assert not (model_set_folder.path / "tensorrt").exists()
        assert not (model_set_folder.path / "tensorrt.building").exists()
        kept = json.loads((model_set_folder.path / "tensorrt-refused.json").read_text())
        assert kept["verdict"] == "fail"
        assert load_model_set(model_set_folder.path).runtime == "onnxruntime"

    def test_a_refused_build_leaves_the_engines_that_were_there(
        self, model_set_folder: Folder, trt: FakeTensorRt
    ) -> None:
        certificate = build_model_set(model_set_folder.path, BuildSettings())
        trt.error["d4"] = 1
        with pytest.raises(ModelSetDataError, match="output 'd4'"):
            build_model_set(model_set_folder.path, BuildSettings())
        assert read_certificate(model_set_folder.path / "tensorrt") == certificate
        trt.error.clear()
        build_model_set(model_set_folder.path, BuildSettings())
        assert not (model_set_folder.path / "tensorrt-refused.json").exists()

    def test_numbers_are_looked_at_again_at_each_start(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        trt.error["presence"] = 0.3
        with pytest.raises(ModelSetDataError, match="output 'presence' is not the golden one on tensorrt") as refused:
            load_model_set(model_set_folder.path)
        assert str(refused.value).endswith("run: barnsight engine build")
        assert not trt.cuda.memory

    def test_another_version_of_tensorrt_is_certified_again(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        trt.__version__ = "10.7.0"
        with load_model_set(model_set_folder.path):
            assert read_certificate(model_set_folder.path / "tensorrt").machine == this_machine("tensorrt")

    def test_another_version_that_computes_something_else(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        trt.__version__, trt.error["boxes"] = "10.7.0", 0.5
        with pytest.raises(ModelSetDataError, match=r"engine 'detector': output 'boxes' .* on tensorrt 10\.7\.0"):
            load_model_set(model_set_folder.path)
        assert read_certificate(model_set_folder.path / "tensorrt").verdict == "fail"
        trt.error.clear()
        with pytest.raises(ModelSetDataError, match="output 'boxes'"):
            load_model_set(model_set_folder.path)

    def test_a_version_that_opens_no_older_engines(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        trt.refused = True
        with pytest.raises(ModelSetDataError, match=r"cannot open it .* run: barnsight engine build"):
            load_model_set(model_set_folder.path)

    def test_an_engine_that_was_changed(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        path = model_set_folder.path / "tensorrt" / "encoder.engine"
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(ModelSetDataError, match=r"encoder\.engine: SHA-256 must be"):
            load_model_set(model_set_folder.path)

    def test_engines_of_another_set(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        model_set_folder.manifest["trained_on"] = "something else"
        model_set_folder.save()
        with pytest.raises(ModelSetDataError, match="is of the model set"):
            load_model_set(model_set_folder.path)

    def test_engines_without_tensorrt_leave_the_choice_to_onnx_runtime(
        self, model_set_folder: Folder, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build_model_set(model_set_folder.path, BuildSettings())
        monkeypatch.delitem(sys.modules, "tensorrt")
        monkeypatch.setattr("barnsight_engines.loader.find_spec", lambda name: None)
        assert load_model_set(model_set_folder.path).runtime == "onnxruntime"

    def test_tensorrt_without_engines(self, model_set_folder: Folder, trt: FakeTensorRt) -> None:
        with pytest.raises(ModelSetMissingError, match=r"certificate\.json: .* run: barnsight engine build"):
            load_model_set(model_set_folder.path, runtime="tensorrt")
