"""Opens a model set whole or not at all.

In this order, and nothing runs before the last step: the manifest is there and of this schema; every file is there
and hashes right; tensors and concepts fit together; each engine opens and has exactly those tensors; the runtime
reproduces the golden answers.

ONNX Runtime runs the set's own files. TensorRT runs engines that were built from them on this machine, in the folder
`<set>/tensorrt` beside their certificate: it must be this set's, name these files and say "pass". Where the runtime,
the GPU or its driver is no longer the one on the certificate, the engines are certified again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.certificate import (
    CERTIFICATE_NAME,
    Certificate,
    Machine,
    Parity,
    answers,
    certify,
    draw_up,
    judged_as,
    measure,
    read_certificate,
)
from barnsight_engines.detector import Detector
from barnsight_engines.encoder import Encoder
from barnsight_engines.errors import (
    EngineError,
    ModelSetDataError,
    ModelSetMismatchError,
    ModelSetMissingError,
    RuntimeMissingError,
)
from barnsight_engines.manifest import (
    BUILT,
    REQUIRED,
    RUNTIMES,
    TRACKER,
    EngineEntry,
    FileEntry,
    Manifest,
    Role,
    read_arrays,
    read_manifest,
    sha256_of,
)
from barnsight_engines.propagator import MemoryTracker, TemporalPositions
from barnsight_engines.spec import TensorSpec, difference, specs_of

REBUILD = "run: barnsight engine build"

# Shapes by tensor: a number, a letter for a size that the set may choose, None for a dimension that is left open.
Patterns: TypeAlias = Mapping[str, tuple[int | str | None, ...]]


@dataclass(frozen=True, slots=True)
class ModelSet:
    """A whole model set, checked and opened. A context manager that closes its engines.

    `hash` is 12 hexadecimal digits that name the manifest and so every file; `parity` is how near the runtime came
    to the golden answers. `tracker` is None where the set has none.
    """

    manifest: Manifest
    encoder: Encoder
    detector: Detector
    hash: str
    parity: tuple[Parity, ...] = ()
    tracker: MemoryTracker | None = None

    @property
    def runtime(self) -> str:
        """What runs it, as the metrics name it."""
        return self.encoder.backend.runtime

    def close(self) -> None:
        """Close every engine; a second call does nothing."""
        self.encoder.backend.close()
        self.detector.backend.close()
        if self.tracker:
            self.tracker.close()

    def __enter__(self) -> ModelSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_model_set(path: Path, *, runtime: str = "auto", threads: int | None = None) -> ModelSet:
    """Open the model set in the folder `path`.

    `runtime` is "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto", which takes TensorRT where it is installed and
    has engines; `threads` bounds the cores of one run on the CPU, None takes all.
    Raises ModelSetMissingError, ModelSetDataError, ModelSetMismatchError or RuntimeMissingError.
    """
    manifest, set_hash = check_model_set(path)
    concepts = _read_concepts(path, manifest)
    chosen = _choose(path, runtime)
    if chosen in BUILT:
        _check_certificate(path, manifest, set_hash, chosen)
    positions = _read_positions(path, manifest) if manifest.has_tracker else None
    entries = [manifest.engine(role) for role in _roles(manifest)]
    with ExitStack() as opened:  # closes what is open already, should a later step fail
        backends = [
            opened.enter_context(closing(_open(path, path / chosen, entry, chosen, threads))) for entry in entries
        ]
        parity = certify(path / manifest.golden.file, list(zip(backends, judged_as(entries), strict=True)))
        opened.pop_all()
    encoder, detector, *tracker = backends
    return ModelSet(
        manifest=manifest,
        encoder=Encoder(encoder, manifest.image_size, manifest.normalization),
        detector=Detector(detector, concepts, manifest.thresholds),
        hash=set_hash,
        parity=parity,
        tracker=MemoryTracker(*tracker, positions=positions) if positions is not None else None,
    )


def check_model_set(path: Path) -> tuple[Manifest, str]:
    """The manifest and the hash of the set in the folder `path`, once every file and tensor is what it must be."""
    manifest, set_hash = read_manifest(path)
    _check_files(path, manifest.files)
    _check_tensors(path, manifest)
    return manifest, set_hash


def engine_path(folder: Path, entry: EngineEntry) -> Path:
    """Where the engine that was built for `entry` lies in the folder of its runtime."""
    return folder / f"{entry.role}.engine"


def issue_certificate(folder: Path, manifest: Manifest, set_hash: str, built: Path, machine: Machine) -> Certificate:
    """Measure the engines in the folder `built` against ONNX Runtime on the set's golden inputs, whatever comes out.

    The ONNX files themselves must reproduce the golden answers first. Raises as `load_model_set` does.
    """
    golden_path = folder / manifest.golden.file
    golden = read_arrays(golden_path)
    with ExitStack() as opened:
        engines = _open_all(folder, built, manifest, "onnxruntime", opened)
        certify(golden_path, list(zip(engines, judged_as(manifest.engines), strict=True)))
        reference = answers(golden_path, golden, engines)
    with ExitStack() as opened:
        engines = _open_all(folder, built, manifest, machine.runtime, opened)
        measured = measure(golden_path, reference, engines)
    files = [(entry, engine_path(built, entry)) for entry in manifest.engines]
    return draw_up(set_hash, machine, "onnxruntime", files, measured)


def _roles(manifest: Manifest) -> tuple[Role, ...]:
    """The engines of a set that are used, in the order in which they run."""
    return REQUIRED + TRACKER if manifest.has_tracker else REQUIRED


def _choose(path: Path, runtime: str) -> str:
    """The runtime to open, where "auto" leaves the choice: the fastest that is installed and has engines."""
    if runtime not in RUNTIMES:
        raise RuntimeMissingError(
            f"{path}: no runtime '{runtime}' in this version; set models.runtime to one of: {', '.join(RUNTIMES)}"
        )
    if runtime != "auto":
        return runtime
    has_engines = (path / "tensorrt" / CERTIFICATE_NAME).is_file()
    return "tensorrt" if has_engines and find_spec("tensorrt") is not None else "onnxruntime"


def _check_certificate(folder: Path, manifest: Manifest, set_hash: str, runtime: str) -> None:
    """Raise ModelSetDataError unless the engines that were built for `runtime` are certified on this machine.

    On a machine that is not the certificate's, by its runtime, GPU or driver, they are certified again. Where the new
    certificate cannot be written, that is done at each start.
    """
    from barnsight_engines.tensorrt_backend import this_machine

    machine, built = this_machine(runtime), folder / runtime
    certificate = read_certificate(built)
    where = built / CERTIFICATE_NAME
    if certificate.model_set != set_hash:
        raise ModelSetDataError(
            f"{where}: is of the model set {certificate.model_set}, and this one is {set_hash}; {REBUILD}"
        )
    if missing := sorted({*_roles(manifest)} - {record.role for record in certificate.engines}):
        raise ModelSetDataError(f"{where}: engine '{missing[0]}' is missing; {REBUILD}")
    _check_files(built, certificate.engines, REBUILD)
    if certificate.machine != machine:
        certificate = issue_certificate(folder, manifest, set_hash, built, machine)
        with suppress(EngineError):
            certificate.write(built)
    if certificate.verdict != "pass" or certificate.failure is not None:
        raise ModelSetDataError(
            f"{where}: {certificate.failure or 'refused'} differs too much from {certificate.reference} on "
            f"{certificate.machine}; {REBUILD}, or set models.runtime to onnxruntime"
        )


def _open_all(folder: Path, built: Path, manifest: Manifest, runtime: str, opened: ExitStack) -> list[Backend]:
    return [opened.enter_context(closing(_open(folder, built, entry, runtime, None))) for entry in manifest.engines]


def _open(folder: Path, built: Path, entry: EngineEntry, runtime: str, threads: int | None) -> Backend:
    """Open one engine; its runtime is imported only here, so that the others need not be installed."""
    if runtime in BUILT:
        from barnsight_engines.tensorrt_backend import TensorRtBackend

        return TensorRtBackend(engine_path(built, entry), entry.spec, runtime)
    path = folder / entry.file
    try:
        from barnsight_engines.onnx_backend import OnnxBackend
    except ImportError as error:
        raise RuntimeMissingError(
            f"{path}: ONNX Runtime is not installed ({error}); install the package 'onnxruntime'"
        ) from error
    return OnnxBackend(path, entry.spec, threads)


def _check_files(folder: Path, files: Sequence[FileEntry], next_step: str = "copy the model set again") -> None:
    for entry in files:
        path = folder / entry.file
        try:
            found = sha256_of(path)
        except OSError as error:
            raise ModelSetMissingError(f"{path}: {error.strerror}; {next_step}") from error
        if found != entry.sha256:
            raise ModelSetDataError(
                f"{path}: SHA-256 must be {entry.sha256[:12]}…, got {found[:12]}…; "
                f"the file is damaged or changed: {next_step}"
            )


def _read_concepts(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """The prompt embeddings (1, T, C), each as the detector's input `text` wants it."""
    path = folder / manifest.concepts.file
    arrays = read_arrays(path)
    text = next(spec for spec in manifest.engine("detector").inputs if spec.name == "text")
    wanted = [TensorSpec(name, text.dtype, text.shape) for name in manifest.concepts.names]
    if wrong := difference(wanted, specs_of(arrays)):
        raise ModelSetMismatchError(f"{path}: concept {wrong}; export the model set again")
    return arrays


