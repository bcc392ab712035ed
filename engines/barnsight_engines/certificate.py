"""Numeric parity: a runtime must say what the exporter said, on the golden input, before it sees a camera.

`golden.npz` holds `image` (1, 3, H, W) and `text` (1, T, C), and what the networks answered: each output under its
own name, maps and masks at every fourth row and column as `<name>_every4`. Where two engines use one name for
different things, it is written `<role>.<name>`. The engines run in their order, each on what the ones before it
gave, so errors may add up as they do at work. Compared are the cosine of the two answers and their largest
difference, absolute and as a share of the golden answer's largest value where that exceeds 1.

The detector lists its queries by rank, and two that are nearly equal may swap places on another processor. So its
rows are first paired with the golden ones by logit and box, and only the better half of them is compared: at the
far end of the list a near tie decides who is in it at all. Two figures say what that half means to a daemon: the IoU
of its masks, over all their pixels together, and the largest difference of a score, σ(logit) σ(presence).

A `Certificate` is the outcome kept beside engines that were built on this machine: whose they are, what ran them, how
near each output came to ONNX Runtime's, and the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from barnsight_engines.backend import Backend
from barnsight_engines.errors import ModelSetDataError, ModelSetMissingError
from barnsight_engines.files import write_whole
from barnsight_engines.manifest import EngineEntry, Entry, FileEntry, Precision, Role, read_arrays, sha256_of

STRIDE = 4
SAMPLED = "_every4"
RANKED = ("boxes", "logits", "masks")  # detector outputs (1, K, ...) that share one ranking
WORST = 1e30  # stands for a difference that is not a number, which JSON cannot hold
CERTIFICATE_NAME = "certificate.json"

Arrays = Mapping[str, NDArray[Any]]
Pairs = dict[str, tuple[NDArray[Any], NDArray[Any]]]  # by output: the golden answer, this runtime's


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The least cosine and mask IoU and the largest differences that are let through."""

    cosine: float
    difference: float
    mask_iou: float
    score_difference: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(cosine=0.9999, difference=0.01, mask_iou=0.99, score_difference=0.005),
    "fp16": Tolerance(cosine=0.999, difference=0.05, mask_iou=0.98, score_difference=0.02),
    "int8": Tolerance(cosine=0.98, difference=0.5, mask_iou=0.9, score_difference=0.1),
}


# These work on crops and records, not on what the engines before them answer.
STANDING_ALONE: tuple[Role, ...] = ("embedder", "behavior")


def judged_as(engines: Sequence[EngineEntry]) -> list[Precision]:
    """The precision by whose limits each of `engines`, in the order in which they run, is judged.

    It is the coarsest of its own and of those of the engines before it, on whose answers it works.
    """
    fineness: tuple[Precision, ...] = get_args(Precision)
    so_far: Precision = fineness[0]
    judged: list[Precision] = []
    for entry in engines:
        if entry.role in STANDING_ALONE:
            judged.append(entry.precision)
            continue
        so_far = max(so_far, entry.precision, key=fineness.index)
        judged.append(so_far)
    return judged


@dataclass(frozen=True, slots=True)
class Parity:
    """How near one output came to the golden one.

    `difference` is the largest one, as a share of the golden answer's largest value where that exceeds 1, and
    `absolute` the same in the output's own unit. The detector's masks have a `mask_iou`, its logits a
    `score_difference`.
    """

    output: str
    cosine: float
    difference: float
    absolute: float = 0.0
    mask_iou: float | None = None
    score_difference: float | None = None

    def near(self, tolerance: Tolerance) -> bool:
        """Whether the numbers themselves are near enough; a value that is not a number never is."""
        return self.cosine >= tolerance.cosine and self.difference <= tolerance.difference

    def within(self, tolerance: Tolerance) -> bool:
        """Whether numbers, masks and scores are all near enough."""
        return (
            self.near(tolerance)
            and (self.mask_iou is None or self.mask_iou >= tolerance.mask_iou)
            and (self.score_difference is None or self.score_difference <= tolerance.score_difference)
        )

    def __str__(self) -> str:
        text = f"cosine {self.cosine:.5f}, largest difference {self.difference:.2g}"
        if self.mask_iou is not None:
            text += f", mask IoU {self.mask_iou:.4f}"
        if self.score_difference is not None:
            text += f", score difference {self.score_difference:.2g}"
        return text


def first_failure(outputs: Sequence[Parity], tolerance: Tolerance) -> Parity | None:
    """The output to blame: one whose own numbers are off before one whose masks or scores follow from others."""
    failed = [parity for parity in outputs if not parity.within(tolerance)]
    return min(failed, key=lambda parity: parity.near(tolerance), default=None)


