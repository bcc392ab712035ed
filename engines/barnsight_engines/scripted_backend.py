"""An engine that says what a script says: the shipped fake, for everything that needs no real network.

It checks its inputs and outputs against its specification just as a real runtime does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.backend import check_inputs, check_outputs
from barnsight_engines.detector import Detections, Detector
from barnsight_engines.encoder import Encoder
from barnsight_engines.errors import EngineError
from barnsight_engines.loader import ModelSet
from barnsight_engines.manifest import (
    HASH_DIGITS,
    SCHEMA_VERSION,
    ConceptsEntry,
    EngineEntry,
    FileEntry,
    Manifest,
    Normalization,
    Thresholds,
)
from barnsight_engines.propagator import MemoryTracker, TemporalPositions
from barnsight_engines.spec import EngineSpec, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
CERTAIN = 20.0  # a logit that leaves no doubt
SCRIPTED_SLOTS, SCRIPTED_POINTERS = 7, 17
_CHANNELS = 2


class ScriptedBackend:
    """`script` is a function of the inputs, or the outputs of one run after the other.

    A sequence that has come to its end raises EngineError: a test that runs longer than its script is wrong.
    """

    runtime = "scripted"

    def __init__(self, spec: EngineSpec, script: Callable[[Arrays], Arrays] | Sequence[Arrays]) -> None:
        self.spec = spec
        self.runs = 0
        self.closed = False
        self._script = script

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """What the script has for these inputs; raises EngineError."""
        check_inputs(self.spec, inputs)
        if self.closed:
            raise EngineError(f"engine '{self.spec.role}' is closed; load the model set again")
        if callable(self._script):
            outputs = self._script(inputs)
        elif self.runs < len(self._script):
            outputs = self._script[self.runs]
        else:
            raise EngineError(
                f"engine '{self.spec.role}': its script ends after {len(self._script)} runs; give it a longer one"
            )
        self.runs += 1
        check_outputs(self.spec, outputs)
        return dict(outputs)

    def close(self) -> None:
        """Refuse to run from now on."""
        self.closed = True


def scripted_model_set(
    frames: Sequence[Detections] | Callable[[int], Detections],
    *,
    concepts: Sequence[str] = ("pig", "cow"),
    grid: tuple[int, int] = (20, 20),
    queries: int = 32,
    tracker: MemoryTracker | None = None,
) -> ModelSet:
    """A model set whose detector finds, frame by frame, what `frames` say: a sequence, or a function of the index.

    The masks of every Detections must be four times `grid` (height, width), and there may be at most `queries` animals.
    The detections come back through the detector's own decoding, so duplicates and low scores fall out.
    """
    manifest = _manifest(tuple(concepts), grid, queries)
    encoder, detector = (engine.spec for engine in manifest.engines)
    features = {spec.name: np.zeros([n or 1 for n in spec.shape], np.float32) for spec in encoder.outputs}
    if callable(frames):
        index, frame_at = itertools.count(), frames
        found = ScriptedBackend(detector, lambda _: raw_outputs(frame_at(next(index)), queries))
    else:
        found = ScriptedBackend(detector, [raw_outputs(frame, queries) for frame in frames])
    return ModelSet(
        manifest=manifest,
        encoder=Encoder(ScriptedBackend(encoder, lambda _: features), manifest.image_size, manifest.normalization),
        detector=Detector(found, {name: np.zeros((1, 1, 1), np.float32) for name in concepts}, manifest.thresholds),
        hash="0" * HASH_DIGITS,
        tracker=tracker,
    )


def scripted_tracker(grid: tuple[int, int] = (20, 20), *, largest_batch: int = 8) -> MemoryTracker:
    """A tracker that knows every animal by its color, the value of its cells in the first channel of `t1`.

    It finds an animal wherever that color is, and nowhere where it is not; 0 is the floor. `painted` makes such maps.
    """
    (height, width), tokens = grid, SCRIPTED_POINTERS
    cells, mask = height * width, (4 * height, 4 * width)
    t1, t2, t4 = (_tensor(f"t{n}", 1, _CHANNELS, n * height, n * width) for n in (1, 2, 4))
    drawn, obj, ptr = _tensor("mask", None, 1, *mask), _tensor("obj", None, 1), _tensor("ptr", None, _CHANNELS)
    memory = (
        _tensor("mem", None, SCRIPTED_SLOTS * cells, _CHANNELS),
        _tensor("mempos", SCRIPTED_SLOTS, _CHANNELS),
        _tensor("ptr", None, tokens, _CHANNELS),
        _tensor("ptrpos", None, tokens, _CHANNELS),
        _tensor("bias", None, 1, SCRIPTED_SLOTS * cells + tokens),
    )
    pix = _tensor("pix", None, _CHANNELS, *grid)
    found = (_tensor("mask", None, *mask), ptr, obj, _tensor("iou", None, 1))

    def attend(given: Arrays) -> Arrays:
        known = given["bias"][:, 0, : given["mem"].shape[1]] == 0
        color = np.where(known, given["mem"][..., 0], 0).max(axis=1)[:, None, None]  # (B, 1, 1)
        there = (given["t1"][0, :1] == color) & (color > 0)  # (B, h, w)
        return {"pix": np.where(there[:, None], CERTAIN, -CERTAIN).astype(np.float32).repeat(_CHANNELS, axis=1)}

    def decode(given: Arrays) -> Arrays:
        masks = given["pix"][:, 0].repeat(4, axis=1).repeat(4, axis=2)
        present = np.where((masks > 0).any(axis=(1, 2)), CERTAIN, -CERTAIN).astype(np.float32)[:, None]
        pointers = np.zeros((len(masks), _CHANNELS), np.float32)
        return {"mask": masks, "ptr": pointers, "obj": present, "iou": np.ones_like(present)}

    def memorize(given: Arrays) -> Arrays:
        memories = np.zeros((len(given["mask"]), cells, _CHANNELS), np.float32)
        for memory, own in zip(memories, given["mask"][:, 0, 2::4, 2::4] > 0, strict=True):
            colors = given["t1"][0, 0][own]
            memory[:, 0] = np.median(colors[colors > 0]) if (colors > 0).any() else 0
        return {"mem": memories}

    def point(given: Arrays) -> Arrays:
        return {"ptr": np.zeros((len(given["mask"]), _CHANNELS), np.float32)}

    still = np.zeros((SCRIPTED_SLOTS, _CHANNELS), np.float32)
    return MemoryTracker(
        ScriptedBackend(EngineSpec("memory_attention", (t1, *memory), (pix,)), attend),
        ScriptedBackend(EngineSpec("mask_decoder", (pix, t4, t2), found), decode),
        ScriptedBackend(EngineSpec("memory_encoder", (t1, drawn, obj), (_tensor("mem", None, cells, 2),)), memorize),
        ScriptedBackend(EngineSpec("prompt_decoder", (t1, drawn), (ptr,)), point),
        positions=TemporalPositions(still, np.zeros((_CHANNELS, _CHANNELS), np.float32), still[0], tokens),
        largest_batch=largest_batch,
    )


def painted(colors: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The maps of a frame for `scripted_tracker`: the color of the animal on each cell (h, w), 0 on the floor."""
    height, width = colors.shape
    maps = {f"t{n}": np.zeros((1, _CHANNELS, n * height, n * width), np.float32) for n in (4, 2, 1)}
    maps["t1"][0, 0] = colors
    return maps