def _read_positions(path: Path, manifest: Manifest) -> TemporalPositions:
    assert manifest.tracker is not None
    file = path / manifest.tracker.file
    try:
        return TemporalPositions.from_arrays(read_arrays(file))
    except KeyError as error:
        raise ModelSetDataError(f"{file}: array {error} is missing; export the model set again") from error


def _check_tensors(folder: Path, manifest: Manifest) -> None:
    """Compare the manifest's tensors with what this version runs.

    Letters stand for sizes that the set is free to choose, the same everywhere: C channels, T prompt tokens,
    K queries. A set with a tracker has maps of its own for it, each with its own channels, M memories of width D and P
    pointer tokens.
    """
    (height, width), mask = manifest.grid, manifest.mask_size
    image = {"image": (1, 3, *manifest.image_size)}
    pyramid = {f"d{n}": (1, "C", n * height, n * width) for n in (4, 2, 1)}
    given = {spec.name for spec in manifest.engine("encoder").outputs}
    tracked = {
        name: shape for name, shape in _tracker_maps(manifest.grid).items() if manifest.has_tracker or name in given
    }
    found = {"boxes": (1, "K", 4), "logits": (1, "K"), "presence": (1, 1), "masks": (1, "K", *mask)}
    wanted: dict[Role, tuple[Patterns, Patterns]] = {
        "encoder": (image, {**pyramid, **tracked}),
        "detector": ({**pyramid, "text": (1, "T", "C")}, found),
    }
    if manifest.has_tracker:
        wanted |= _tracker_tensors(manifest.grid, mask)
    chosen: dict[str, int | None] = {}
    for role, (inputs, outputs) in wanted.items():
        entry = manifest.engine(role)
        for kind, patterns, specs in (("input", inputs, entry.inputs), ("output", outputs, entry.outputs)):
            for spec in specs:
                for letter, n in zip(patterns.get(spec.name, ()), spec.shape, strict=False):
                    if isinstance(letter, str):
                        chosen.setdefault(letter, n)
            tensors = [
                TensorSpec(name, "float32", tuple(chosen.get(n) if isinstance(n, str) else n for n in pattern))
                for name, pattern in patterns.items()
            ]
            if wrong := difference(tensors, specs):
                raise ModelSetMismatchError(
                    f"{folder / 'manifest.json'}: engine '{role}': {kind} {wrong}; export the model set again"
                )


