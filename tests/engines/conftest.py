"""A model set small enough to write by hand: 16 pixels, one token, three queries, no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from barnsight_engines.manifest import sha256_of

FLOAT = TensorProto.FLOAT
PYRAMID = {"d4": [1, 3, 4, 4], "d2": [1, 3, 2, 2], "d1": [1, 3, 1, 1]}
DETECTOR_INPUTS = {**PYRAMID, "text": [1, 1, 3]}
DETECTOR_OUTPUTS = {"boxes": [1, 3, 4], "logits": [1, 3], "presence": [1, 1], "masks": [1, 3, 4, 4]}
BOXES = np.array([[[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]], np.float32)


class ModelSetFolder:
    """A model set on disk that a test can spoil; `seal` makes its hashes right again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {
            "schema_version": 1,
            "name": "tiny",
            "preset": "tiny",
            "image_size": [16, 16],
            "grid": [1, 1],
            "mask_size": [4, 4],
            "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "concepts": {"file": "concepts.npz", "names": ["pig", "cow"]},
            "behaviors": [],
            "thresholds": {"score": 0.5, "nms_iou": 0.5},
            "engines": [
                _entry("encoder", {"image": [1, 3, 16, 16]}, PYRAMID),
                _entry("detector", DETECTOR_INPUTS, DETECTOR_OUTPUTS),
            ],
            "golden": {"file": "golden.npz"},
            "trained_on": "nothing",
        }
        self.write_onnx("encoder.onnx", encoder_nodes(), {"image": [1, 3, 16, 16]}, PYRAMID)
        self.write_onnx("detector.onnx", detector_nodes(), DETECTOR_INPUTS, DETECTOR_OUTPUTS)
        pig = np.full((1, 1, 3), 1, np.float32)
        self.write_arrays("concepts.npz", {"pig": pig, "cow": -pig})
        image = np.linspace(-1, 1, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)
        d4 = image.reshape(1, 3, 4, 4, 4, 4).mean(axis=(3, 5))
        d1 = image.mean(axis=(2, 3))
        self.golden: dict[str, NDArray[Any]] = {
            "image": image,
            "text": pig,
            "d4": d4,
            "boxes": BOXES,
            "logits": d1 + 1,
            "presence": np.full((1, 1), 3, np.float32),
            "masks_every4": d4[..., ::4, ::4],
        }
        self.write_arrays("golden.npz", self.golden)
        self.seal()

    def write_onnx(
        self,
        file: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, list[int]],
        outputs: dict[str, list[int]],
        dtype: int = FLOAT,
    ) -> None:
        graph = helper.make_graph(
            nodes,
            file,
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (self.path / file).write_bytes(model.SerializeToString())

    def write_arrays(self, file: str, arrays: dict[str, NDArray[Any]]) -> None:
        np.savez(self.path / file, **arrays)  # type: ignore[arg-type]

    def seal(self) -> None:
        for entry in (*self.manifest["engines"], self.manifest["concepts"], self.manifest["golden"]):
            if (self.path / entry["file"]).is_file():
                entry["sha256"] = sha256_of(self.path / entry["file"])
        self.save()

    def save(self) -> None:
        (self.path / "manifest.json").write_text(json.dumps(self.manifest))


def encoder_nodes() -> list[onnx.NodeProto]:
    """Each level is the mean of the pixels under it."""
    return [
        helper.make_node("AveragePool", ["image"], [name], kernel_shape=[n, n], strides=[n, n])
        for name, n in (("d4", 4), ("d2", 8), ("d1", 16))
    ]


def detector_nodes() -> list[onnx.NodeProto]:
    """logits = d1 + text, presence = sum of text, masks = d4, and the same three boxes always."""
    return [
        helper.make_node("Constant", [], ["boxes"], value=numpy_helper.from_array(BOXES)),
        helper.make_node("Constant", [], ["ones"], value=numpy_helper.from_array(np.ones((3, 1), np.float32))),
        helper.make_node("Flatten", ["d1"], ["levels"]),
        helper.make_node("Flatten", ["text"], ["words"]),
        helper.make_node("Add", ["levels", "words"], ["logits"]),
        helper.make_node("MatMul", ["words", "ones"], ["presence"]),
        helper.make_node("Identity", ["d4"], ["masks"]),
    ]


def _entry(role: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> dict[str, Any]:
    def tensors(shapes: dict[str, list[int]]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]

    return {
        "role": role,
        "file": f"{role}.onnx",
        "precision": "fp32",
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
    }


@pytest.fixture
def model_set_folder(tmp_path: Path) -> ModelSetFolder:
    return ModelSetFolder(tmp_path)
