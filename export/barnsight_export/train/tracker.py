"""Train SAM 3's tracker in miniature over a student that stays as it is, on sequences of simulated barns.

    barnsight-export train tracker --data sequences --student runs/nano/checkpoint.pt --out runs/tracker --minutes 60

An animal begins with its true mask, as a detection gives it, and is then followed by the tracker's own answers: each
becomes a memory for the frames after it. Now and then a memory is of the true mask, as where a detection explained the
animal, and without a pointer, as a lazy session leaves it. Of the mask decoder's three candidates the best one learns
(Kirillov et al. 2023); all learn to tell how good they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from barnsight_engines.propagator import CERTAIN, MASKED
from barnsight_export.checkpoints import load
from barnsight_export.errors import ExportUsageError
from barnsight_export.networks.sam3 import normalize
from barnsight_export.networks.tracker import (
    MaskDecoder,
    MemoryAttention,
    MemoryEncoder,
    PromptDecoder,
    Tracker,
    TrackerNeck,
)
from barnsight_export.presets import Preset
from barnsight_export.train.losses import dice
from barnsight_export.train.sequences import Sequence, Sequences
from barnsight_export.train.trainer import CPU, Budget, Recipe, Trainer, in_force, quiet_worker, read_checkpoint, train

_MASK, _DICE, _IOU, _PRESENCE = 5.0, 5.0, 1.0, 1.0
_LAYER_SCALE = 0.1  # of the memory fuser at the start: the stock 1e-6 is for long training
_DETECTED_LOGIT = 8.0


@dataclass(frozen=True, slots=True)
class TrackerRecipe(Recipe):
    """How a tracker is trained; `batch` counts sequences.

    `frames` says from which share of the budget on how many of a sequence's frames are followed. Small pictures come
    first: memory attention takes time with the fourth power of a picture's side. On
    `detected_share` of the frames an animal's memory is of its true mask; `pointer_share` of the pointers are kept.
    """

    sizes: tuple[tuple[float, int], ...] = ((0.0, 192), (0.6, 352))
    frames: tuple[tuple[float, int], ...] = ((0.0, 2), (0.15, 3), (0.3, 5), (0.6, 4), (0.9, 8))
    animals: int = 6
    detected_share: float = 0.3
    pointer_share: float = 0.6
    validation_sequences: int = 16

    def length(self, progress: float) -> int:
        """Frames of a sequence at `progress` in 0..1."""
        return in_force(self.frames, progress)


RECIPES = {
    "nano": TrackerRecipe(batch=4, learning_rate=1e-3, warmup_steps=100, constant_share=0.4, ema=0.995),
    # For a GPU: many sequences at once, at the size that is shipped.
    "nano-large-batch": TrackerRecipe(
        batch=16,
        learning_rate=1e-3,
        warmup_steps=100,
        constant_share=0.4,
        ema=0.995,
        sizes=(),
        frames=((0.0, 4), (0.3, 8)),
        validate_every_s=100.0,
    ),
}

Batch = list[Sequence]


class NeckedTracker(nn.Module):
    """What is trained and exported: the tracker, and its neck over a student."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        if preset.tracker is None:
            raise ExportUsageError(f"preset {preset.name!r} has no tracker to train; choose nano")
        self.neck = TrackerNeck(preset.tracker.width)
        self.tracker = Tracker(preset.tracker)
        nn.init.trunc_normal_(self.tracker.memory_temporal_positional_encoding, std=0.02)
        for layer in self.tracker.memory_encoder.memory_fuser.layers:
            nn.init.constant_(layer.scale, _LAYER_SCALE)


class Memory(NamedTuple):
    """What is remembered of N animals on one frame."""

    frame: int
    mem: Tensor  # (N, cells, D)
    ptr: Tensor  # (N, C)
    pointed: Tensor  # (N,) bool, whose pointer is kept


class Maps(NamedTuple):
    """What the tracker reads of one frame, of as many sequences or animals as there are."""

    t4: Tensor  # (·, C/8, 4h, 4w)
    t2: Tensor  # (·, C/4, 2h, 2w)
    t1: Tensor  # (·, C, h, w)


