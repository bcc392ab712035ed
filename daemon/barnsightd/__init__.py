"""Barnsight's service: cameras in, a dependable record of every animal out."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("barnsight")
