"""Compiles ONNX engines with TensorRT, to see that each network can be parsed and built at all.

TensorRT-RTX does it without a GPU, for a compute capability that is named: the compile check of CI. What a device runs
is built and certified there, by `barnsight engine build`, with the same builder: `barnsight_engines.tensorrt_builder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from barnsight_engines.loader import check_model_set
from barnsight_engines.manifest import FILE_NAME
from barnsight_engines.tensorrt_builder import BuildSettings, Built, build_engine
from barnsight_export.errors import DataMissingError

ENGINE_SUFFIX = ".engine"


def onnx_files(models: Path) -> list[Path]:
    """The ONNX files of the model set in `models`, checked, or those of a folder without a manifest.

    Raises the engine errors of a set that is not whole, DataMissingError where there is nothing to build.
    """
    if (models / FILE_NAME).exists():
        manifest, _ = check_model_set(models)
        return [models / entry.file for entry in manifest.engines]
    if found := sorted(models.glob("*.onnx")):
        return found
    raise DataMissingError(f"{models}: holds no manifest.json and no *.onnx; give the folder of an export")


def build_folder(models: Path, out: Path, settings: BuildSettings, runtime: str) -> Iterator[Built]:
    """Build every engine of `models` into the folder `out`, one after the other; each appears whole or not at all.

    Raises RuntimeMissingError, ModelSetDataError naming file and node, EngineError where `out` cannot be written.
    """
    for path in onnx_files(models):
        yield build_engine(path, out / f"{path.stem}{ENGINE_SUFFIX}", settings, runtime)
