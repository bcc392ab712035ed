"""A model set at another precision: FP16 throughout, or INT8 in the engines that bear it.

The new set is judged before it is kept: by its golden answers, with the limits that a daemon will apply at its start,
and, where there are pictures with truth, by what it finds on them. Engines that are not quantized work on the answers
of those that are, so the whole set is judged, not the engine alone.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from barnsight_engines.loader import ModelSet, check_model_set, load_model_set
from barnsight_engines.manifest import FILE_NAME, Manifest, Role, sha256_of
from barnsight_engines.onnx_backend import OnnxBackend
from barnsight_engines.preprocess import to_input
from barnsight_export.certify import certify_set
from barnsight_export.datasets.frames import Frames
from barnsight_export.datasets.variety import choose_varied
from barnsight_export.errors import ExportUsageError, ParityError
from barnsight_export.files import written_aside
from barnsight_export.networks.sam3 import Detection
from barnsight_export.networks.student import IMAGENET
from barnsight_export.onnx.half import to_half
from barnsight_export.onnx.quantize import Quantization, Sensitivity, quantize, rounds_halves
from barnsight_export.onnx.roles import CROP_SIZE
from barnsight_export.train.samples import Pictures
from barnsight_export.train.validation import validate

QUANTIZABLE: tuple[Role, ...] = ("encoder", "embedder")
SENSITIVITY_FILE = "sensitivity.csv"
_CROPS_PER_FRAME = 4

Given = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Int8:
    """How to quantize.

    `roles` are the engines; `calibration` and `measurement` the frames for ranges and for sensitivity, of which
    `calibrated` and `measured` are taken. Layers stay as they are where a cosine would fall below `least_cosine`. A set
    that loses more than `most_loss` of AP at IoU 0.5 on `pictures` (the first `judged` of them) is refused.
    """

    roles: tuple[Role, ...]
    calibration: Frames
    measurement: Frames
    pictures: Pictures | None = None
    calibrated: int = 300
    measured: int = 16
    judged: int = 200
    least_cosine: float = 0.999
    most_loss: float = 0.01


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a set: its quantized engines by role, and AP50 before and after where it was judged."""

    folder: Path
    quantized: dict[str, Quantization]
    ap50: tuple[float, float] | None


