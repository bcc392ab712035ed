"""One engine on its way to an ONNX file: which network, which inputs, and how near the file comes to PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from barnsight_engines.manifest import Role
from barnsight_engines.spec import TensorSpec
from barnsight_export.errors import ParityError
from barnsight_export.onnx.patches import OPSET, check_versions, fold, plain

LARGEST_BATCH = 32
RELATIVE_TOLERANCE = 1e-3
SEEDS = (1, 2, 3)

_TRACED_BATCH = 2  # 1 would be taken for a fixed size

Arrays = dict[str, NDArray[np.float32]]
Draw = Callable[[int, int], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Graph:
    """A network that plays `role`, and the names of what it takes and gives.

    `draw(seed, batch)` makes fresh random inputs by name, in the order of the network's arguments; they fix every
    shape but the first dimension of the inputs in `batched`, which stays open up to `LARGEST_BATCH`. Parity is judged
    on `judged_batch` rows: another number than the traced one, so that an open batch is shown to be open. A network
    that `reorders_weights` has that done in the file once and for all; others keep every weight as it is, so that it
    can be found again.
    """

    role: Role
    network: nn.Module
    draw: Draw
    outputs: tuple[str, ...]
    batched: tuple[str, ...] = ()
    judged_batch: int = 3
    reorders_weights: bool = False

    @property
    def file(self) -> str:
        return f"{self.role}.onnx"

    def run(self, inputs: Mapping[str, Tensor]) -> Arrays:
        """What PyTorch says: each output by name."""
        with torch.no_grad():
            answer = self.network(*inputs.values())
        values = (answer,) if isinstance(answer, Tensor) else tuple(answer)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of one output between two runtimes, and its share of the output's largest value."""

    absolute: float
    relative: float

    def join(self, other: Difference) -> Difference:
        """The worse of both; what is not a number is worst."""
        absolute = np.maximum(self.absolute, other.absolute)  # unlike max, it keeps NaN
        return Difference(float(absolute), float(np.maximum(self.relative, other.relative)))


Differences = dict[str, Difference]  # by output


def write_graph(graph: Graph, path: Path) -> None:
    """Export `graph` to `path`: one file, opset 18, IR 10."""
    graph.network.eval()
    inputs = graph.draw(0, _TRACED_BATCH)
    batch = Dim("batch", min=1, max=LARGEST_BATCH)
    program = torch.onnx.export(
        graph.network,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=tuple({0: batch} if name in graph.batched else None for name in inputs),
        external_data=False,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    if graph.reorders_weights:
        fold(program.model)
    model = plain(program.model_proto)
    check_versions(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def compare(graph: Graph, path: Path, seeds: Iterable[int] = SEEDS, batch: int | None = None) -> Differences:
    """How far ONNX Runtime is from PyTorch on fresh random inputs, worst of all `seeds`; `batch` rows, or the graph's
    own number of them."""
    session = open_session(path)
    found: Differences = {}
    for seed in seeds:
        inputs = graph.draw(seed, batch or graph.judged_batch)
        expected = graph.run(inputs)
        answer = session.run(list(expected), {name: value.numpy() for name, value in inputs.items()})
        for (name, want), got in zip(expected.items(), answer, strict=True):
            absolute = float(np.abs(want - got).max())
            relative = absolute / max(float(np.abs(want).max()), float(np.finfo(np.float32).tiny))
            difference = Difference(absolute, relative)
            found[name] = found[name].join(difference) if name in found else difference
    return found


def check_parity(
    graph: Graph, differences: Differences, relative: float = RELATIVE_TOLERANCE, absolute: float = math.inf
) -> None:
    """Raise ParityError naming the first output that is further off than a tolerance, or not a number."""
    for name, difference in differences.items():
        if not (difference.relative <= relative and difference.absolute <= absolute):
            raise ParityError(
                f"{graph.file}: output '{name}' of engine '{graph.role}' differs from PyTorch by "
                f"{difference.absolute:.2e}, {difference.relative:.2e} of its largest value; allowed are "
                f"{absolute:.0e} and {relative:.0e}: do not ship it, look for weights that are not numbers or for a "
                "changed exporter"
            )


def open_session(path: Path) -> Any:
    """The file in ONNX Runtime on the CPU."""
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an ONNX file as a manifest describes them; an open dimension is None."""
    graph = onnx.load(path, load_external_data=False).graph
    inputs, outputs = (tuple(_spec(value) for value in side) for side in (graph.input, graph.output))
    return inputs, outputs


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(value.name, dtype, tuple(d.dim_value or None for d in tensor.shape.dim))
