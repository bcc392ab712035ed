"""Every name of TensorRT that the code uses is in 10.3 (JetPack 6), in 11, and in TensorRT-RTX where that is installed.

The table is of the releases' own Python bindings: `record_tensorrt_api.py`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from barnsight_engines import tensorrt_backend, tensorrt_builder

TABLE = json.loads(Path(__file__).with_name("tensorrt-api.json").read_text())
CLASS_OF = {  # what the code calls them: what they are
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "fault": "ParserError",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "trt": "trt",
}
RESULT_OF = {"Runtime": "Runtime", "get_timing_cache": "ITimingCache"}
ONLY_RTX = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}  # reached only where `trt.ComputeCapability` was found


def used_names() -> set[tuple[str, str]]:
    """Class and attribute of each use: `engine.name`, `self._context.name`, `trt.Class.NAME`, `trt.Runtime(…).name`."""
    found = set()
    for module in (tensorrt_backend, tensorrt_builder):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute) and (owner := owner_of(node.value)):
                found.add((owner, node.attr))
    return found


def owner_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return CLASS_OF.get(node.id)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "trt":
            return node.attr
        return CLASS_OF.get(node.attr.removeprefix("_")) if node.attr.startswith("_") else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return RESULT_OF.get(node.func.attr)
    return None


def test_the_code_is_read_right() -> None:
    used = used_names()
    assert {
        ("trt", "Runtime"),
        ("trt", "__version__"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_tensor_address"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ITimingCache", "serialize"),
        ("ParserError", "node_operator"),
    } <= used
    assert used >= ONLY_RTX


@pytest.mark.parametrize("version", sorted(TABLE))
def test_a_release_has_every_name_that_is_used(version: str) -> None:
    missing = {(owner, name) for owner, name in used_names() - ONLY_RTX if name not in TABLE[version][owner]}
    assert not missing


def test_the_table_holds_both_generations() -> None:
    assert {version.split(".")[0] for version in TABLE} == {"10", "11"}
    assert "10.3.0" in TABLE
    # what 11 has no longer: the table can tell the two apart
    assert "FP16" in TABLE["10.3.0"]["BuilderFlag"]
    assert all("FP16" not in TABLE[version]["BuilderFlag"] for version in TABLE if version.startswith("11."))


def test_tensorrt_rtx_has_every_name_that_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    missing = {
        (owner, name)
        for owner, name in used_names()
        if not hasattr(trt if owner == "trt" else getattr(trt, owner), name)
    }
    assert not missing
