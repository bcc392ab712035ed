"""Records which names a release of TensorRT's Python bindings has, without TensorRT and without a GPU.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0 && unzip tensorrt_cu12_bindings-*.whl -d bindings
    python tests/engines/record_tensorrt_api.py bindings tests/engines/tensorrt-api.json

The bindings are real; libnvinfer, which they are linked to, is not on PyPI. Empty libraries, made by a C compiler,
take its place: that is enough to import the module and to look at it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = (
    "Builder",
    "BuilderFlag",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LOOK = """
import json, sys
import tensorrt_bindings as trt
members = {name: [m for m in dir(getattr(trt, name)) if not m.startswith("_")] for name in sys.argv[1:]}
module = [name for name in dir(trt) if name in members or name == "__version__"]
print(json.dumps({"version": trt.__version__, "members": {"trt": module, **members}}))
"""


def record(bindings: Path, table: Path) -> None:
    """Add the release in the folder `bindings` to the JSON file `table`."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
        for library in LIBRARIES:
            for major in (10, 11):
                name = f"lib{library}.so.{major}"
                command = ["cc", "-shared", "-fPIC", "-o", f"{folder}/{name}", f"-Wl,-soname,{name}", str(source)]
                subprocess.run(command, check=True)
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "PYTHONPATH": str(bindings)}
        looked = subprocess.run(
            [sys.executable, "-c", LOOK, *CLASSES], env=environment, check=True, capture_output=True, text=True
        )
    found = json.loads(looked.stdout)
    known = json.loads(table.read_text()) if table.exists() else {}
    known[found["version"]] = found["members"]
    lines = [
        f" {json.dumps(version)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(names)}" for name, names in members.items())
        + "\n }"
        for version, members in sorted(known.items())
    ]
    table.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
