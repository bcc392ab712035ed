"""Networks to a model set, whole or not at all: ONNX engines, prompts, golden inputs and outputs, and the manifest.

The split into engines follows SAM 3's streaming use: the encoder runs once a frame, the detector once per concept, the
tracker's parts once per frame for all animals together, embedder and behavior for a few animals at a time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from barnsight_engines.manifest import (
    FILE_NAME,
    REQUIRED,
    SCHEMA_VERSION,
    ConceptsEntry,
    EngineEntry,
    FileEntry,
    Manifest,
    Normalization,
    Thresholds,
    sha256_of,
)
from barnsight_export.files import written_aside
from barnsight_export.networks.behavior import BEHAVIORS
from barnsight_export.networks.compact import PyramidEncoder
from barnsight_export.networks.sam3 import Sam3
from barnsight_export.networks.student import EncoderMaps
from barnsight_export.networks.tracker import TrackedStudent, Tracker, TrackerNeck
from barnsight_export.onnx import roles
from barnsight_export.onnx.graph import (
    SEEDS,
    Arrays,
    Differences,
    Graph,
    check_parity,
    compare,
    tensor_specs,
    write_graph,
)
from barnsight_export.presets import Preset

TOLERANCE = 1e-3
SESSION_FILE = "tracker.npz"
SAMPLED = "_every4"

# What a golden run hands on from engine to engine; every other input has an array of its own.
_HANDED_ON = {"image", "text", "pix", *EncoderMaps._fields}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished model set, and how far ONNX Runtime is from PyTorch.

    `differences` is the largest one of each engine, `outputs` those of each of its outputs.
    """

    folder: Path
    differences: dict[str, float]
    outputs: dict[str, Differences]