class Followed(NamedTuple):
    """What the tracker says of N animals on one frame."""

    masks: Tensor  # (N, 3, h, w) logits
    ious: Tensor  # (N, 3)
    obj: Tensor  # (N,) logit
    best: Tensor  # (N,) which candidate it believes in


class Follower:
    """The tracker's networks in the order of a session; maps are those of one frame, or of each animal's own."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        device = tracker.no_memory_embedding.device
        self.attention, self.decoder = MemoryAttention(tracker).to(device), MaskDecoder(tracker).to(device)
        self.encoder, self.prompt = MemoryEncoder(tracker).to(device), PromptDecoder(tracker).to(device)

    def begin(self, t1: Tensor, masks: Tensor) -> Memory:
        """Remember N animals for certain, by their masks (N, h, w) in 0..1."""
        logits = torch.where(masks > 0.5, CERTAIN, -CERTAIN)[:, None]
        present = torch.ones(len(masks), 1, device=masks.device)
        return Memory(0, self.encoder(t1, logits, present), self.prompt(t1, logits), present[:, 0] > 0)

    def look(self, frame: int, maps: Maps, memories: list[Memory]) -> tuple[Followed, Tensor]:
        """Find the animals on a frame by their memories, the first of which is certain; and their pointers (N, C)."""
        t4, t2, t1 = maps
        reach = self.tracker.config.memories - 1
        recent = [memory for memory in memories[1:] if frame - memory.frame <= reach]
        rows = [0, *(frame - memory.frame for memory in recent)]
        ages = torch.tensor([frame - memory.frame for memory in memories], device=t1.device)
        mem = torch.cat([memory.mem for memory in (memories[0], *recent)], dim=1)
        ptr = self.tracker.pointer_tokens(torch.stack([memory.ptr for memory in memories], dim=1))  # (N, P, D)
        ptrpos = self.tracker.pointer_positions(ages).expand(len(ptr), -1, -1)
        unpointed = ~torch.stack([memory.pointed for memory in memories], dim=1)  # (N, K)
        masked = MASKED * unpointed.repeat_interleave(self.tracker.config.tokens_per_pointer, dim=1)  # (N, P)
        bias = F.pad(masked, (mem.shape[1], 0))[:, None]
        pix = self.attention(t1, mem, self.tracker.memory_positions()[rows], ptr, ptrpos, bias)
        found = self.decoder.propose(pix, t4, t2)
        best = found.ious.argmax(1)
        chosen = found.ptr[torch.arange(len(best), device=best.device), best]
        pointer = torch.where(found.obj > 0, chosen, self.tracker.no_object_pointer)
        return Followed(found.masks, found.ious, found.obj[:, 0], best), pointer

    def remember(
        self, frame: int, t1: Tensor, logits: Tensor, obj: Tensor, pointers: Tensor, pointed: Tensor
    ) -> Memory:
        """The memory of a frame: masks (N, h, w) and presence (N,) as logits, pointers (N, C) where `pointed` (N,)."""
        return Memory(frame, self.encoder(t1, logits[:, None], obj[:, None]), pointers, pointed)


class TrackerTrainer(Trainer[Batch]):
    """A run that trains a preset's tracker over `student`, which gives the detector's maps and stays as it is."""

    model: NeckedTracker
    average: NeckedTracker
    recipe: TrackerRecipe

    def __init__(
        self, preset: Preset, recipe: TrackerRecipe, student: nn.Module, out: Path, device: torch.device = CPU
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.preset = preset
        self.student = student.to(device).eval().requires_grad_(False)
        super().__init__(f"{preset.name}-tracker", NeckedTracker(preset), nn.Module(), recipe, out, device)
        self._followers: dict[tuple[bool, tuple[int, int]], Follower] = {}

    def follower(self, model: NeckedTracker, size: tuple[int, int]) -> Follower:
        """The network or its average in the order of a session, for pictures of `size` (height, width) in pixels."""
        tracker = model.tracker
        key = (model is self.average, size)
        grid = size[0] // tracker.config.patch, size[1] // tracker.config.patch
        if key not in self._followers:
            self._followers[key] = Follower(tracker if grid == tracker.config.grid else tracker.at_grid(grid))
        return self._followers[key]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See `Trainer.loss`: means over the animals of all sequences, which are followed side by side."""
        images = torch.stack([sequence.images for sequence in batch]).to(self.device)  # (S, T, h, w, 3)
        masks = torch.cat([sequence.masks for sequence in batch], dim=1).to(self.device)
        present = torch.cat([sequence.present for sequence in batch], dim=1).to(self.device)  # (T, N)
        truth = masks.float() / 255  # (T, N, h, w)
        herds = torch.tensor([sequence.masks.shape[1] for sequence in batch])
        owner = torch.arange(len(batch)).repeat_interleave(herds).to(self.device)  # (N,) whose sequence
        sums: dict[str, Tensor] = {}
        frames = [Maps(*(level[owner] for level in maps)) for maps in self.maps(self.model, images)]
        follower = self.follower(self.model, (images.shape[2], images.shape[3]))
        memories = [follower.begin(frames[0].t1, truth[0])]
        for number, maps in enumerate(frames[1:], start=1):
            found, pointers = follower.look(number, maps, memories)
            for name, value in following_losses(found, truth[number], present[number]).items():
                sums[name] = sums.get(name, 0.0) + value / (len(frames) - 1)
            logits, obj, kept = self._as_remembered(found, truth[number], present[number])
            memories.append(follower.remember(number, maps.t1, logits, obj, pointers, kept))
        return torch.stack(list(sums.values())).sum(), {name: value.item() for name, value in sums.items()}

    def maps(self, model: NeckedTracker, images: Tensor) -> list[Maps]:
        """The maps of S sequences, frame by frame: (S, T, h, w, 3) -> T of (S, ...)."""
        with torch.no_grad():
            found = self.student(normalize(images.flatten(0, 1)))
        levels = [level.unflatten(0, images.shape[:2]) for level in model.neck(*found[:3])]
        return [Maps(*(level[:, frame] for level in levels)) for frame in range(images.shape[1])]

    def _as_remembered(self, found: Followed, truth: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a session would remember of the frame: the tracker's answer, or here and there a detection.

        Masks as logits (N, h, w), presence as logits (N,), and whose pointers are kept (N,).
        """
        animals = torch.arange(len(truth), device=truth.device)
        own = found.masks[animals, found.best].detach()
        detected = (torch.rand(len(truth), 1, 1).to(truth.device) < self.recipe.detected_share) & present[:, None, None]
        logits = torch.where(detected, _DETECTED_LOGIT * (2 * truth - 1), own)
        obj = torch.where(detected[:, 0, 0], 1.0, found.obj.detach())
        logits = torch.where(obj[:, None, None] > 0, logits, -1024.0)
        return logits, obj, torch.rand(len(truth)).to(truth.device) < self.recipe.pointer_share


def following_losses(found: Followed, truth: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Losses of one frame: masks (N, h, w) in 0..1 of those `present` (N,), and who is present."""
    losses = {"presence": _PRESENCE * F.binary_cross_entropy_with_logits(found.obj, present.float())}
    if not present.any():
        return losses
    logits, ious = found.masks[present], found.ious[present]  # (P, 3, h, w), (P, 3)
    wanted = truth[present, None].expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))  # (P, 3)
    dices = dice(logits.flatten(0, 1).flatten(1), wanted.flatten(0, 1).flatten(1)).view_as(bce)
    best = (_MASK * bce + _DICE * dices).argmin(1, keepdim=True)
    overlap = mask_overlap(logits.detach() > 0, wanted > 0.5)
    return {
        **losses,
        "mask": _MASK * bce.gather(1, best).mean(),
        "dice": _DICE * dices.gather(1, best).mean(),
        "iou": _IOU * (ious - overlap).abs().mean(),
    }


