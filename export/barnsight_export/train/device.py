"""Where a training process computes, and with whom."""

from __future__ import annotations

import os

import torch


def process_device() -> torch.device:
    """Where this process computes: its GPU under torchrun, the first one otherwise, else the CPU.

    Processes beyond the number of GPUs share them: a small network leaves a GPU idle while Python prepares its work.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def join_processes(device: torch.device) -> bool:
    """Meet the processes that torchrun started with this one; False where it started none."""
    if "WORLD_SIZE" not in os.environ:
        return False
    torch.distributed.init_process_group(backend(device, int(os.environ["LOCAL_WORLD_SIZE"])))
    return True


def backend(device: torch.device, processes: int) -> str:
    """What `processes` on one machine meet through; NCCL refuses two on one GPU."""
    return "nccl" if device.type == "cuda" and processes <= torch.cuda.device_count() else "gloo"
