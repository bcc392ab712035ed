"""Opens a model set whole or not at all.

In this order, and nothing runs before the last step: the manifest is there and of this schema; every file is there
and hashes right; tensors and concepts fit together; each engine opens and has exactly those tensors; the runtime
reproduces the golden answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.certificate import Parity, certify
from barnsight_engines.detector import Detector
from barnsight_engines.encoder import Encoder
from barnsight_engines.errors import (
    ModelSetDataError,
    ModelSetMismatchError,
    ModelSetMissingError,
    RuntimeMissingError,
)
from barnsight_engines.manifest import EngineEntry, Manifest, Role, read_arrays, read_manifest, sha256_of
from barnsight_engines.spec import TensorSpec, difference, specs_of

RUNTIMES = ("auto", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ModelSet:
    """A whole model set, checked and opened. A context manager that closes its engines.

    `hash` is 12 hexadecimal digits that name the manifest and so every file; `parity` is how near the runtime came
    to the golden answers.
    """

    manifest: Manifest
    encoder: Encoder
    detector: Detector
    hash: str
    parity: tuple[Parity, ...] = ()

    @property
    def runtime(self) -> str:
        """What runs it, as the metrics name it."""
        return self.encoder.backend.runtime

    def close(self) -> None:
        """Close every engine; a second call does nothing."""
        self.encoder.backend.close()
        self.detector.backend.close()

    def __enter__(self) -> ModelSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_model_set(path: Path, *, runtime: str = "auto", threads: int | None = None) -> ModelSet:
    """Open the model set in the folder `path`.

    `runtime` is "auto" or "onnxruntime"; `threads` bounds the cores of one run, None takes all.
    Raises ModelSetMissingError, ModelSetDataError, ModelSetMismatchError or RuntimeMissingError.
    """
    manifest, set_hash = read_manifest(path)
    _check_files(path, manifest)
    entries = [manifest.engine(role) for role in get_args(Role)]
    _check_tensors(path, manifest)
    concepts = _read_concepts(path, manifest)
    with ExitStack() as opened:  # closes what is open already, should a later step fail
        backends = [
            opened.enter_context(closing(_open(path / entry.file, entry, runtime, threads))) for entry in entries
        ]
        precisions = [entry.precision for entry in entries]
        parity = certify(path / manifest.golden.file, list(zip(backends, precisions, strict=True)))
        opened.pop_all()
    encoder, detector = backends
    return ModelSet(
        manifest=manifest,
        encoder=Encoder(encoder, manifest.image_size, manifest.normalization),
        detector=Detector(detector, concepts, manifest.thresholds),
        hash=set_hash,
        parity=parity,
    )


def _open(path: Path, entry: EngineEntry, runtime: str, threads: int | None) -> Backend:
    """Choose the runtime; it is imported only here, so that the others need not be installed."""
    if runtime not in RUNTIMES:
        raise RuntimeMissingError(
            f"{path}: no runtime '{runtime}' in this version; set models.runtime to one of: {', '.join(RUNTIMES)}"
        )
    try:
        from barnsight_engines.onnx_backend import OnnxBackend
    except ImportError as error:
        raise RuntimeMissingError(
            f"{path}: ONNX Runtime is not installed ({error}); install the package 'onnxruntime'"
        ) from error
    return OnnxBackend(path, entry.spec, threads)


def _check_files(folder: Path, manifest: Manifest) -> None:
    for entry in manifest.files:
        path = folder / entry.file
        try:
            found = sha256_of(path)
        except OSError as error:
            raise ModelSetMissingError(f"{path}: {error.strerror}; copy the model set again") from error
        if found != entry.sha256:
            raise ModelSetDataError(
                f"{path}: SHA-256 must be {entry.sha256[:12]}…, got {found[:12]}…; "
                "the file is damaged or changed: copy the model set again"
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


def _check_tensors(folder: Path, manifest: Manifest) -> None:
    """Compare the manifest's tensors with what this version runs.

    Letters stand for sizes that the set is free to choose, the same everywhere: C channels, T prompt tokens,
    K queries.
    """
    size, grid, mask = manifest.image_size, manifest.grid, manifest.mask_size
    image = {"image": (1, 3, size, size)}
    pyramid = {f"d{n}": (1, "C", n * grid, n * grid) for n in (4, 2, 1)}
    found = {"boxes": (1, "K", 4), "logits": (1, "K"), "presence": (1, 1), "masks": (1, "K", mask, mask)}
    wanted: dict[Role, tuple[Mapping[str, tuple[int | str, ...]], Mapping[str, tuple[int | str, ...]]]] = {
        "encoder": (image, pyramid),
        "detector": ({**pyramid, "text": (1, "T", "C")}, found),
    }
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
