"""Builds TensorRT engines from a model set's ONNX files, on the machine that will run them.

The networks are strongly typed: precision lives in the ONNX file (FP16 tensors, explicit QDQ) and the builder changes
none of it, which is the only way that TensorRT 11 still has and 10.3 has too. TF32 is off for the same reason. A batch
that the ONNX file leaves open gets one optimization profile. An engine appears whole or not at all, and the engines
of a set appear together, once they are certified against ONNX Runtime on the golden inputs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from barnsight_engines.certificate import Certificate
from barnsight_engines.errors import ModelSetDataError, ModelSetMissingError, RuntimeMissingError
from barnsight_engines.files import sync_folder, unwritable, write_whole
from barnsight_engines.loader import check_model_set, engine_path, issue_certificate
from barnsight_engines.propagator import largest_batch
from barnsight_engines.tensorrt_backend import garbage_left_alone, import_tensorrt, message_log, this_machine

REFUSED = "-refused.json"
BATCHES = (1, 8, 20)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How to build.

    `batches` are the smallest, the usual and the largest batch, where an ONNX file leaves it open; of memory attention
    no more than fits (`propagator.largest_batch`), since an engine reserves what its largest batch needs.
    `workspace_bytes` bounds the memory that a layer may use for itself; None leaves it to TensorRT, which allows all
    that the GPU has. `timing_cache` is a file that makes the next build faster. `target` is a compute capability such
    as "SM86" to build for without a GPU, which TensorRT-RTX alone can.
    """

    batches: tuple[int, int, int] = BATCHES
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """An engine file that was built, its size, how many layers it was built from, and how long that took."""

    file: Path
    size_bytes: int
    layers: int
    seconds: float


def parse_batches(text: str) -> tuple[int, int, int]:
    """Smallest, usual and largest batch out of "1,8,20". Raises ValueError."""
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise ValueError(f"must be three whole numbers that rise from 1 or more, such as 1,8,20, got {text}")
    return numbers[0], numbers[1], numbers[2]


def build_engine(onnx: Path, engine: Path, settings: BuildSettings, runtime: str = "tensorrt") -> Built:
    """Build the file `engine` from the file `onnx` with "tensorrt" or "tensorrt-rtx".

    Raises RuntimeMissingError, ModelSetMissingError where there is no ONNX file, ModelSetDataError naming the node
    where it cannot be parsed or built, ModelSetWriteError where the engine cannot be written.
    """
    began = time.monotonic()
    trt = import_tensorrt(runtime)
    if not onnx.is_file():
        raise ModelSetMissingError(f"{onnx}: No such file; export the model set again")
    log = message_log(trt)
    builder = _builder(trt, log, runtime)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
    if not parser.parse_from_file(str(onnx)):
        raise ModelSetDataError(f"{onnx}: {runtime} cannot use {_unsupported(parser)}; export the model set again")
    if not network.num_outputs:
        raise ModelSetDataError(f"{onnx}: not an ONNX model; copy or export the model set again")

    config = builder.create_builder_config()
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.target is not None:
        _aim(trt, config, settings.target, runtime)
    _add_profile(builder, network, config, settings.batches, onnx)
    timing_cache = settings.timing_cache if runtime == "tensorrt" else None  # TensorRT-RTX times nothing
    if timing_cache is not None:
        _recall(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelSetDataError(
            f"{onnx}: {runtime} {trt.__version__} cannot build it ({log.last()}); where memory is short, allow more "
            "workspace or a smaller largest batch, else export the model set again"
        )
    write_whole(engine, memoryview(plan))
    if timing_cache is not None:
        write_whole(timing_cache, memoryview(config.get_timing_cache().serialize()))
    return Built(engine, plan.nbytes, network.num_layers, time.monotonic() - began)


def build_model_set(
    folder: Path,
    settings: BuildSettings,
    runtime: str = "tensorrt",
    report: Callable[[Built], None] = lambda _: None,
) -> Certificate:
    """Build and certify every engine of the model set in `folder`, into `<folder>/<runtime>`.

    What was there before stays until the new engines have passed. Raises as `build_engine` does, and
    ModelSetDataError naming the output and its figures where an engine differs too much from ONNX Runtime; the
    refused certificate is then kept as `<folder>/<runtime>-refused.json`.
    """
    manifest, set_hash = check_model_set(folder)
    machine = this_machine(runtime)
    building, finished = folder / f"{runtime}.building", folder / runtime
    settings = replace(settings, timing_cache=settings.timing_cache or folder / f"{runtime}-timing.cache")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        for entry in manifest.engines:
            report(build_engine(folder / entry.file, engine_path(building, entry), settings, runtime))
        certificate = issue_certificate(folder, manifest, set_hash, building, machine)
        if certificate.failure is not None:
            certificate.write(folder, runtime + REFUSED)
            raise ModelSetDataError(
                f"{folder / (runtime + REFUSED)}: {certificate.failure} differs too much from "
                f"{certificate.reference}; the engines are not used: keep models.runtime on onnxruntime"
            )
        certificate.write(building)
        _replace(building, finished)
        (folder / (runtime + REFUSED)).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(finished, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return certificate


def _builder(trt: Any, log: Any, runtime: str) -> Any:
    try:
        with garbage_left_alone():
            return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
        raise RuntimeMissingError(
            f"{runtime} {trt.__version__} cannot build on this machine ({log.last()}); check the GPU and its driver"
        ) from error


def _unsupported(parser: Any) -> str:
    """The first node that the parser stumbled over."""
    if not parser.num_errors:
        return "it"
    fault = parser.get_error(0)
    text = f"node '{fault.node_name()}' with the operator {fault.node_operator()}" if fault.node_operator() else "it"
    return f"{text} ({fault.code().name}: {fault.desc()})"


def _aim(trt: Any, config: Any, target: str, runtime: str) -> None:
    """Build for a GPU that need not be here."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    if target not in known:
        choices = ", ".join(name for name in known if name.startswith("SM")) or "this machine's GPU alone"
        raise RuntimeMissingError(f"{runtime} cannot build for '{target}'; it builds for: {choices}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[target], 0)


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int], onnx: Path) -> None:
    """Give inputs of an open batch (-1, ...) their smallest, usual and largest shape."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    opened = [(tensor.name, tuple(tensor.shape)) for tensor in inputs if -1 in tuple(tensor.shape)]
    if not opened:
        return
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if "bias" in shapes:  # memory attention alone has one: (B, 1, keys), of `t1` (1, C, G, G)
        most = largest_batch(shapes["t1"][2] * shapes["t1"][3], shapes["bias"][2])
        batches = (min(batches[0], most), min(batches[1], most), min(batches[2], most))
    profile = builder.create_optimization_profile()
    for name, (batch, *rest) in opened:
        if batch != -1 or -1 in rest:
            raise ModelSetDataError(
                f"{onnx}: input '{name}' must be open in its batch alone, got {(batch, *rest)}; "
                "export the model set again"
            )
        profile.set_shape(name, *((n, *rest) for n in batches))
    config.add_optimization_profile(profile)


def _recall(config: Any, timing_cache: Path) -> None:
    """Use the timings of former builds; those of another GPU or version are passed over."""
    known = timing_cache.read_bytes() if timing_cache.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _replace(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
