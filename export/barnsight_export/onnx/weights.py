"""A trained network's weights read back from its model set, so that training can go on where no checkpoint is left.

An exporter renames, transposes and folds weights, but does the same to every network of one shape. So a network with
random weights is exported too, and each of its weights is looked up by value in its own graph: where it turns up, the
model set's graph holds the trained one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from barnsight_engines.manifest import Manifest, read_arrays, read_manifest
from barnsight_export.errors import DataError
from barnsight_export.networks.compact import places
from barnsight_export.networks.sam3 import Sam3
from barnsight_export.networks.tracker import Tracker, TrackerNeck
from barnsight_export.onnx.export import SESSION_FILE, detection_graphs
from barnsight_export.onnx.graph import Graph, write_graph
from barnsight_export.onnx.roles import tracker_graphs
from barnsight_export.presets import Preset

# No engine holds them: of the detector what is used in training alone, of the tracker what only stock SAM 3 uses.
_UNUSED = ("detector.mask_decoder.semantic_projection.",)
_UNUSED_BY_TRACKER = (
    "tracker.mask_decoder.conv_s",  # the neck carries them out
    "tracker.mask_decoder.output_hypernetworks_mlps.0.",  # the mask of a click
    "tracker.no_memory_",
    "tracker.prompt_encoder.point_embed.",
    "tracker.prompt_encoder.shared_embedding.",
)
# These a session computes, from the set's own file.
_TEMPORAL = "tracker.memory_temporal_positional_encoding"
_POINTERS = "tracker.temporal_positional_encoding_projection_layer."
_IN_SESSION = (_TEMPORAL, _POINTERS)
_FREQUENCIES = "tracker.shared_image_embedding.positional_embedding"
# The compact student's projections of where a cell lies, and the side of their maps in grids.
_PLACES = {"encoder.place4.weight": 4, "encoder.place8.weight": 2, "encoder.place16.weight": 1}
_CLOSE = 1e-5  # reference boxes go through a sigmoid and back

Array = NDArray[Any]
Network = TypeVar("Network", bound=nn.Module)


def read_weights(folder: Path, preset: Preset) -> dict[str, Tensor]:
    """The weights of `preset`'s networks from the model set in `folder`; what only training uses starts afresh.

    Raises DataError where the set is of another preset or was exported by another version of PyTorch's exporter.
    """
    manifest, _ = read_manifest(folder)
    probe = _random_network(preset)
    weights = probe.state_dict()
    neck = TrackerNeck(preset.detector.width).eval() if manifest.has_tracker else None
    for graph in detection_graphs(probe, preset, neck):
        known, wanted = _constants_of(graph, folder, manifest, preset)
        for name in [name for name in weights if name.startswith(f"{graph.role}.") and not name.startswith(_UNUSED)]:
            weight = weights[name].numpy()
            found = _look_up(weight, known, wanted)
            if found is None and name in _PLACES:
                scale, (height, width) = _PLACES[name], preset.grid
                found = _unfold(weight, (scale * height, scale * width), known, wanted)
            weights[name] = _as_weight(found, name, folder)
    concepts = read_arrays(folder / manifest.concepts.file)
    weights["concepts"] = torch.from_numpy(np.concatenate([concepts[name] for name in probe.concept_names]))
    return weights


def read_tracker(folder: Path, preset: Preset) -> dict[str, Tensor]:
    """The weights of `preset`'s tracker and its neck from the model set in `folder`; what no engine uses starts afresh.

    Raises DataError where the set has no tracker, or as `read_weights` does.
    """
    manifest, _ = read_manifest(folder)
    if preset.tracker is None or not manifest.has_tracker:
        raise DataError(f"{folder}: this set has no tracker to start from; choose nano, or give a checkpoint")
    neck, tracker = TrackerNeck(preset.tracker.width).eval(), Tracker(preset.tracker).eval()
    weights = _shaken(nn.ModuleDict({"neck": neck, "tracker": tracker})).state_dict()
    elsewhere = (*_UNUSED_BY_TRACKER, *_IN_SESSION)
    encoder = detection_graphs(_random_network(preset), preset, neck)[0]
    for part, graphs in (("neck.", (encoder,)), ("tracker.", tracker_graphs(tracker))):
        constants = [_constants_of(graph, folder, manifest, preset) for graph in graphs]
        for name in [name for name in weights if name.startswith(part) and not name.startswith(elsewhere)]:
            look_up = _look_up_factor if name == _FREQUENCIES else _look_up
            finds = (look_up(weights[name].numpy(), known, wanted) for known, wanted in constants)
            weights[name] = _as_weight(next((find for find in finds if find is not None), None), name, folder)
    session = {name: torch.from_numpy(value) for name, value in read_arrays(folder / SESSION_FILE).items()}
    temporal = session["memory_positions"].roll(-1, dims=0)
    weights[_TEMPORAL] = temporal.reshape(weights[_TEMPORAL].shape)
    weights[f"{_POINTERS}weight"], weights[f"{_POINTERS}bias"] = session["pointer_weight"], session["pointer_bias"]
    return weights


def _as_weight(found: Array | None, name: str, folder: Path) -> Tensor:
    if found is None:
        raise DataError(f"{folder}: {name} is not in the exported graph; train from the start, or give the checkpoint")
    return torch.from_numpy(np.ascontiguousarray(found))


def _constants_of(
    graph: Graph, folder: Path, manifest: Manifest, preset: Preset
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The constants of a graph of random weights, and those of the same graph in the model set."""
    known, wanted = _exported(graph), _constants(folder / manifest.engine(graph.role).file)
    if _shapes(known) != _shapes(wanted):
        raise DataError(
            f"{folder}: its {graph.role} is not one that this version exports for preset {preset.name!r};"
            " train from the start, or give the checkpoint"
        )
    return known, wanted


