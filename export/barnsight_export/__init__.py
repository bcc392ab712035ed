"""The offline half of Barnsight: simulate, train, export and evaluate."""

import barnsight_engines  # noqa: F401 - before anything imports ONNX Runtime
