"""Numeric parity: a runtime must say what the exporter said, on the golden input, before it sees a camera.

`golden.npz` holds `image` (1, 3, S, S) and `text` (1, T, C), and what the networks answered: each output under its
own name, maps and masks at every fourth row and column as `<name>_every4`. The engines run in their order, each on
what the ones before it gave, so errors may add up as they do at work. Compared are the cosine of the two answers
and their largest difference, as a share of the golden answer's largest value where that exceeds 1.

The detector lists its queries by rank, and two that are nearly equal may swap places on another processor. So its
rows are first paired with the golden ones by logit and box, and only the better half of them is compared: at the
far end of the list a near tie decides who is in it at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import Backend
from barnsight_engines.errors import ModelSetDataError
from barnsight_engines.manifest import Precision, read_arrays

STRIDE = 4
SAMPLED = "_every4"
RANKED = ("boxes", "logits", "masks")  # detector outputs (1, K, ...) that share one ranking

Pairs = dict[str, tuple[NDArray[Any], NDArray[Any]]]  # by output: the golden answer, this runtime's


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The least cosine and the largest difference that are let through."""

    cosine: float
    difference: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(cosine=0.9999, difference=0.01),
    "fp16": Tolerance(cosine=0.999, difference=0.05),
    "int8": Tolerance(cosine=0.98, difference=0.5),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """How near one output came to the golden one."""

    output: str
    cosine: float
    difference: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether it is near enough; a value that is not a number never is."""
        return self.cosine >= tolerance.cosine and self.difference <= tolerance.difference


def certify(path: Path, engines: Sequence[tuple[Backend, Precision]]) -> tuple[Parity, ...]:
    """Run the engines on the input in the golden file `path` and compare every answer that is kept there.

    Raises ModelSetDataError naming the first output that is too far off, or what the golden file lacks.
    """
    golden = read_arrays(path)
    known = dict(golden)
    report: list[Parity] = []
    for backend, precision in engines:
        where = f"{path}: engine '{backend.spec.role}'"
        names = [spec.name for spec in backend.spec.inputs]
        if missing := [name for name in names if name not in known]:
            raise ModelSetDataError(f"{where}: input '{missing[0]}' is missing; export the model set again")
        outputs = backend.run({name: known[name] for name in names})
        known |= outputs
        pairs = _pairs(golden, outputs)
        if not pairs:
            raise ModelSetDataError(f"{where}: its outputs are missing; export the model set again")
        for name, (want, got) in pairs.items():
            if want.shape != got.shape:
                raise ModelSetDataError(
                    f"{where}: output '{name}' must have the shape {got.shape}, got {want.shape}; "
                    "export the model set again"
                )
        for name, (want, got) in _in_rank(pairs).items():
            parity = _parity(name, want, got)
            if not parity.within(TOLERANCES[precision]):
                raise ModelSetDataError(
                    f"{where}: output '{name}' is not the golden one on {backend.runtime} (cosine "
                    f"{parity.cosine:.5f}, largest difference {parity.difference:.2g}); export the model set again"
                )
            report.append(parity)
    return tuple(report)


def _pairs(golden: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Pairs:
    whole = {name: (golden[name], got) for name, got in outputs.items() if name in golden}
    sampled = {
        name: (golden[name + SAMPLED], got[..., ::STRIDE, ::STRIDE])
        for name, got in outputs.items()
        if name + SAMPLED in golden
    }
    return whole | sampled


def _in_rank(pairs: Pairs) -> Pairs:
    """Keep the better half of the golden rows, and set the nearest row of the answer beside each."""
    if not {"boxes", "logits"} <= pairs.keys():
        return pairs
    golden, answer = (
        np.column_stack([pairs["logits"][side][0], pairs["boxes"][side][0]]) for side in (0, 1)
    )  # (K, 1 + 4)
    best = np.argsort(-golden[:, 0], kind="stable")[: (len(golden) + 1) // 2]
    distance = np.abs(golden[best, None, :] - answer[None, :, :]).sum(axis=2)  # (K / 2, K)
    nearest = distance.argmin(axis=1)
    ranked = {name: pair for name, pair in pairs.items() if name in RANKED}
    return pairs | {name: (want[:, best], got[:, nearest]) for name, (want, got) in ranked.items()}


def _parity(name: str, want: NDArray[Any], got: NDArray[Any]) -> Parity:
    a, b = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    tiny = np.finfo(np.float64).tiny  # two answers of nothing but zeros are equal
    cosine = (a @ b + tiny) / (np.linalg.norm(a) * np.linalg.norm(b) + tiny)
    return Parity(name, float(cosine), float(np.abs(a - b).max() / max(np.abs(a).max(), 1)))
