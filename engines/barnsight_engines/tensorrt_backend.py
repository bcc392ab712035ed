"""TensorRT: runs the `*.engine` files that were built on this machine, on its GPU.

Everything is allocated when the engine opens: one CUDA stream, and for each tensor a pinned host buffer and a device
buffer of its largest size, whose addresses the engine keeps. A run copies in, executes and copies out on that one
stream, and waits once. `tensorrt` and `cuda-python` are imported only here and only then, so that everything else
works without them. What is called is common to TensorRT 10.3 (JetPack 6), TensorRT 11 and TensorRT-RTX.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import check_inputs
from barnsight_engines.certificate import Machine
from barnsight_engines.errors import EngineError, ModelSetDataError, ModelSetMismatchError, RuntimeMissingError
from barnsight_engines.spec import EngineSpec, TensorSpec, difference

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PACKAGES = {
    "tensorrt": "JetPack's package python3-libnvinfer",
    "tensorrt-rtx": "the package 'tensorrt-rtx'",
}
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
OTHERWISE = "or set models.runtime to one of: auto, onnxruntime"
DRIVER_FILES = (Path("/etc/nv_tegra_release"), Path("/sys/module/nvidia/version"))
PROFILE = 0  # engines are built with one optimization profile, of which this is the index
CUDA_SUCCESS = 0
DEVICE = 0


class TensorRtBackend:
    """One engine file, opened on the first GPU and compared with its specification. A context manager too.

    Raises RuntimeMissingError where TensorRT, CUDA or the GPU is missing, ModelSetDataError where the file is no
    engine of this TensorRT and GPU, ModelSetMismatchError where its tensors are others, EngineError where memory is
    short.
    """

    def __init__(self, path: Path, spec: EngineSpec, runtime: str = "tensorrt") -> None:
        self.spec = spec
        self.runtime = runtime
        trt, self._cuda = import_tensorrt(runtime), import_cuda()
        self._log = message_log(trt)
        with ExitStack() as opened:  # gives back what is open already, should a later step fail
            check_gpu(self._cuda)
            engine = self._read(trt, path)
            for kind, mode, wanted in (
                ("input", trt.TensorIOMode.INPUT, spec.inputs),
                ("output", trt.TensorIOMode.OUTPUT, spec.outputs),
            ):
                if wrong := difference(wanted, _tensors(engine, mode)):
                    raise ModelSetMismatchError(f"{path}: {kind} {wrong}; run: barnsight engine build")
            self._stream = _checked("cudaStreamCreate", self._cuda.cudaStreamCreate())
            opened.callback(self._give_back, "cudaStreamDestroy", self._stream)
            context = engine.create_execution_context()
            if context is None:
                raise EngineError(f"{path}: no memory to run it ({self._log.last()}); check the free memory")
            self._context: Any = context
            self._shapes: dict[str, tuple[int, ...]] = {}
            for tensor in spec.inputs:
                self._set_shape(tensor.name, _largest_shape(engine, tensor.name))
            self._largest = dict(self._shapes)
            self._buffers: dict[str, _Buffer] = {}
            for tensor in (*spec.inputs, *spec.outputs):
                if engine.get_tensor_location(tensor.name) != trt.TensorLocation.DEVICE:
                    raise ModelSetMismatchError(f"{path}: '{tensor.name}' holds a shape; export the model set again")
                buffer = self._allocate(path, tensor, opened)
                if not context.set_tensor_address(tensor.name, buffer.device):
                    raise EngineError(f"{path}: '{tensor.name}' cannot be placed ({self._log.last()})")
                self._buffers[tensor.name] = buffer
            opened.callback(self._forget)  # the first to go: it uses all the others
            self._opened = opened.pop_all()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once and wait for the answer; raises EngineError."""
        check_inputs(self.spec, inputs)
        if self._context is None:
            raise EngineError(f"engine '{self.spec.role}' is closed; load the model set again")
        for name, array in inputs.items():
            self._feed(name, array)
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(f"engine '{self.spec.role}': TensorRT failed ({self._log.last()}); check the free memory")
        answers = {tensor.name: self._fetch(tensor.name) for tensor in self.spec.outputs}
        _checked("cudaStreamSynchronize", self._cuda.cudaStreamSynchronize(self._stream))
        return {name: answer.copy() for name, answer in answers.items()}

    def close(self) -> None:
        """Give everything back, in the opposite order; a second call does nothing."""
        self._opened.close()

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, trt: Any, path: Path) -> Any:
        """The engine in the file `path`; TensorRT returns None where it cannot use it, and raises nothing."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelSetDataError(f"{path}: {error.strerror}; run: barnsight engine build") from error
        with garbage_left_alone():
            engine = trt.Runtime(self._log).deserialize_cuda_engine(content)
        if engine is None:
            raise ModelSetDataError(
                f"{path}: {self.runtime} {trt.__version__} cannot open it ({self._log.last()}); an engine runs only "
                "on the GPU and with the version that it was built for: run: barnsight engine build"
            )
        return engine

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self._shapes.get(name) == shape:
            return
        if not self._context.set_input_shape(name, shape):
            raise EngineError(
                f"engine '{self.spec.role}': input '{name}' cannot have the shape {shape} ({self._log.last()}); "
                "run: barnsight engine build"
            )
        self._shapes[name] = shape

    def _allocate(self, path: Path, tensor: TensorSpec, opened: ExitStack) -> _Buffer:
        """Buffers for the largest shape of `tensor`, pinned on the host and on the device."""
        largest = tuple(self._context.get_tensor_shape(tensor.name))
        if min(largest, default=0) < 0:
            raise ModelSetMismatchError(
                f"{path}: '{tensor.name}' has no largest shape, got {largest}; only the batch may be open: "
                "export the model set again"
            )
        dtype = np.dtype(tensor.dtype)
        size = max(math.prod(largest) * dtype.itemsize, 1)
        host = _checked(f"cudaMallocHost({size} bytes)", self._cuda.cudaMallocHost(size))
        opened.callback(self._give_back, "cudaFreeHost", host)
        device = _checked(f"cudaMalloc({size} bytes)", self._cuda.cudaMalloc(size))
        opened.callback(self._give_back, "cudaFree", device)
        return _Buffer(int(host), int(device), size, dtype)

    def _feed(self, name: str, array: NDArray[Any]) -> None:
        """Put an input into its pinned buffer and send it off."""
        largest, buffer = self._largest[name], self._buffers[name]
        if any(n > most for n, most in zip(array.shape, largest, strict=True)):
            raise EngineError(
                f"engine '{self.spec.role}': input '{name}' is {array.shape}, its largest shape is {largest}; "
                "pass a smaller batch, or build the engine for a larger one"
            )
        self._set_shape(name, array.shape)
        np.copyto(buffer.view(array.shape), array)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        sent = self._cuda.cudaMemcpyAsync(buffer.device, buffer.host, array.nbytes, kind, self._stream)
        _checked(f"cudaMemcpyAsync of '{name}'", sent)

    def _fetch(self, name: str) -> NDArray[Any]:
        """Send for an output; the array, in its pinned buffer, is filled when the stream has been waited for."""
        buffer = self._buffers[name]
        answer = buffer.view(tuple(self._context.get_tensor_shape(name)))
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        sent = self._cuda.cudaMemcpyAsync(buffer.host, buffer.device, answer.nbytes, kind, self._stream)
        _checked(f"cudaMemcpyAsync of '{name}'", sent)
        return answer

    def _give_back(self, function: str, what: Any) -> None:
        _checked(function, getattr(self._cuda, function)(what))

    def _forget(self) -> None:
        self._context = None
        self._buffers = {}


@dataclass(frozen=True, slots=True)
class _Buffer:
    """One tensor's memory: addresses of `size` bytes, pinned on the host and on the device."""

    host: int
    device: int
    size: int
    dtype: np.dtype[Any]

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The beginning of the host buffer as an array of `shape`."""
        content = memoryview((ctypes.c_byte * self.size).from_address(self.host))
        array: NDArray[Any] = np.ndarray(shape, self.dtype, content)
        return array


def import_tensorrt(runtime: str) -> Any:
    """The module of "tensorrt" or "tensorrt-rtx". Raises RuntimeMissingError."""
    try:
        return import_module(MODULES[runtime])
    except ImportError as error:
        raise RuntimeMissingError(
            f"{runtime} is not installed ({error}); install {PACKAGES[runtime]}, {OTHERWISE}"
        ) from error


def import_cuda() -> Any:
    """The CUDA runtime of cuda-python. Raises RuntimeMissingError."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        try:
            return import_module("cuda.cudart")  # its name up to cuda-python 12.6.0
        except ImportError as error:
            raise RuntimeMissingError(
                f"cuda-python is not installed ({error}); install the package 'cuda-python' of this machine's CUDA "
                f"(12 on JetPack 6), {OTHERWISE}"
            ) from error


