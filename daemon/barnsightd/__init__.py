"""Barnsight's service: cameras in, a dependable record of every animal out."""

from __future__ import annotations

from importlib.metadata import version

import barnsight_engines  # noqa: F401 - before anything imports ONNX Runtime

__version__ = version("barnsight")
