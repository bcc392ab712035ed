"""Networks as distillation sees them: pictures in 0..1 go in, feature maps come out by name.

`Network` puts a module behind that form, a student's as well as a teacher's: it resizes and normalizes as the module
wants it, names the outputs, and taps inner layers where attention transfer or intermediate matching asks for them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from barnsight_export.errors import ExportUsageError

Layout = Literal["channels-first", "channels-last"]


class Teacher(Protocol):
    """Whoever gives feature maps. `key` changes with whatever changes them: it names the teacher in a cache."""

    key: str

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in 0..1 to feature maps (B, C, h, w) by name."""
        ...


@dataclass(frozen=True, slots=True)
class Input:
    """What a module wants to see: pictures of `size` (height, width) in pixels, normalized by channel."""

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize plainly and normalize: (B, 3, H, W) in 0..1 -> (B, 3, h, w)."""
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True, slots=True)
class Tap:
    """An inner layer whose output is a feature map: its name in the module, and where its channels stand.

    Tokens (B, hw, C) become a square map whatever `layout` says.
    """

    module: str
    layout: Layout = "channels-first"


class Network(nn.Module):
    """A module with its input, the names of its outputs in order, and taps of inner layers by map name.

    A module that returns a mapping is read by these names. Raises ExportUsageError for outputs that do not fit the
    names and for taps of layers that do not exist.
    """

    def __init__(
        self, module: nn.Module, inputs: Input, outputs: Sequence[str], taps: Mapping[str, Tap] | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.outputs = tuple(outputs)
        self.taps = dict(taps or {})
        inner = dict(module.named_modules())
        for name, tap in self.taps.items():
            if tap.module not in inner:
                raise ExportUsageError(f"tap '{name}': {type(module).__name__} has no layer '{tap.module}'")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}

        def keep(name: str, layout: Layout) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                maps[name] = _as_map(output[0] if isinstance(output, tuple) else output, layout)

            return hook

        # Hooked for this call only: a copy of the network must not fill the maps of its original.
        handles = [
            self.module.get_submodule(tap.module).register_forward_hook(keep(name, tap.layout))
            for name, tap in self.taps.items()
        ]
        try:
            found = self.module(self.inputs.prepare(images))
        finally:
            for handle in handles:
                handle.remove()
        return maps | self._named(found)

    def _named(self, found: Any) -> dict[str, Tensor]:
        if isinstance(found, Mapping):
            missing = [name for name in self.outputs if name not in found]
            if missing:
                raise ExportUsageError(
                    f"{type(self.module).__name__} gives no output '{missing[0]}', only {', '.join(map(str, found))}"
                )
            return {name: _as_map(found[name]) for name in self.outputs}
        values = (found,) if isinstance(found, Tensor) else tuple(found)
        if len(values) != len(self.outputs):
            raise ExportUsageError(
                f"{type(self.module).__name__} gives {len(values)} outputs,"
                f" named are {len(self.outputs)}: {', '.join(self.outputs)}"
            )
        return {name: _as_map(value) for name, value in zip(self.outputs, values, strict=True)}


class FrozenTeacher:
    """A network that teaches and does not learn: eval mode, no gradients, optionally in half precision."""

    def __init__(self, network: Network, autocast: torch.dtype | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.autocast = autocast
        self.key = fingerprint(network, autocast)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        enabled = self.autocast is not None
        with torch.autocast(images.device.type, self.autocast or torch.bfloat16, enabled=enabled):
            maps: dict[str, Tensor] = self.network(images)
        return {name: value.float() for name, value in maps.items()}


def fingerprint(network: Network, autocast: torch.dtype | None = None) -> str:
    """A hash of everything that decides the maps: weights, buffers, input, outputs, taps and precision."""
    digest = hashlib.sha256(repr((network.inputs, network.outputs, network.taps, autocast)).encode())
    digest.update(repr(type(network.module)).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _as_map(value: Tensor, layout: Layout = "channels-first") -> Tensor:
    """(B, hw, C) or (B, h, w, C) -> (B, C, h, w); what is a map already stays."""
    if value.ndim == 3:
        side = math.isqrt(value.shape[1])
        if side * side != value.shape[1]:
            raise ExportUsageError(f"{value.shape[1]} tokens are no square map; tap a layer without extra tokens")
        return value.transpose(1, 2).reshape(len(value), -1, side, side)
    return value.permute(0, 3, 1, 2) if layout == "channels-last" else value