def _tracker_maps(grid: tuple[int, int]) -> Patterns:
    """The encoder's maps for the tracker."""
    height, width = grid
    return {f"t{n}": (1, f"C{n}", n * height, n * width) for n in (4, 2, 1)}


def _tracker_tensors(grid: tuple[int, int], mask: tuple[int, int]) -> dict[Role, tuple[Patterns, Patterns]]:
    """What each of the tracker's engines takes and gives; the batch is left open."""
    t1, t4, t2 = ({name: _tracker_maps(grid)[name]} for name in ("t1", "t4", "t2"))
    drawn: Patterns = {"mask": (None, 1, *mask)}
    memories: Patterns = {"mem": (None, "M·N", "D"), "mempos": ("M", "D"), "bias": (None, 1, "M·N + P")}
    pointers: Patterns = {"ptr": (None, "P", "D"), "ptrpos": (None, "P", "D")}
    pix: Patterns = {"pix": (None, "C1", *grid)}
    pointer: Patterns = {"ptr": (None, "C1")}
    scores: Patterns = {"obj": (None, 1), "iou": (None, 1)}
    return {
        "memory_attention": ({**t1, **memories, **pointers}, pix),
        "mask_decoder": ({**pix, **t4, **t2}, {"mask": (None, *mask), **pointer, **scores}),
        "memory_encoder": ({**t1, **drawn, "obj": (None, 1)}, {"mem": (None, math.prod(grid), "D")}),
        "prompt_decoder": ({**t1, **drawn}, pointer),
    }
