"""Muon: momentum, made orthogonal, for the matrices inside a network; AdamW for everything else.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv:2502.16982), under
which AdamW's learning rate and weight decay serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients of Jordan et al.
_ADAMW_RMS = 0.2  # how large AdamW's updates are, by Liu et al.


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (0.7 to 1.2), by Newton-Schulz: (..., M, N)."""
    a, b, c = _QUINTIC
    wide: Tensor = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x: Tensor = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonal; a convolution's kernel is the matrix (outputs, inputs x area).

    Takes parameters of two dimensions or more.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # gives no loss back
        """Update every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}  # what has one shape is made orthogonal at once
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = orthogonalize(torch.stack([each.flatten(1) for each in ahead]))
        updates *= _ADAMW_RMS * math.sqrt(max(updates.shape[1:]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        steps = [update.view_as(parameter) for update, parameter in zip(updates, parameters, strict=True)]
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])