class Machine(Entry):
    """What ran the engines: the runtime and, where they are known, the GPU and its driver."""

    runtime: str
    version: str
    device: str | None = None
    driver: str | None = None

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.runtime} {self.version}", self.device, self.driver) if part)


class EngineRecord(FileEntry):
    """One engine file, how near its outputs came, and what was allowed."""

    role: Role
    precision: Precision
    limits: Tolerance
    outputs: tuple[Parity, ...]

    @property
    def failure(self) -> str | None:
        """The output that is too far off, with its figures."""
        failed = first_failure(self.outputs, self.limits)
        return None if failed is None else f"engine '{self.role}': output '{failed.output}' ({failed})"


class Certificate(Entry):
    """The outcome for all engines that one runtime has of a model set, named by its hash."""

    schema_version: Literal[1] = 1
    model_set: str
    machine: Machine
    reference: str
    verdict: Literal["pass", "fail"]
    engines: tuple[EngineRecord, ...]

    @property
    def failure(self) -> str | None:
        """What failed first; None where the verdict is "pass"."""
        return next((record.failure for record in self.engines if record.failure), None)

    def write(self, folder: Path, name: str = CERTIFICATE_NAME) -> None:
        """Write the certificate into `folder`, whole or not at all. Raises EngineError."""
        write_whole(folder / name, (self.model_dump_json(indent=2) + "\n").encode())


def read_certificate(folder: Path) -> Certificate:
    """The certificate of the engines in `folder`. Raises ModelSetMissingError or ModelSetDataError."""
    path = folder / CERTIFICATE_NAME
    try:
        return Certificate.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelSetMissingError(f"{path}: {error.strerror}; run: barnsight engine build") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        text = f"{path}: {key}: {first['msg']}" if key else f"{path}: {first['msg']}"
        raise ModelSetDataError(f"{text}; run: barnsight engine build") from error


def draw_up(
    model_set: str,
    machine: Machine,
    reference: str,
    engines: Sequence[tuple[EngineEntry, Path]],
    measured: Mapping[str, tuple[Parity, ...]],
) -> Certificate:
    """The certificate of `engines`, each with its file, out of what `measure` found; the verdict follows from it."""
    limits = [TOLERANCES[precision] for precision in judged_as([entry for entry, _ in engines])]
    records = tuple(
        EngineRecord(
            file=path.name,
            sha256=sha256_of(path),
            role=entry.role,
            precision=entry.precision,
            limits=limit,
            outputs=measured[entry.role],
        )
        for (entry, path), limit in zip(engines, limits, strict=True)
    )
    return Certificate(
        model_set=model_set,
        machine=machine,
        reference=reference,
        verdict="fail" if any(record.failure for record in records) else "pass",
        engines=records,
    )


def certify(path: Path, engines: Sequence[tuple[Backend, Precision]]) -> tuple[Parity, ...]:
    """Run the engines on the input in the golden file `path` and compare every answer that is kept there.

    Each engine comes with the precision that it is judged as. Raises ModelSetDataError naming the first output that
    is too far off, or what the golden file lacks.
    """
    measured = measure(path, read_arrays(path), [backend for backend, _ in engines])
    for backend, precision in engines:
        if failed := first_failure(measured[backend.spec.role], TOLERANCES[precision]):
            raise ModelSetDataError(
                f"{path}: engine '{backend.spec.role}': output '{failed.output}' is not the golden one on "
                f"{backend.runtime} ({failed}); {_next_step(backend.runtime)}"
            )
    return tuple(parity for backend, _ in engines for parity in measured[backend.spec.role])


def measure(path: Path, golden: Arrays, engines: Sequence[Backend]) -> dict[str, tuple[Parity, ...]]:
    """How near the engines come to the `golden` answers, by role; `path` is where those are from, for messages.

    Raises ModelSetDataError where `golden` lacks an input or every output of an engine.
    """
    known = dict(golden)
    report: dict[str, tuple[Parity, ...]] = {}
    for backend in engines:
        role = backend.spec.role
        where = f"{path}: engine '{role}'"
        outputs = backend.run(inputs_of(backend, known, where))
        known |= outputs
        pairs = _pairs(golden, role, outputs)
        if not pairs:
            raise ModelSetDataError(f"{where}: its outputs are missing; export the model set again")
        for name, (want, got) in pairs.items():
            if want.shape != got.shape:
                raise ModelSetDataError(
                    f"{where}: output '{name}' must have the shape {got.shape}, got {want.shape}; "
                    "export the model set again"
                )
        report[role] = _figures(pairs)
    return report


