"""Train the encoder and SAM 3's detector together, from nothing, on pictures of simulated barns.

barnsight-export train detector --recipe nano --data pictures --out runs/nano --minutes 70
torchrun --nproc-per-node 2 -m barnsight_export train detector ...    # the same, one process a core
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from barnsight_export.checkpoints import load
from barnsight_export.networks.sam3 import Sam3, normalize
from barnsight_export.presets import Preset
from barnsight_export.train.losses import Aids, detection_loss
from barnsight_export.train.samples import Batch, Pictures, Stream, Views, collate
from barnsight_export.train.trainer import (
    CPU,
    Budget,
    Recipe,
    Trainer,
    quiet_worker,
    read_checkpoint,
    read_networks,
    train,
)
from barnsight_export.train.validation import validate


@dataclass(frozen=True, slots=True)
class DetectorRecipe(Recipe):
    """How a detector is trained."""

    sizes: tuple[tuple[float, int], ...] = ((0.0, 192), (0.35, 256), (0.70, 352))
    most_animals: int = 12  # losses count by animal: with more in a picture, piles of tiny ones would drown the rest
    validation_pictures: int = 120


RECIPES = {
    "nano": DetectorRecipe(),
    # To go on from a finished run (`--init`): crowds, and sooner at the size that is shipped.
    "nano-crowds": DetectorRecipe(
        learning_rate=6e-4,
        warmup_steps=200,
        constant_share=0.3,
        sizes=((0.0, 256), (0.5, 352)),
        most_animals=20,
    ),
    # To go on once more, at the size that is shipped throughout.
    "nano-full-size": DetectorRecipe(
        learning_rate=5e-4, warmup_steps=200, constant_share=0.3, sizes=(), most_animals=20
    ),
    # For a GPU, which a batch of 12 leaves idle: as nano-full-size, with as few steps as a few minutes hold.
    "nano-large-batch": DetectorRecipe(batch=48, learning_rate=8e-4, sizes=(), most_animals=25, validate_every_s=100.0),
    # For a GPU: the nano set's teacher, seven times as large, at the size that is shipped throughout.
    "nano-teacher": DetectorRecipe(batch=32, learning_rate=8e-4, sizes=(), most_animals=20, validate_every_s=100.0),
    # To tune pretrained heads on a distilled student, at the preset's own size.
    "heads": DetectorRecipe(
        batch=4,
        optimizer="adamw",
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        warmup_steps=200,
        constant_share=0.3,
        sizes=(),
        most_animals=30,
    ),
}


class DetectorTrainer(Trainer[Batch]):
    """A run that trains a preset's encoder and detector."""

    model: Sam3
    average: Sam3
    aids: Aids
    recipe: DetectorRecipe

    def __init__(self, preset: Preset, recipe: DetectorRecipe, out: Path, device: torch.device = CPU) -> None:
        torch.manual_seed(recipe.seed)
        self.preset = preset
        model = preset.build()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its overloads
        super().__init__(preset.name, model, Aids(preset.detector), recipe, out, device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See `Trainer.loss`."""
        batch = batch.to(self.device)
        return detection_loss(self.model, self.aids, normalize(batch.images), batch)

    def image_size(self, progress: float) -> tuple[int, int]:
        """Height and width of the training pictures at `progress` in 0..1."""
        return self.recipe.image_size(progress, self.preset)

    def start_from(self, source: Path) -> None:
        """Take other networks as a start: the averaged ones of a run's checkpoint, or those of a model set's folder.

        A checkpoint gives its training aids too.
        Raises DataMissingError where there are none, DataError where they are of another shape.
        """
        state = read_networks(source, self.preset)
        for model in (self.model, self.average):
            load(source, model, state["average"])
        if "aids" in state:
            load(source, self.aids, state["aids"])

    def start_heads(self, source: Path) -> None:
        """Take everything but the encoder from the averaged networks of a checkpoint, whatever its encoder is.

        Its training aids come too. Raises as `load_heads` does.
        """
        for model in (self.model, self.average):
            load_heads(source, model)
        load(source, self.aids, read_checkpoint(source).get("aids", {}))


def train_detector(
    trainer: DetectorTrainer,
    budget: Budget,
    open_pictures: Callable[[str], Pictures],
    *,
    workers: int = 1,
    show_progress: bool = True,
) -> None:
    """Run `trainer` until its budget is spent.

    `open_pictures("train")` and `open_pictures("val")` open the splits; the training split is opened anew whenever the
    picture size changes and after each validation, so it may grow meanwhile.
    """
    validation = open_pictures("val")

    def progress() -> float:
        return budget.progress(trainer.counters.images, trainer.counters.elapsed_s)

    def batches() -> Iterable[Batch]:
        return _loader(trainer, open_pictures("train"), trainer.image_size(progress()), workers)

    def score() -> Mapping[str, float]:
        found = validate(trainer.average, validation, trainer.preset.image_size, trainer.recipe.validation_pictures)
        return {"size_px": round(math.sqrt(math.prod(trainer.image_size(progress())))), **asdict(found)}

    train(trainer, budget, batches, score, stage=trainer.image_size, show_progress=show_progress)


def _loader(trainer: DetectorTrainer, pictures: Pictures, size: tuple[int, int], workers: int) -> DataLoader[Any]:
    """This process's share of the stream, prepared by workers of its own."""
    recipe = trainer.recipe
    share = recipe.batch // trainer.processes
    views = Views(pictures, len(trainer.model.concept_names), recipe.seed)
    stream = Stream(trainer.counters.images + trainer.rank * share, share, size, recipe.batch)
    return DataLoader(
        views,
        batch_sampler=stream,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=trainer.device.type == "cuda",
        worker_init_fn=quiet_worker,
    )


def load_trained(path: Path, preset: Preset) -> Sam3:
    """The averaged network of a checkpoint, or that of a model set's folder, ready for inference.

    Raises DataMissingError where there is none, DataError where it is damaged or of another preset.
    """
    model = preset.build()
    load(path, model, read_networks(path, preset)["average"])
    return model.eval()


def load_heads(path: Path, model: Sam3) -> None:
    """Give `model` all but the encoder of a checkpoint's averaged network, whose encoder may be another.

    Raises DataMissingError where there is no checkpoint, DataError where it is not a detector's or of other sizes.
    """
    average = read_checkpoint(path).get("average", {})
    heads = {name: value for name, value in average.items() if not name.startswith("encoder.")}
    load(path, model, heads, only=("detector.", "concepts"))