def export_model_set(
    model: Sam3,
    preset: Preset,
    folder: Path,
    *,
    trained_on: str,
    score: float = 0.5,
    golden_image: npt.NDArray[np.float32] | None = None,
    more: Sequence[Graph] = (),
    tracker: Tracker | None = None,
    neck: TrackerNeck | None = None,
    tolerance: float = TOLERANCE,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str, Differences], None] | None = None,
) -> Exported:
    """Write `model` as a model set into `folder`; other files there are kept.

    `score` is the least score of a detection that a daemon trusts.
    `golden_image` (1, 3, H, W), normalized, is what later runtimes are compared on; noise where absent. `more` are
    further engines: those of `tracker`, an embedder, a behavior classifier; `neck` is the tracker's over a compact
    student. `seeds` draw the fresh random inputs, and `report` hears of each engine once it is compared on them.
    Raises ParityError where ONNX Runtime and PyTorch differ by more than `RELATIVE_TOLERANCE` of an output's largest
    value, or by more than `tolerance` itself; OutputError where the folder cannot be written. `folder` is then as it
    was.
    """
    model = model.eval()
    graphs = (*detection_graphs(model, preset, neck), *more)
    with written_aside(folder, last=FILE_NAME) as aside:
        outputs: dict[str, Differences] = {}
        for graph in graphs:
            outputs[graph.role] = export_engine(graph, aside, tolerance, seeds)
            if report is not None:
                report(graph.role, outputs[graph.role])
        differences = {role: max(d.absolute for d in found.values()) for role, found in outputs.items()}
        prompts = zip(model.concept_names, model.concepts.detach(), strict=True)
        _write_arrays(aside / "concepts.npz", {name: prompt[None].numpy() for name, prompt in prompts})
        given = {"text": model.concepts.detach()[:1].numpy()}
        if golden_image is not None:
            given["image"] = golden_image
        _write_arrays(aside / "golden.npz", golden_run(graphs, given))
        if tracker is not None:
            _write_arrays(aside / SESSION_FILE, session_constants(tracker))
        manifest = _manifest(model, preset, aside, graphs, trained_on, score, SESSION_FILE if tracker else None)
        (aside / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Exported(folder, differences, outputs)


def export_engine(graph: Graph, folder: Path, tolerance: float = math.inf, seeds: Sequence[int] = SEEDS) -> Differences:
    """Write one engine into `folder` and compare it with PyTorch on fresh random inputs.

    Raises ParityError naming engine, output and figure; `tolerance` is absolute and comes on top of the relative one.
    """
    path = folder / graph.file
    write_graph(graph, path)
    differences = compare(graph, path, seeds)
    check_parity(graph, differences, absolute=tolerance)
    return differences


def detection_graphs(model: Sam3, preset: Preset, neck: TrackerNeck | None = None) -> tuple[Graph, Graph]:
    """Encoder and detector of `model`; with a `neck` a compact student gives the tracker's maps too."""
    encoder = model.encoder if neck is None else TrackedStudent(model.encoder, neck).eval()
    alone = isinstance(encoder, PyramidEncoder)
    return (
        roles.encoder(encoder, preset.image_size, roles.DETECTOR_MAPS if alone else EncoderMaps._fields),
        roles.detector(model.detector, preset.grid, text_tokens=model.concepts.shape[1]),
    )


def golden_run(graphs: Sequence[Graph], given: Arrays) -> Arrays:
    """An input and what the networks say to it, each on what the ones before it gave: what runtimes are compared on.

    Inputs are those `given`, else noise. Maps, pictures and everything of encoder and detector stand under their names
    alone, the rest as `<role>.<name>`. Answers of four dimensions are kept at every fourth row and column, as
    `<name>_every4`, so that the file stays small.
    """
    golden = dict(given)
    handed_on = dict(given)
    for graph in graphs:
        prefix = "" if graph.role in REQUIRED else f"{graph.role}."
        inputs = {}
        for name, noise in graph.draw(0, 1).items():
            if name not in _HANDED_ON:
                value = golden[prefix + name] = noise.numpy()
            elif name in handed_on:
                value = handed_on[name]
            else:
                value = handed_on[name] = golden[name] = noise.numpy()
            inputs[name] = torch.from_numpy(value)
        for name, value in graph.run(inputs).items():
            if name in _HANDED_ON:
                handed_on[name] = value
            sampled = value.ndim == 4
            golden[prefix + name + SAMPLED * sampled] = value[..., ::4, ::4] if sampled else value
    return golden


@torch.no_grad()
def session_constants(tracker: Tracker) -> Arrays:
    """What a tracking session computes itself: temporal positions.

    `memory_positions` (memories, D) by age in frames, row 0 for conditioning frames. The position of a pointer is
    `pointer_weight` (D, C) @ sine + `pointer_bias` (D), with the C sines and cosines of its age over
    `pointer_frames` - 1.
    """
    projection = tracker.temporal_positional_encoding_projection_layer
    return {
        "memory_positions": tracker.memory_positions().numpy(),
        "pointer_weight": projection.weight.numpy(),
        "pointer_bias": projection.bias.numpy(),
        "pointer_frames": np.array(tracker.config.pointer_frames, np.float32),
    }


def _manifest(
    model: Sam3,
    preset: Preset,
    folder: Path,
    graphs: Sequence[Graph],
    trained_on: str,
    score: float,
    session_file: str | None,
) -> Manifest:

    def engine(graph: Graph) -> EngineEntry:
        inputs, outputs = tensor_specs(folder / graph.file)
        return EngineEntry(
            role=graph.role,
            file=graph.file,
            sha256=sha256_of(folder / graph.file),
            precision="fp32",
            inputs=inputs,
            outputs=outputs,
        )

    half = (0.5, 0.5, 0.5)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=preset.name,
        preset=preset.name,
        image_size=preset.image_size,
        grid=preset.grid,
        mask_size=preset.mask_size,
        normalization=Normalization(mean=half, std=half),
        concepts=ConceptsEntry(
            file="concepts.npz", sha256=sha256_of(folder / "concepts.npz"), names=model.concept_names
        ),
        behaviors=BEHAVIORS if any(graph.role == "behavior" for graph in graphs) else (),
        thresholds=Thresholds(score=score, nms_iou=0.5),
        engines=tuple(engine(graph) for graph in graphs),
        golden=FileEntry(file="golden.npz", sha256=sha256_of(folder / "golden.npz")),
        tracker=FileEntry(file=session_file, sha256=sha256_of(folder / session_file)) if session_file else None,
        trained_on=trained_on,
    )


def _write_arrays(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getvalue())
