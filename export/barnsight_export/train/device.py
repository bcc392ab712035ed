"""Where a training process computes, and with whom."""

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


def join_processes(device: torch.device) -> bool:
    """Meet the processes that torchrun started with this one; False where it started none."""
    if "WORLD_SIZE" not in os.environ:
        return False
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True
