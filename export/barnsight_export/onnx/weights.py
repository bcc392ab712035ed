"""A trained network's weights read back from its model set, so that training can go on where no checkpoint is left.

An exporter renames, transposes and folds weights, but does the same to every network of one shape. So a network with
random weights is exported too, and each of its weights is looked up by value in its own graph: where it turns up, the
model set's graph holds the trained one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from barnsight_engines.manifest import read_arrays, read_manifest
from barnsight_export.errors import DataError
from barnsight_export.networks.compact import places
from barnsight_export.networks.sam3 import Sam3
from barnsight_export.networks.tracker import TrackerNeck
from barnsight_export.onnx.export import detection_graphs
from barnsight_export.onnx.graph import Graph, write_graph
from barnsight_export.presets import Preset

# Used in training alone, so no engine holds it.
_UNUSED = ("detector.mask_decoder.semantic_projection.weight", "detector.mask_decoder.semantic_projection.bias")
# The compact student's projections of where a cell lies, and the side of their maps in grids.
_PLACES = {"encoder.place4.weight": 4, "encoder.place8.weight": 2, "encoder.place16.weight": 1}
_CLOSE = 1e-5  # reference boxes go through a sigmoid and back

Array = NDArray[Any]


def read_weights(folder: Path, preset: Preset) -> dict[str, Tensor]:
    """The weights of `preset`'s networks from the model set in `folder`; what only training uses starts afresh.

    Raises DataError where the set is of another preset or was exported by another version of PyTorch's exporter.
    """
    manifest, _ = read_manifest(folder)
    probe = _random_network(preset)
    weights = probe.state_dict()
    neck = TrackerNeck(preset.detector.width).eval() if manifest.has_tracker else None
    for graph in detection_graphs(probe, preset, neck):
        known, wanted = _exported(graph), _constants(folder / manifest.engine(graph.role).file)
        if _shapes(known) != _shapes(wanted):
            raise DataError(
                f"{folder}: its {graph.role} is not one that this version exports for preset {preset.name!r};"
                " train from the start, or give the checkpoint"
            )
        for name in [name for name in weights if name.startswith(f"{graph.role}.") and name not in _UNUSED]:
            weight = weights[name].numpy()
            found = _look_up(weight, known, wanted)
            if found is None and name in _PLACES:
                scale, (height, width) = _PLACES[name], preset.grid
                found = _unfold(weight, (scale * height, scale * width), known, wanted)
            if found is None:
                raise DataError(
                    f"{folder}: {name} is not in the exported graph; train from the start, or give the checkpoint"
                )
            weights[name] = torch.from_numpy(found)
    concepts = read_arrays(folder / manifest.concepts.file)
    weights["concepts"] = torch.from_numpy(np.concatenate([concepts[name] for name in probe.concept_names]))
    return weights


@torch.no_grad()
def _random_network(preset: Preset) -> Sam3:
    """Fresh weights of which no two are alike, norms and biases included."""
    network = preset.build().eval()
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
    """The constant of `wanted` that stands where `weight` stands in `known`: as it is, transposed or part of more."""
    for name, value in known.items():
        if value.size == weight.size and np.allclose(value.ravel(), weight.ravel(), atol=_CLOSE):
            return np.array(wanted[name].reshape(weight.shape))
        if value.shape == weight.T.shape and np.array_equal(value, weight.T):
            return np.array(wanted[name].T)
        if value.ndim == 3 and weight.ndim == 2 and value.shape[2] == weight.shape[1] and len(value) == 1:
            for start in range(value.shape[1] - len(weight) + 1):  # the presence token and the queries are one constant
                rows = slice(start, start + len(weight))
                if np.array_equal(value[0, rows], weight):
                    return np.array(wanted[name][0, rows])
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