def _tensor(name: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def raw_outputs(detections: Detections, queries: int) -> dict[str, NDArray[np.float32]]:
    """What a detector with `queries` queries must say for its decoding to give `detections`."""
    n, (height, width) = len(detections), detections.image_size
    logits = np.full((1, queries), -CERTAIN, np.float32)
    boxes = np.zeros((1, queries, 4), np.float32)
    masks = np.full((1, queries, *detections.mask_logits.shape[1:]), -CERTAIN, np.float32)
    scores = np.clip(detections.scores, 1e-6, 1 - 1e-6)
    logits[0, :n] = np.log(scores / (1 - scores))
    boxes[0, :n] = detections.boxes_px / np.array([width, height, width, height], np.float32)
    masks[0, :n] = detections.mask_logits
    return {
        "boxes": boxes,
        "logits": logits,
        "presence": np.full((1, 1), CERTAIN, np.float32),
        "masks": masks,
    }


def _manifest(concepts: tuple[str, ...], grid: tuple[int, int], queries: int) -> Manifest:
    """The smallest manifest with that grid: one channel, one prompt token."""
    height, width = grid
    size, mask = (16 * height, 16 * width), (4 * height, 4 * width)
    pyramid = tuple(TensorSpec(f"d{n}", "float32", (1, 1, n * height, n * width)) for n in (4, 2, 1))
    text = TensorSpec("text", "float32", (1, 1, 1))
    found = (
        TensorSpec("boxes", "float32", (1, queries, 4)),
        TensorSpec("logits", "float32", (1, queries)),
        TensorSpec("presence", "float32", (1, 1)),
        TensorSpec("masks", "float32", (1, queries, *mask)),
    )
    nothing = "0" * 64
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="scripted",
        preset="scripted",
        image_size=size,
        grid=grid,
        mask_size=mask,
        normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        concepts=ConceptsEntry(file="none", sha256=nothing, names=concepts),
        behaviors=(),
        thresholds=Thresholds(score=0.5, nms_iou=0.5),
        engines=(
            EngineEntry(
                role="encoder",
                file="none",
                sha256=nothing,
                precision="fp32",
                inputs=(TensorSpec("image", "float32", (1, 3, *size)),),
                outputs=pyramid,
            ),
            EngineEntry(
                role="detector",
                file="none",
                sha256=nothing,
                precision="fp32",
                inputs=(*pyramid, text),
                outputs=found,
            ),
        ),
        golden=FileEntry(file="none", sha256=nothing),
        trained_on="nothing",
    )
