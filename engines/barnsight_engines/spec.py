"""What an engine takes and gives: its tensors by name, dtype and shape, compared before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dtype` is numpy's name of it; None in `shape` is a dimension left open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dimensions = ", ".join("any" if n is None else str(n) for n in self.shape)
        return f"{self.dtype} ({dimensions})"

    def accepts(self, found: TensorSpec) -> bool:
        """Whether `found` has this dtype and this shape, open dimensions aside."""
        return (
            self.dtype == found.dtype
            and len(self.shape) == len(found.shape)
            and all(want is None or want == got for want, got in zip(self.shape, found.shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: the role it plays in the model set, its inputs and its outputs."""

    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def specs_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[TensorSpec, ...]:
    """Describe arrays as they are."""
    return tuple(TensorSpec(name, str(array.dtype), array.shape) for name, array in arrays.items())


def difference(wanted: Iterable[TensorSpec], found: Iterable[TensorSpec]) -> str | None:
    """Say how `found` differs from `wanted`, by name and in any order; None where it does not."""
    by_name = {spec.name: spec for spec in found}
    for want in wanted:
        got = by_name.pop(want.name, None)
        if got is None:
            return f"'{want.name}' is missing"
        if not want.accepts(got):
            return f"'{want.name}' must be {want}, got {got}"
    if by_name:
        return f"'{next(iter(by_name))}' is not expected"
    return None
