"""A trained network to a model set: ONNX graphs, concept prompts, golden inputs and outputs, and the manifest.

The split into engines follows SAM 3's streaming use: the encoder runs once a frame, the detector once per concept.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from barnsight_engines.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    ConceptsEntry,
    EngineEntry,
    FileEntry,
    Manifest,
    Normalization,
    Thresholds,
)
from barnsight_engines.spec import TensorSpec
from barnsight_export.errors import ParityError
from barnsight_export.networks.sam3 import Detection, Sam3
from barnsight_export.onnx.patches import OPSET, check_versions, plain
from barnsight_export.presets import Preset

TOLERANCE = 1e-3
ENCODER_OUTPUTS = ("d4", "d2", "d1")
DETECTOR_INPUTS = ("d4", "d2", "d1", "text")
DETECTOR_OUTPUTS = Detection._fields

Role = Literal["encoder", "detector"]
ROLES: tuple[Role, ...] = ("encoder", "detector")
Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished model set and the largest difference between PyTorch and ONNX Runtime, per engine."""

    folder: Path
    differences: dict[Role, float]


def export_model_set(
    model: Sam3,
    preset: Preset,
    folder: Path,
    *,
    trained_on: str,
    score: float = 0.5,
    golden_image: npt.NDArray[np.float32] | None = None,
) -> Exported:
    """Write `model` as a model set into `folder`.

    `score` is the least score of a detection that a daemon trusts.
    `golden_image` (1, 3, H, H), normalized, is what later runtimes are compared on; noise where absent. Raises
    ParityError where ONNX Runtime and PyTorch differ by more than `TOLERANCE` on fresh random inputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval()
    prompt = model.concepts.detach()[:1]
    shape = (1, 3, preset.image_size, preset.image_size)
    with torch.no_grad():
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        maps = model.encoder(image)
    _export_graph(model.encoder, (image,), ("image",), ENCODER_OUTPUTS, folder / "encoder.onnx")
    _export_graph(model.detector, (*maps, prompt), DETECTOR_INPUTS, DETECTOR_OUTPUTS, folder / "detector.onnx")

    differences = {role: max(_difference(model, folder, role, seed, preset) for seed in range(1, 4)) for role in ROLES}
    for role, difference in differences.items():
        if difference > TOLERANCE:
            raise ParityError(
                f"{folder / role}.onnx differs from PyTorch by {difference:.2e}, more than {TOLERANCE:.0e}:"
                " do not ship it; look for a changed exporter or runtime"
            )

    names = model.concept_names
    _write_arrays(
        folder / "concepts.npz", {n: c[None].numpy() for n, c in zip(names, model.concepts.detach(), strict=True)}
    )
    golden_input = torch.from_numpy(golden_image) if golden_image is not None else image
    _write_arrays(folder / "golden.npz", _golden(model, golden_input))
    manifest = _manifest(model, preset, folder, trained_on, score, _shapes(model, image))
    (folder / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Exported(folder, differences)


def _export_graph(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], outputs: tuple[str, ...], path: Path
) -> None:
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=list(outputs),
        external_data=False,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    model = plain(program.model_proto)
    check_versions(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _run_torch(model: Sam3, role: Role, inputs: Arrays) -> Arrays:
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    module, names = (model.encoder, ENCODER_OUTPUTS) if role == "encoder" else (model.detector, DETECTOR_OUTPUTS)
    with torch.no_grad():
        return {name: value.numpy() for name, value in zip(names, module(*tensors), strict=True)}


def _difference(model: Sam3, folder: Path, role: Role, seed: int, preset: Preset) -> float:
    """Largest absolute difference between the runtimes on fresh random inputs."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (1, 3, preset.image_size, preset.image_size)).astype(np.float32)
    inputs: Arrays = {"image": image}
    if role == "detector":
        inputs = _run_torch(model, "encoder", inputs)
        inputs["text"] = model.concepts.detach()[seed % len(model.concepts)][None].numpy()
    session = ort.InferenceSession(str(folder / f"{role}.onnx"), providers=["CPUExecutionProvider"])
    expected = _run_torch(model, role, inputs)
    found = session.run(list(expected), inputs)
    return max(float(np.abs(f - e).max()) for f, e in zip(found, expected.values(), strict=True))


def _golden(model: Sam3, image: Tensor) -> Arrays:
    """An input and what the networks say to it: `image`, `text` and every output but the large maps and masks.

    Maps and masks are kept at every fourth row and column, as `<name>_every4`, so that the file stays small.
    """
    text = model.concepts.detach()[:1].numpy()
    maps = _run_torch(model, "encoder", {"image": image.numpy()})
    found = _run_torch(model, "detector", {**maps, "text": text})
    golden: Arrays = {"image": image.numpy(), "text": text}
    for name, value in {**maps, **found}.items():
        if value.ndim == 4:
            golden[f"{name}_every4"] = value[..., ::4, ::4]
        else:
            golden[name] = value
    return golden


def _shapes(model: Sam3, image: Tensor) -> dict[str, dict[str, tuple[int, ...]]]:
    maps = _run_torch(model, "encoder", {"image": image.numpy()})
    text = model.concepts.detach()[:1].numpy()
    found = _run_torch(model, "detector", {**maps, "text": text})
    shapes = {name: value.shape for name, value in maps.items()}
    return {
        "encoder.inputs": {"image": tuple(image.shape)},
        "encoder.outputs": shapes,
        "detector.inputs": {**shapes, "text": text.shape},
        "detector.outputs": {name: value.shape for name, value in found.items()},
    }


def _manifest(
    model: Sam3,
    preset: Preset,
    folder: Path,
    trained_on: str,
    score: float,
    shapes: dict[str, dict[str, tuple[int, ...]]],
) -> Manifest:
    def tensors(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes[key].items())

    def sha256(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    half = (0.5, 0.5, 0.5)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=preset.name,
        preset=preset.name,
        image_size=preset.image_size,
        grid=preset.grid,
        mask_size=preset.mask_size,
        normalization=Normalization(mean=half, std=half),
        concepts=ConceptsEntry(file="concepts.npz", sha256=sha256("concepts.npz"), names=model.concept_names),
        behaviors=(),
        thresholds=Thresholds(score=score, nms_iou=0.5),
        engines=tuple(
            EngineEntry(
                role=role,
                file=f"{role}.onnx",
                sha256=sha256(f"{role}.onnx"),
                precision="fp32",
                inputs=tensors(f"{role}.inputs"),
                outputs=tensors(f"{role}.outputs"),
            )
            for role in ROLES
        ),
        golden=FileEntry(file="golden.npz", sha256=sha256("golden.npz")),
        trained_on=trained_on,
    )


def _write_arrays(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getvalue())
