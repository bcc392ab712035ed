"""Where a training process computes."""

from __future__ import annotations

import os

import torch


def process_device() -> torch.device:
    """Where this process computes: its own GPU under torchrun, the first one otherwise, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