def check_gpu(cuda: Any) -> None:
    """Raise RuntimeMissingError unless CUDA finds a GPU."""
    try:
        count = _checked("cudaGetDeviceCount", cuda.cudaGetDeviceCount())
    except EngineError as error:
        raise RuntimeMissingError(f"no GPU can be used: {error}, {OTHERWISE}") from error
    if not count:
        raise RuntimeMissingError(f"CUDA finds no GPU; check the driver, {OTHERWISE}")


def this_machine(runtime: str) -> Machine:
    """Runtime, GPU and driver of this machine. Raises RuntimeMissingError."""
    trt, cuda = import_tensorrt(runtime), import_cuda()
    check_gpu(cuda)
    gpu = _checked("cudaGetDeviceProperties", cuda.cudaGetDeviceProperties(DEVICE))
    version = _checked("cudaDriverGetVersion", cuda.cudaDriverGetVersion())
    driver = f"CUDA {version // 1000}.{version % 1000 // 10}"  # 12060 -> 12.6
    return Machine(
        runtime=runtime,
        version=trt.__version__,
        device=f"{gpu.name.decode()} ({gpu.major}.{gpu.minor})",
        driver=", ".join((driver, *filter(None, map(_first_line, DRIVER_FILES)))),
    )


@contextmanager
def garbage_left_alone() -> Iterator[None]:
    """No garbage is collected meanwhile; for making a builder or a runtime.

    TensorRT calls the log while it holds a lock. Python may collect garbage in any call, and a forgotten builder among
    it would wait for that same lock, forever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def message_log(trt: Any) -> Any:
    """A TensorRT logger that keeps what went wrong; `last()` is the latest of it, in one line."""
    grave = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class MessageLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in grave:
                self._last = " ".join(message.split())[:300]

        def last(self) -> str:
            return self._last

    return MessageLog()


def _largest_shape(engine: Any, name: str) -> tuple[int, ...]:
    """An input's own shape, or the largest that its optimization profile allows."""
    shape = tuple(engine.get_tensor_shape(name))
    return tuple(engine.get_tensor_profile_shape(name, PROFILE)[-1]) if -1 in shape else shape


def _tensors(engine: Any, mode: Any) -> Iterator[TensorSpec]:
    """The engine's inputs or outputs; an open dimension is None."""
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == mode:
            dtype = engine.get_tensor_dtype(name).name
            shape = tuple(None if n < 0 else int(n) for n in engine.get_tensor_shape(name))
            yield TensorSpec(name, DTYPES.get(dtype, dtype), shape)


def _first_line(path: Path) -> str:
    """What a driver says of its release; nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip("# ")[:60]
    except OSError:
        return ""


def _checked(what: str, answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, whose first part says how it went. Raises EngineError."""
    code, *values = answer
    if int(code) != CUDA_SUCCESS:
        raise EngineError(f"{what} failed with {code.name} ({int(code)}); check the driver and the free memory")
    return values[0] if values else None
