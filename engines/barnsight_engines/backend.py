"""What every inference runtime looks like to the rest of the house, and the check each run passes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from barnsight_engines.errors import EngineError
from barnsight_engines.spec import EngineSpec, difference, specs_of


class Backend(Protocol):
    """One opened engine. Outputs belong to the caller: a later run does not overwrite them."""

    spec: EngineSpec
    runtime: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once. Raises EngineError where the inputs are not those of `spec` or the runtime fails."""
        ...

    def close(self) -> None:
        """Give the engine's memory back; a second call does nothing."""
        ...


def check_inputs(spec: EngineSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise EngineError unless `inputs` are exactly those that `spec` names."""
    if wrong := difference(spec.inputs, specs_of(inputs)):
        raise EngineError(f"engine '{spec.role}': input {wrong}; pass what its specification names")


def check_outputs(spec: EngineSpec, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise EngineError unless `outputs` are exactly those that `spec` names."""
    if wrong := difference(spec.outputs, specs_of(outputs)):
        raise EngineError(f"engine '{spec.role}': output {wrong}; build the model set again")
