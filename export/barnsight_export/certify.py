"""How near ONNX Runtime comes to a model set's golden answers on this machine, as a certificate."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import onnxruntime as ort

from barnsight_engines.certificate import Certificate, Machine, draw_up, measure
from barnsight_engines.loader import check_model_set
from barnsight_engines.manifest import read_arrays
from barnsight_engines.onnx_backend import OnnxBackend


def certify_set(folder: Path) -> Certificate:
    """Run every engine of the set in `folder` on its golden input; the verdict may be "fail".

    Raises the engine errors of a set that is not whole, or whose golden file lacks an engine's input or outputs.
    """
    manifest, set_hash = check_model_set(folder)
    golden = folder / manifest.golden.file
    with ExitStack() as opened:
        engines = [
            opened.enter_context(closing(OnnxBackend(folder / entry.file, entry.spec))) for entry in manifest.engines
        ]
        measured = measure(golden, read_arrays(golden), engines)
    files = [(entry, folder / entry.file) for entry in manifest.engines]
    machine = Machine(runtime=OnnxBackend.runtime, version=ort.__version__)
    return draw_up(set_hash, machine, manifest.golden.file, files, measured)
