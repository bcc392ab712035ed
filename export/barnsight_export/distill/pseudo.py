"""Pseudo-labels: a teacher's detections as the truth on which a student's heads are fine-tuned.

The teacher's masks become instance maps, stored in the form of the simulated pictures (`datasets.simulated`), so that
the detector's own training (`train.detector`) makes batches of them and judges with the losses it has. A detection
between `DOUBTFUL` and `SURE` becomes an animal that is ignored: neither to be found nor a mistake to find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from barnsight_engines.detector import Detections, decode
from barnsight_engines.manifest import Thresholds
from barnsight_engines.masks import to_image
from barnsight_export.assemble import load_student
from barnsight_export.datasets.frames import Frames
from barnsight_export.datasets.simulated import MAX_ANIMALS, SHARD, held, mark, write_shard
from barnsight_export.networks.sam3 import normalize
from barnsight_export.train.detector import DetectorTrainer

SURE, DOUBTFUL = 0.5, 0.25
LABELED_PX = 384  # as large as the simulated pictures

Detect = Callable[[NDArray[np.uint8]], Detections]
"""A frame (S, S, 3) uint8 RGB to its animals, best first."""


class Sam3Labeler:
    """A trained detector, (image, concept) to `Detection`, as a teacher of one concept."""

    def __init__(self, model: nn.Module, concept: int, size: tuple[int, int]) -> None:
        self.model = model.eval()
        self.concept, self.size = concept, size
        self.thresholds = Thresholds(score=DOUBTFUL, nms_iou=0.5)

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        resized = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        found = self.model(normalize(torch.from_numpy(resized)[None]), torch.tensor([self.concept]))
        outputs = {name: value.float().numpy() for name, value in found._asdict().items()}
        return decode(outputs, image.shape[:2], self.thresholds, DOUBTFUL)


def instance_map(found: Detections) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Detections as an instance map (S, S) and what of each is visible (30,): 1 where sure, 0 (ignored) where doubtful.

    The best 30 are taken; where masks overlap, the better one has the pixel.
    """
    ids = np.zeros(found.image_size, np.uint8)
    visible = np.zeros(MAX_ANIMALS, np.float32)
    order = np.argsort(-found.scores, kind="stable")
    order = order[found.scores[order] >= DOUBTFUL][:MAX_ANIMALS]
    for number, index in reversed(list(enumerate(order, start=1))):
        ids[to_image(found.mask_logits[index], found.image_size)] = number
        visible[number - 1] = found.scores[index] >= SURE
    return ids, visible


def write_pictures(
    frames: Frames, detect: Detect, out: Path, *, concept: int, size_px: int = LABELED_PX, show_progress: bool = True
) -> None:
    """Label `frames` and write them as pictures of `size_px` into shards under `out`; complete shards are kept.

    `concept` is the species' number in the student's prompts. Raises DataError where the folder holds pictures of
    another size, concept or number of frames, OutputError where the disk is full.
    """
    mark(out, {"concept": concept, "size": size_px, "labeled": len(frames)})
    with tqdm(total=len(frames), desc=out.name, unit="frame", disable=not show_progress) as bar:
        for shard, first in enumerate(range(0, len(frames), SHARD)):
            chosen = range(first, min(first + SHARD, len(frames)))
            if held(out, shard) < len(chosen):
                images = [_square(frames[index], size_px) for index in chosen]
                ids, visible = zip(*(instance_map(detect(image)) for image in images), strict=True)
                species = np.full(len(images), concept, np.int64)
                write_shard(out, shard, np.stack(images), np.stack(ids), species, np.stack(visible))
            bar.update(len(chosen))


def freeze(trainer: DetectorTrainer, frozen: Sequence[str]) -> None:
    """Take the parameters whose names begin with one of `frozen` out of a trainer's hands."""
    for name, parameter in trainer.model.named_parameters():
        if name.startswith(tuple(frozen)):
            parameter.requires_grad_(False)
    for group in trainer.groups():
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]


def place_student(trainer: DetectorTrainer, path: Path) -> None:
    """Put a distilled student in the encoder's place, in the network and in its average; raises as `load_student`."""
    for model in (trainer.model, trainer.average):
        load_student(path, model)


def _square(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)
