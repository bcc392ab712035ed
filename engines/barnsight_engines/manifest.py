"""A model set's manifest: the one file that says what the set is and what each of its files must hash to.

    manifest.json
    ├── schema_version, name, preset, trained_on
    ├── image_size, grid, mask_size     (height, width) of what the network sees, of its tokens, of its masks
    ├── normalization
    ├── concepts      file, sha256, names              one (1, T, C) float32 array per concept in an .npz
    ├── behaviors                                      labels, empty until the set has a behavior engine
    ├── thresholds    score, nms_iou, containment
    ├── engines[]     role, file, sha256, precision, inputs[], outputs[]
    ├── golden        file, sha256                     inputs and outputs that a runtime must reproduce
    └── tracker       file, sha256                     what a tracking session computes itself; null without a tracker

The set's hash is the manifest's own SHA-256: since the manifest holds every file's, it names the whole set.
`export` writes manifests with this same model: `manifest.model_dump_json(indent=2)`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from barnsight_engines.errors import ModelSetDataError, ModelSetMismatchError, ModelSetMissingError
from barnsight_engines.spec import EngineSpec, TensorSpec

FILE_NAME = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
HASH_DIGITS = 12

# A plain name: a manifest can point at nothing outside its own folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Size = tuple[Positive, Positive]  # height, width
Precision = Literal["fp32", "fp16", "int8"]
Role = Literal[  # in the order in which they run
    "encoder",
    "detector",
    "memory_attention",
    "mask_decoder",
    "memory_encoder",
    "prompt_decoder",
    "embedder",
    "behavior",
]
REQUIRED: tuple[Role, ...] = ("encoder", "detector")
TRACKER: tuple[Role, ...] = ("memory_attention", "mask_decoder", "memory_encoder", "prompt_decoder")
RUNTIMES = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")
BUILT = ("tensorrt", "tensorrt-rtx")  # runtimes whose engines are built on the machine, from the ONNX files


class Entry(BaseModel):
    """What all parts of a manifest share: they do not change, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(Entry):
    """Mean and standard deviation per channel (red, green, blue), of values in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class FileEntry(Entry):
    """A file of the set and what it must hash to."""

    file: FileName
    sha256: Sha256


class ConceptsEntry(FileEntry):
    """The precomputed prompt embeddings: one array per name."""

    names: tuple[str, ...] = Field(min_length=1)


class Thresholds(Entry):
    """Where the detector cuts: least score, mask IoU of duplicates, share of a mask inside a bigger one."""

    score: Share
    nms_iou: Share
    containment: Share = 0.85


class EngineEntry(FileEntry):
    """One engine file and the tensors it takes and gives."""

    role: Role
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec(self.role, self.inputs, self.outputs)


class Manifest(Entry):
    """The whole manifest."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    preset: str
    image_size: Size
    grid: Size
    mask_size: Size
    normalization: Normalization
    concepts: ConceptsEntry
    behaviors: tuple[str, ...]
    thresholds: Thresholds
    engines: tuple[EngineEntry, ...]
    golden: FileEntry
    tracker: FileEntry | None = None
    trained_on: str

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the set besides the manifest."""
        return (*self.engines, self.concepts, self.golden, *([self.tracker] if self.tracker else []))

    @field_validator("engines")
    @classmethod
    def _each_role_once(cls, engines: tuple[EngineEntry, ...]) -> tuple[EngineEntry, ...]:
        for role in get_args(Role):
            count = sum(engine.role == role for engine in engines)
            if count != 1 and (role in REQUIRED or count):
                raise ValueError(f"needs one engine with the role '{role}', has {count}")
        return engines

    @field_validator("engines")
    @classmethod
    def _behaviors_are_named(cls, engines: tuple[EngineEntry, ...], info: ValidationInfo) -> tuple[EngineEntry, ...]:
        classes = sum(engine.outputs[0].shape[-1] or 0 for engine in engines if engine.role == "behavior")
        named = len(info.data.get("behaviors", ()))
        if named != classes:
            raise ValueError(f"the behavior engine tells {classes} behaviors apart, 'behaviors' names {named}")
        return engines

    @property
    def has_tracker(self) -> bool:
        """Whether sessions can have a memory: all four engines are there, and what a session computes itself."""
        return self.tracker is not None and {*TRACKER} <= {engine.role for engine in self.engines}

    def engine(self, role: Role) -> EngineEntry:
        """The engine that plays `role`."""
        return next(engine for engine in self.engines if engine.role == role)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Read a model set's manifest and return it with the set's hash (12 hexadecimal digits).

    Raises ModelSetMissingError, ModelSetDataError (not JSON) or ModelSetMismatchError (not this schema).
    """
    path = folder / FILE_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelSetMissingError(
            f"{path}: {error.strerror}; point models.path at a folder that holds a model set"
        ) from error
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise ModelSetDataError(f"{path}: not JSON ({error}); copy the model set again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ModelSetMismatchError(
            f"{path}: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
            "use a model set exported for this version of Barnsight"
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelSetMismatchError(
            f"{path}: {key}: {first['msg']}, got {first['input']!r:.80}; export the model set again"
        ) from error
    return manifest, hashlib.sha256(raw).hexdigest()[:HASH_DIGITS]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name. Raises ModelSetDataError where it is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelSetDataError(f"{path}: not an .npz of arrays ({error}); export the model set again") from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