def convert_model_set(
    folder: Path,
    out: Path,
    *,
    rest: Literal["fp32", "fp16"],
    int8: Int8 | None = None,
    report: Callable[[str, Sensitivity], None] = lambda _role, _sensitivity: None,
) -> Converted:
    """Write the FP32 set in `folder` at lower precision into the folder `out`, whole or not at all.

    `rest` is the precision of all that is not quantized. Raises the engine errors of a set that is not whole,
    ExportUsageError where it is not FP32 or has no such engine, ParityError naming the figure where the new set is too
    far from it.
    """
    manifest, _ = check_model_set(folder)
    _check(folder, manifest, rest, int8)
    quantized: dict[str, Quantization] = {}
    with written_aside(out, last=FILE_NAME) as aside:
        if int8 is not None:
            with load_model_set(folder, runtime="onnxruntime") as loaded:
                for role in int8.roles:
                    quantized[role] = _quantize(folder / manifest.engine(role).file, loaded, role, int8, report)
            _write_sensitivities(aside / SENSITIVITY_FILE, quantized)
        for entry in manifest.engines:
            model = quantized[entry.role].model if entry.role in quantized else onnx.load(folder / entry.file)
            onnx.save(to_half(model) if rest == "fp16" else model, aside / entry.file)
        for file in manifest.files[len(manifest.engines) :]:
            shutil.copyfile(folder / file.file, aside / file.file)
        lowered = _lowered(manifest, aside, tuple(quantized), rest)
        (aside / FILE_NAME).write_text(lowered.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if failure := certify_set(aside).failure:
            raise ParityError(f"{out}: {failure} is too far from {folder}; {_advice(int8)}")
        ap50 = _compare(folder, aside, int8) if int8 is not None and int8.pictures is not None else None
        if int8 is not None and ap50 is not None and ap50[0] - ap50[1] > int8.most_loss:
            raise ParityError(
                f"{out}: AP50 falls from {ap50[0]:.3f} to {ap50[1]:.3f}, by more than {int8.most_loss}; {_advice(int8)}"
            )
    return Converted(out, quantized, ap50)


def _advice(int8: Int8 | None) -> str:
    return "ask for a higher --cosine, or for fewer engines" if int8 else "keep this set in FP32"


def _check(folder: Path, manifest: Manifest, rest: Literal["fp32", "fp16"], int8: Int8 | None) -> None:
    for entry in manifest.engines:
        if entry.precision != "fp32":
            raise ExportUsageError(f"{folder}: engine '{entry.role}' is {entry.precision}; start from the FP32 set")
    if int8 is not None and rest == "fp16" and not rounds_halves():
        raise ExportUsageError(
            f"ONNX Runtime {ort.__version__} cuts where it should round FP16 to INT8, so it cannot judge such a set;"
            " install a newer one (Python 3.11 or later), or leave --rest at fp32"
        )
    have = {entry.role for entry in manifest.engines}
    if int8 is not None and (missing := [role for role in int8.roles if role not in have]):
        raise ExportUsageError(f"{folder}: has no engine '{missing[0]}'; it has {', '.join(sorted(have))}")


def _quantize(
    path: Path, loaded: ModelSet, role: Role, int8: Int8, report: Callable[[str, Sensitivity], None]
) -> Quantization:
    feed = _images if role == "encoder" else _crops
    calibration = feed(loaded, int8.calibration, choose_varied(int8.calibration, int8.calibrated))
    measured = list(feed(loaded, int8.measurement, choose_varied(int8.measurement, int8.measured)))
    found = quantize(path, calibration, measured, int8.least_cosine, lambda sensitivity: report(role, sensitivity))
    if found.kept == len(found.sensitivities):
        raise ParityError(f"{path}: no layer can be INT8 with a cosine of {int8.least_cosine} or more; {_advice(int8)}")
    return found


def _images(loaded: ModelSet, frames: Frames, chosen: Sequence[int]) -> Iterator[Given]:
    """What the encoder takes of each frame."""
    manifest = loaded.manifest
    for index in chosen:
        mean, std = manifest.normalization.mean, manifest.normalization.std
        yield {"image": to_input(frames[index], manifest.image_size, mean, std)}


def _crops(loaded: ModelSet, frames: Frames, chosen: Sequence[int]) -> Iterator[Given]:
    """What the embedder takes of each frame: the best animals, or quarters of the frame where there is none."""
    concept = loaded.manifest.concepts.names[0]
    for index in chosen:
        frame = frames[index]
        height, width = frame.shape[:2]
        found = loaded.detector.detect(loaded.encoder.encode(frame), (height, width), concept)
        boxes = [[int(edge) for edge in box] for box in found.boxes_px[:_CROPS_PER_FRAME]]
        boxes = [box for box in boxes if box[2] - box[0] >= 2 and box[3] - box[1] >= 2]
        if not boxes:
            boxes = [[x, y, x + width // 2, y + height // 2] for x in (0, width // 2) for y in (0, height // 2)]
        crops = [
            to_input(frame[y0:y1, x0:x1], (CROP_SIZE, CROP_SIZE), IMAGENET.mean, IMAGENET.std)
            for x0, y0, x1, y1 in boxes
        ]
        yield {"crops": np.concatenate(crops)}


def _lowered(manifest: Manifest, folder: Path, quantized: Sequence[str], rest: Literal["fp32", "fp16"]) -> Manifest:
    engines = tuple(
        entry.model_copy(
            update={
                "precision": "int8" if entry.role in quantized else rest,
                "sha256": sha256_of(folder / entry.file),
            }
        )
        for entry in manifest.engines
    )
    suffix = "-".join([*(["int8"] if quantized else []), *(["fp16"] if rest == "fp16" else [])])
    return manifest.model_copy(update={"name": f"{manifest.name}-{suffix}", "engines": engines})


def _write_sensitivities(path: Path, quantized: dict[str, Quantization]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("engine", "node", "operator", "weights", "parameters", "cosine_alone", "int8"))
        for role, found in quantized.items():
            for rank, (layer, cosine) in enumerate((s.layer, s.cosine) for s in found.sensitivities):
                shape = "x".join(map(str, layer.weights))
                int8 = rank >= found.kept
                writer.writerow((role, layer.node, layer.operator, shape, layer.parameters, f"{cosine:.7f}", int8))


def _compare(before: Path, after: Path, int8: Int8) -> tuple[float, float]:
    """AP50 of two sets on the same pictures."""
    assert int8.pictures is not None
    scores = []
    for folder in (before, after):
        with ExitStack() as opened:
            model = EngineDetector(folder, opened)
            scores.append(validate(model, int8.pictures, model.image_size, int8.judged).ap50)
    return scores[0], scores[1]


class EngineDetector(nn.Module):
    """Encoder and detector of a model set in ONNX Runtime, in the place of the networks they were made from."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        super().__init__()
        manifest, _ = check_model_set(folder)
        self.image_size = manifest.image_size
        self._encoder, self._detector = (
            opened.enter_context(closing(OnnxBackend(folder / entry.file, entry.spec)))
            for entry in (manifest.engine("encoder"), manifest.engine("detector"))
        )
        with np.load(folder / manifest.concepts.file) as prompts:
            self._prompts = [prompts[name] for name in manifest.concepts.names]

    def forward(self, image: Tensor, concept: Tensor) -> Detection:
        """As `Sam3` does, one picture at a time."""
        maps: dict[str, Any] = self._encoder.run({"image": image.contiguous().numpy()})
        given = {**maps, "text": self._prompts[int(concept)]}
        found = self._detector.run({spec.name: given[spec.name] for spec in self._detector.spec.inputs})
        return Detection(*(torch.from_numpy(found[name]) for name in Detection._fields))