def mask_overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks (..., h, w) bool, 0 where both are empty: (...)."""
    shared = (a & b).sum((-2, -1))
    return shared / (a | b).sum((-2, -1)).clamp(min=1)


@torch.no_grad()
def validate_tracker(trainer: TrackerTrainer, sequences: Sequences, frames: int) -> dict[str, float]:
    """How well the averaged tracker follows animals from their first mask on, by its own answers alone.

    `mean_iou` is over frames on which the animal is there, `last_iou` over the last frame, `presence_accuracy` the
    share of frames on which the tracker knows whether it is.
    """
    overlaps, last, right = [], [], []
    for position in range(min(trainer.recipe.validation_sequences, len(sequences))):
        images, masks, present = (value.to(trainer.device) for value in sequences[(position, frames)])
        truth = masks > 127
        maps = trainer.maps(trainer.average, images[None])
        follower = trainer.follower(trainer.average, (images.shape[1], images.shape[2]))
        memories = [follower.begin(maps[0].t1, truth[0].float())]
        for frame in range(1, len(images)):
            found, pointers = follower.look(frame, maps[frame], memories)
            own = found.masks[torch.arange(len(found.best), device=images.device), found.best]
            own = torch.where(found.obj[:, None, None] > 0, own, -1024.0)
            iou = mask_overlap(own > 0, truth[frame])[present[frame]]
            overlaps += iou.tolist()
            last += iou.tolist() if frame == len(images) - 1 else []
            right += ((found.obj > 0) == present[frame]).tolist()
            everyone = torch.ones_like(present[frame])
            memories.append(follower.remember(frame, maps[frame].t1, own, found.obj, pointers, everyone))
    figures = {"mean_iou": overlaps, "last_iou": last, "presence_accuracy": right}
    return {name: sum(values) / max(1, len(values)) for name, values in figures.items()}


class _Positions(Sampler[list[tuple[int, int]]]):
    """One process's share of the stream, batch by batch, from a position on."""

    def __init__(self, start: int, share: int, stride: int, frames: int) -> None:
        self.start, self.share, self.stride, self.frames = start, share, stride, frames

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in itertools.count(self.start, self.stride):
            yield [(first + offset, self.frames) for offset in range(self.share)]