def _random_network(preset: Preset) -> Sam3:
    return _shaken(preset.build().eval())


@torch.no_grad()
def _shaken(network: Network) -> Network:
    """The network with weights of which no two are alike, norms and biases included."""
    for parameter in network.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    return network


def _exported(graph: Graph) -> dict[str, Array]:
    """The constants of a graph's file."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / graph.file
        write_graph(graph, path)
        return _constants(path)


def _shapes(constants: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in constants.items()}


def _constants(path: Path) -> dict[str, Array]:
    graph = onnx.load(path).graph
    return {entry.name: np.asarray(numpy_helper.to_array(entry)) for entry in graph.initializer}


def _look_up(weight: Array, known: dict[str, Array], wanted: dict[str, Array]) -> Array | None:
    """The constant of `wanted` that stands where `weight` stands in `known`: as it is, transposed, with its rows in
    another order, or part of more."""
    for name, value in known.items():
        if value.size == weight.size and np.allclose(value.ravel(), weight.ravel(), atol=_CLOSE):
            return np.array(wanted[name].reshape(weight.shape))
        if value.shape == weight.T.shape and np.array_equal(value, weight.T):
            return np.array(wanted[name].T)
        if weight.ndim == 2 and value.ndim in (2, 3) and value.shape[-1] == weight.shape[1]:
            rows, trained = value.reshape(-1, weight.shape[1]), wanted[name].reshape(-1, weight.shape[1])
            for start in range(len(rows) - len(weight) + 1):  # the presence token and the queries are one constant
                if np.array_equal(rows[start : start + len(weight)], weight):
                    return np.array(trained[start : start + len(weight)])
        for rows, trained in ((value, wanted[name]), (value.T, wanted[name].T)):
            if rows.shape == weight.shape and (found := _reordered(weight, rows, trained)) is not None:
                return found
    return None


def _reordered(weight: Array, rows: Array, trained: Array) -> Array | None:
    """`trained` in the order that makes `weight` of `rows`, as rotary pairs are parted; None where they differ."""
    numbers = {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(rows))}
    order = [numbers.get(row.tobytes(), -1) for row in np.ascontiguousarray(weight)]
    return None if -1 in order else np.array(trained[order])


def _look_up_factor(weight: Array, known: dict[str, Array], wanted: dict[str, Array]) -> Array | None:
    """The weight (P, C) of which some constant (..., C) is a linear map, the same one for all weights."""
    for name, value in known.items():
        if value.ndim < 2 or value.shape[-1] != weight.shape[1]:
            continue
        product = value.reshape(-1, weight.shape[1])  # (n, C)
        basis = np.linalg.lstsq(weight.T, product.T, rcond=None)[0].T  # (n, P)
        if np.allclose(basis @ weight, product, atol=_CLOSE):
            trained = wanted[name].reshape(product.shape)
            return np.asarray(np.linalg.lstsq(basis, trained, rcond=None)[0], weight.dtype)
    return None


def _unfold(weight: Array, grid: tuple[int, int], known: dict[str, Array], wanted: dict[str, Array]) -> Array | None:
    """A projection (C, P, 1, 1) of the constant `places` that the exporter carried out: solved for by least squares."""
    basis = places(torch.zeros(1, 1, *grid)).flatten(2)[0].numpy()  # (P, hw)
    folded = weight[..., 0, 0] @ basis  # (C, hw)
    for name, value in known.items():
        if value.size == folded.size and np.allclose(value.ravel(), folded.ravel(), atol=_CLOSE):
            solution = np.linalg.lstsq(basis.T, wanted[name].reshape(folded.shape).T, rcond=None)[0]  # (P, C)
            return np.ascontiguousarray(solution.T, np.float32).reshape(weight.shape)
    return None