def answers(path: Path, golden: Arrays, engines: Sequence[Backend]) -> dict[str, NDArray[Any]]:
    """`golden`'s inputs with what `engines` answer to them, whole: what another runtime is then measured on.

    Raises ModelSetDataError where an input is missing.
    """
    known = dict(golden)
    found: dict[str, NDArray[Any]] = {}
    for backend in engines:
        role = backend.spec.role
        outputs = backend.run(inputs_of(backend, known, f"{path}: engine '{role}'"))
        known |= outputs
        found |= {f"{role}.{name}": value for name, value in outputs.items()}
    return dict(golden) | found


def inputs_of(backend: Backend, known: Arrays, where: str) -> dict[str, NDArray[Any]]:
    """What `backend` takes, out of `known`: an array of its own role before one of that name alone."""
    role, names = backend.spec.role, [spec.name for spec in backend.spec.inputs]
    sources = {name: f"{role}.{name}" if f"{role}.{name}" in known else name for name in names}
    if missing := [name for name, source in sources.items() if source not in known]:
        raise ModelSetDataError(f"{where}: input '{missing[0]}' is missing; export the model set again")
    return {name: known[source] for name, source in sources.items()}


def _next_step(runtime: str) -> str:
    return "export the model set again" if runtime == "onnxruntime" else "run: barnsight engine build"


def _pairs(golden: Arrays, role: str, outputs: Arrays) -> Pairs:
    pairs: Pairs = {}
    for name, got in outputs.items():
        for key, answer in ((name, got), (name + SAMPLED, got[..., ::STRIDE, ::STRIDE] if got.ndim > 1 else got)):
            source = next((k for k in (f"{role}.{key}", key) if k in golden), None)
            if source is not None:
                pairs[name] = (golden[source], answer)
                break
    return pairs


def _in_rank(pairs: Pairs) -> Pairs:
    """Keep the better half of the golden rows, and set the nearest row of the answer beside each."""
    golden, answer = (
        np.column_stack([pairs["logits"][side][0], pairs["boxes"][side][0]]) for side in (0, 1)
    )  # (K, 1 + 4)
    best = np.argsort(-golden[:, 0], kind="stable")[: (len(golden) + 1) // 2]
    distance = np.abs(golden[best, None, :] - answer[None, :, :]).sum(axis=2)  # (K / 2, K)
    nearest = distance.argmin(axis=1)
    ranked = {name: pair for name, pair in pairs.items() if name in RANKED}
    return pairs | {name: (want[:, best], got[:, nearest]) for name, (want, got) in ranked.items()}


def _figures(pairs: Pairs) -> tuple[Parity, ...]:
    """Figures of each output; those that only a detector has, where these are a detector's outputs."""
    if not {"boxes", "logits"} <= pairs.keys():
        return tuple(_parity(name, want, got) for name, (want, got) in pairs.items())
    pairs = _in_rank(pairs)
    iou = _mask_iou(*pairs["masks"]) if "masks" in pairs else None
    presence = pairs.get("presence", (np.float32(WORST), np.float32(WORST)))
    scores = [_sigmoid(pairs["logits"][side]) * _sigmoid(presence[side]) for side in (0, 1)]
    return tuple(
        _parity(
            name,
            want,
            got,
            mask_iou=iou if name == "masks" else None,
            score_difference=_number(np.abs(scores[0] - scores[1]).max()) if name == "logits" else None,
        )
        for name, (want, got) in pairs.items()
    )


def _parity(
    name: str,
    want: NDArray[Any],
    got: NDArray[Any],
    *,
    mask_iou: float | None = None,
    score_difference: float | None = None,
) -> Parity:
    a, b = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    tiny = np.finfo(np.float64).tiny  # two answers of nothing but zeros are equal
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Parity(name, -1.0, WORST, WORST, mask_iou, score_difference)
    cosine = float((a @ b + tiny) / (np.linalg.norm(a) * np.linalg.norm(b) + tiny))
    absolute = float(np.abs(a - b).max())
    return Parity(name, cosine, absolute / max(float(np.abs(a).max()), 1.0), absolute, mask_iou, score_difference)


def _mask_iou(want: NDArray[Any], got: NDArray[Any]) -> float:
    """IoU of all masks (1, K / 2, h, w) together: a pixel that flips weighs the same in each."""
    a, b = want > 0, got > 0
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def _sigmoid(x: NDArray[Any] | np.float32) -> NDArray[Any]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64))))


def _number(value: float) -> float:
    return float(value) if np.isfinite(value) else WORST