def train_tracker(
    trainer: TrackerTrainer,
    budget: Budget,
    open_sequences: Callable[[str, tuple[int, int]], Sequences],
    *,
    workers: int = 1,
    show_progress: bool = True,
) -> None:
    """Run `trainer` until its budget is spent.

    `open_sequences("train", (height, width))` and `("val", ...)` open the splits, at that size in pixels.
    Raises DataError where stored sequences are shorter than the recipe's.
    """
    recipe, counters, preset = trainer.recipe, trainer.counters, trainer.preset
    share = recipe.batch // trainer.processes
    validation = open_sequences("val", preset.image_size)
    for sequences in (open_sequences("train", preset.image_size), validation):
        sequences.require(max(frames for _, frames in recipe.frames))

    def stage(progress: float) -> tuple[int, tuple[int, int]]:
        return recipe.length(progress), recipe.image_size(progress, preset)

    def batches() -> Iterable[Any]:
        frames, size = stage(budget.progress(counters.images, counters.elapsed_s))
        positions = _Positions(counters.images + trainer.rank * share, share, recipe.batch, frames)
        return DataLoader(
            open_sequences("train", size), batch_sampler=positions, collate_fn=list, num_workers=workers,
            worker_init_fn=quiet_worker,
        )  # fmt: skip

    def score() -> Mapping[str, float]:
        return validate_tracker(trainer, validation, frames=recipe.frames[-1][1])

    train(trainer, budget, batches, score, stage=stage, show_progress=show_progress)


def load_tracker(source: Path, preset: Preset) -> NeckedTracker:
    """The averaged tracker of a run's checkpoint, or that of a model set's folder.

    Raises DataMissingError where there is none, DataError where it is of another shape.
    """
    model = NeckedTracker(preset)
    if source.is_dir():
        from barnsight_export.onnx.weights import read_tracker

        weights = read_tracker(source, preset)
    else:
        weights = read_checkpoint(source).get("average", {})
    load(source, model, weights)
    return model.eval()
