"""Train a student to give its teacher's feature maps (Yang and Hostens 2026, arXiv:2604.27128).

    barnsight-export distill --data clips --format videos --student nano --teacher teacher.pt --out runs/student
    torchrun --nproc-per-node 2 -m barnsight_export distill ...    # the same, one process a device or core

A checkpoint holds everything, and nothing random is carried from step to step: each step seeds its generator from the
recipe's seed and the step's number. A run that was stopped in mid-epoch therefore goes on to the very same student.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from barnsight_export.datasets.frames import Frames
from barnsight_export.distill.augment import Augmentation, flip, view
from barnsight_export.distill.cache import CachedTeacher, FeatureCache
from barnsight_export.distill.frames import Shown, Shuffled, Squares, as_input, batch_count, stack
from barnsight_export.distill.journal import Board, Row, write_log
from barnsight_export.distill.losses import (
    FOUR_TERMS,
    Weights,
    attention_loss,
    intermediate_loss,
    level_terms,
    weighted_sum,
)
from barnsight_export.distill.schedule import FADE_ENDS, Schedule, weights_at
from barnsight_export.distill.teacher import Network, Teacher
from barnsight_export.errors import DataError, DataMissingError, ExportError, ExportUsageError
from barnsight_export.files import write_whole
from barnsight_export.train.trainer import CHECKPOINT, Counters, quiet_worker, read_checkpoint, seed_step

STUDENT = "student.safetensors"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is distilled; the defaults are the paper's."""

    batch: int = 4  # over all processes
    epochs: int = 100  # at most
    patience: int = 15  # epochs without a better validation
    backbone_rate: float = 1e-4
    new_rate: float = 3e-4
    weight_decay: float = 1e-4
    first_cycle_epochs: int = 15
    cycle_growth: int = 2
    least_rate: float = 1e-6
    clip: float = 1.0
    ema: float = 0.9995
    weights: Weights = field(default_factory=Weights)
    schedule: Schedule = "fixed"
    augmentation: Augmentation = field(default_factory=Augmentation)
    backbone: str = "trunk."  # parameters of the student's module under this name are pretrained
    seed: int = 0
    checkpoint_every_s: float = 180.0


@dataclass(frozen=True, slots=True)
class Match:
    """What is compared: output maps by name with their weights, and pairs of inner maps, student's to teacher's."""

    levels: Mapping[str, float]
    pairs: Mapping[str, str] = field(default_factory=dict)

    def teacher_maps(self) -> tuple[str, ...]:
        """Names of the teacher's maps that are needed."""
        return tuple(dict.fromkeys([*self.levels, *self.pairs.values()]))


@dataclass(slots=True)
class Progress(Counters):
    """How far a run has come: whole epochs, batches of the current one, and the best validation so far."""

    epoch: int = 0
    batch: int = 0
    best: float = math.inf
    stale_epochs: int = 0


class Pupil(nn.Module):
    """The student with a 1x1 regressor for each inner map that is matched (FitNets): pictures to maps."""

    def __init__(self, student: Network, regressors: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.student = student
        self.regressors = nn.ModuleDict(
            {name.replace(".", "_"): nn.Conv2d(inputs, outputs, 1) for name, (inputs, outputs) in regressors.items()}
        )

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The student's maps, and its matched inner maps at the teacher's width."""
        maps: dict[str, Tensor] = self.student(images)
        return maps, {name: self.regressors[name.replace(".", "_")](maps[name]) for name in self._matched(maps)}

    def _matched(self, maps: Mapping[str, Tensor]) -> list[str]:
        return [name for name in maps if name.replace(".", "_") in self.regressors]


class Distillation:
    """A run in a folder: student, moving average, optimizer, progress, checkpoint, log.

    `size_px` is the side at which frames are kept; student and teacher resize from there. Raises ExportUsageError where
    student and teacher do not fit.
    """

    def __init__(
        self,
        student: Network,
        teacher: Teacher,
        match: Match,
        recipe: Recipe,
        out: Path,
        *,
        size_px: int,
        device: torch.device | str = "cpu",
        cache: FeatureCache | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.match, self.recipe, self.out, self.size_px = match, recipe, out, size_px
        self.device = torch.device(device)
        self.teacher = CachedTeacher(teacher, cache, match.teacher_maps())
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if recipe.batch % self.processes:
            raise ExportUsageError(f"a batch of {recipe.batch} does not divide among {self.processes} processes")
        regressors = _fit(student.to(self.device), teacher, match, recipe, size_px, self.device)
        self.pupil = Pupil(student, regressors).to(self.device)
        self.average = AveragedModel(student, multi_avg_fn=_follow(recipe.ema))
        self.average.eval().requires_grad_(False)
        self.optimizer = _optimizer(self.pupil, recipe)
        self.rate = CosineAnnealingWarmRestarts(
            self.optimizer, recipe.first_cycle_epochs, recipe.cycle_growth, recipe.least_rate
        )
        self.autocast = fast_half(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast == torch.float16)
        self.progress = Progress()
        self.sums: dict[str, float] = {}  # of the losses of the current epoch
        self.rows: list[Row] = []
        self.network: nn.Module = self.pupil
        if self.processes > 1:
            unused = set(match.levels) != set(student.outputs)
            self.network = DistributedDataParallel(self.pupil, find_unused_parameters=unused)

    @property
    def finished(self) -> bool:
        """Whether the epochs are spent, or validation has not become better for `patience` epochs."""
        return self.progress.epoch >= self.recipe.epochs or self.progress.stale_epochs >= self.recipe.patience

    def loader(self, frames: Frames, workers: int) -> DataLoader[Any]:
        """This process's share of what is left of the current epoch."""
        recipe, done = self.recipe, self.progress
        order = Shuffled(len(frames), recipe.batch, recipe.seed, done.epoch, done.batch, self.rank, self.processes)
        squares = Squares(frames, self.size_px, recipe.augmentation, recipe.seed)
        return DataLoader(
            squares,
            batch_sampler=order,
            collate_fn=stack,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=quiet_worker,
        )

    def step(self, shown: Shown, share: float) -> dict[str, float]:
        """One update on one batch, when a `share` of the longest run has passed; returns the losses."""
        seed_step(self.recipe.seed, self.progress.steps, self.rank)
        self.network.train()
        weights = weights_at(self.recipe.schedule, self.recipe.weights, share)
        images = as_input(shown.images.to(self.device, non_blocking=True))
        views = shown.views.to(self.device, non_blocking=True)
        taught = {name: flip(value, views) for name, value in self.teacher(images, shown.keys).items()}
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            maps, regressed = self.network(view(images, views))
        terms = self._terms(_to_float(maps), _to_float(regressed), taught)
        loss = weighted_sum(terms, weights)
        if not math.isfinite(loss.item()):
            raise ExportError(
                f"the loss became {loss.item()} at step {self.progress.steps}:"
                " begin another run with a lower --rate, or check the student's checkpoint"
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.pupil.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.pupil.student)
        losses = {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}}
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.progress.steps += 1
        self.progress.batch += 1
        self.progress.images += self.recipe.batch
        return losses

    def end_epoch(self, validation: Frames, batches: int) -> Row:
        """Validate the averaged student, keep it if it is the best, log, lower the rate, begin the next epoch.

        Validation weighs the terms as the schedule's end does, so its figures compare over epochs. Patience begins when
        the schedule has reached its end.
        """
        done, recipe = self.progress, self.recipe
        found = self.validate(validation)
        if found["loss"] < done.best:
            done.best, done.stale_epochs = found["loss"], 0
            self._keep_student(found["loss"])
        elif recipe.schedule == "fixed" or done.epoch + 1 > FADE_ENDS * recipe.epochs:
            done.stale_epochs += 1
        rates = {f"rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups if group["params"]}
        row: Row = {
            "epoch": done.epoch,
            "images": done.images,
            "minutes": done.elapsed_s / 60,
            **{name: rate for name, rate in rates.items() if not name.endswith("_affine")},
            **{name: total / batches for name, total in self.sums.items()},
            **{f"val_{name}": value for name, value in found.items()},
        }
        self.rows.append(row)
        self.rate.step()
        done.epoch, done.batch, self.sums = done.epoch + 1, 0, {}
        if self.rank == 0:
            write_log(self.out, self.rows)
        self.save()
        return row

    @torch.no_grad()
    def validate(self, frames: Frames) -> dict[str, float]:
        """Means of the terms over frames as they are, for the averaged student; each process judges a share."""
        squares = Squares(frames, self.size_px, None, self.recipe.seed)
        student = self.average.module
        totals = torch.zeros(len(FOUR_TERMS), dtype=torch.float64, device=self.device)
        for index in range(self.rank, len(frames), self.processes):
            shown = stack([squares[(index, 0, index)]])
            images = as_input(shown.images.to(self.device))
            with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
                maps = student(images)
            terms = level_terms(_to_float(maps), self.teacher(images, shown.keys), self.match.levels)
            totals += torch.stack([terms[name] for name in FOUR_TERMS])
        if self.processes > 1:
            dist.all_reduce(totals)
        means = dict(zip(FOUR_TERMS, (totals / len(frames)).cpu(), strict=True))
        loss = weighted_sum(means, self.recipe.weights)
        return {"loss": loss.item(), **{name: value.item() for name, value in means.items()}}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; the first process does."""
        if self.rank:
            return
        state = {
            "recipe": self._options(),
            "teacher": self.teacher.teacher.key,
            "pupil": self.pupil.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "sums": self.sums,
            "rows": self.rows,
        }
        advice = "free some space, then go on with --resume: the checkpoint before it stands"
        write_whole(self.out / CHECKPOINT, lambda file: torch.save(state, file), advice)

    def resume(self) -> None:
        """Take up the run that stands in the folder.

        Raises DataMissingError where there is none, ExportUsageError where it was begun with another recipe or teacher.
        """
        path = self.out / CHECKPOINT
        state = read_checkpoint(path)
        if "pupil" not in state:
            raise DataError(f"{path}: is no checkpoint of a distillation; choose another folder")
        was, now = state["recipe"], self._options()
        changed = [name for name in now if was.get(name) != now[name]]
        if changed:
            raise ExportUsageError(
                f"{path}: begun with {changed[0]} {was.get(changed[0])}, now it is {now[changed[0]]}:"
                " resume with the same options, or choose another folder"
            )
        if state["teacher"] != self.teacher.teacher.key:
            raise ExportUsageError(
                f"{path}: begun with another teacher; resume with the same, or choose another folder"
            )
        self.pupil.load_state_dict(state["pupil"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.sums, self.rows = state["sums"], state["rows"]

    def _options(self) -> dict[str, Any]:
        """What a resumed run must share with the one that stood."""
        options = {**asdict(self.recipe), **asdict(self.match), "size_px": self.size_px}
        del options["checkpoint_every_s"]
        return options

    def _terms(
        self, maps: dict[str, Tensor], regressed: dict[str, Tensor], taught: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        terms = level_terms(maps, taught, self.match.levels)
        pairs = self.match.pairs
        if self.recipe.weights.attention:
            # without pairs of inner maps, attention is transferred on the outputs
            named = pairs or {name: name for name in self.match.levels}
            terms["attention"] = torch.stack([attention_loss(maps[s], taught[t]) for s, t in named.items()]).mean()
        if self.recipe.weights.intermediate:
            matched = [intermediate_loss(regressed[s], taught[t]) for s, t in pairs.items()]
            terms["intermediate"] = torch.stack(matched).mean()
        return terms

    def _keep_student(self, loss: float) -> None:
        if self.rank:
            return
        average = self.average.module.get_submodule("module")
        weights = {name: value.cpu().contiguous() for name, value in average.state_dict().items()}
        about = {"validation_loss": f"{loss:.6g}", "epoch": str(self.progress.epoch), "format": "pt"}
        data = safetensors.torch.save(weights, about)
        advice = "free some space, then go on with --resume"
        write_whole(self.out / STUDENT, lambda file: file.write(data), advice)


def distill(
    run: Distillation, train: Frames, validation: Frames, *, workers: int = 0, show_progress: bool = True
) -> None:
    """Run until the epochs are spent or validation has not become better for `patience` epochs.

    The best averaged student of the run stands in `student.safetensors`. Where several processes train together
    (`torch.distributed`), the first one saves and logs. Raises DataMissingError where there are no frames, ExportError
    where the loss is no number, OutputError where the disk is full.
    """
    for name, frames in (("train on", train), ("validate with", validation)):
        if not len(frames):
            raise DataMissingError(f"there are no frames to {name}; add videos")
    batches = batch_count(len(train), run.recipe.batch)
    done, first = run.progress, run.rank == 0
    board = Board(run.out, done.steps) if first else None
    while not run.finished:
        resumed_s = time.monotonic() - done.elapsed_s
        save_at_s = done.elapsed_s + run.recipe.checkpoint_every_s
        with tqdm(
            total=batches,
            initial=done.batch,
            desc=f"epoch {done.epoch}",
            unit="batch",
            disable=not (first and show_progress),
        ) as bar:
            for shown in run.loader(train, workers):
                losses = run.step(shown, done.steps / (run.recipe.epochs * batches))
                done.elapsed_s = time.monotonic() - resumed_s
                bar.update()
                bar.set_postfix(loss=f"{losses['loss']:.4f}", cos=f"{1 - losses['cosine']:.4f}")
                if board:
                    board.write(done.steps, {f"step/{name}": value for name, value in losses.items()})
                if done.elapsed_s > save_at_s and done.batch < batches:
                    save_at_s += run.recipe.checkpoint_every_s
                    run.save()
            row = run.end_epoch(validation, batches)
            if board:
                board.write(done.steps, {f"epoch/{name}": value for name, value in row.items()})
            if first and show_progress:
                found = f"validation loss {row['val_loss']:.4f}, cosine {1 - row['val_cosine']:.4f}"
                bar.write(f"epoch {row['epoch']:.0f}: {found}")
    if board:
        board.close()


def fast_half(device: torch.device) -> torch.dtype | None:
    """The half precision in which `device` is quicker than in single: bfloat16, float16, or none."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None


def _fit(
    student: Network, teacher: Teacher, match: Match, recipe: Recipe, size_px: int, device: torch.device
) -> dict[str, tuple[int, int]]:
    """Check on one black picture that student and teacher fit; returns the widths of the regressors that are needed."""
    black = torch.zeros(1, 3, size_px, size_px, device=device)
    was_training = student.training
    with torch.no_grad():
        given, taught = student.eval()(black), teacher(black)
    student.train(was_training)
    if recipe.weights.intermediate and not match.pairs:
        raise ExportUsageError(
            "intermediate matching needs pairs of inner maps: name them with --match STUDENT=TEACHER"
        )
    for who, maps, names in (
        ("student", given, [*match.levels, *match.pairs]),
        ("teacher", taught, match.teacher_maps()),
    ):
        for name in names:
            if name not in maps:
                raise ExportUsageError(f"the {who} gives no map '{name}', only {', '.join(maps)}")
    for name in match.levels:
        want, got = tuple(taught[name].shape[1:]), tuple(given[name].shape[1:])
        if want != got:
            raise ExportUsageError(
                f"map '{name}': the student gives {_shape(got)}, the teacher {_shape(want)} (channels, height, width);"
                " choose a student of the teacher's width and grid"
            )
    if not recipe.weights.intermediate:
        return {}
    return {s: (given[s].shape[1], taught[t].shape[1]) for s, t in match.pairs.items()}


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _to_float(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in maps.items()}


def _follow(decay: float) -> Callable[..., None]:
    """A moving average that forgets its start sooner while it is young."""

    def follow(slow: list[Tensor], fast: list[Tensor], count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(slow, fast, 1 - kept)

    return follow


def _optimizer(pupil: Pupil, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with the backbone at its own rate, and no decay on what only scales or shifts channels."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, affine): [] for part in ("backbone", "new") for affine in (False, True)
    }
    for name, parameter in pupil.named_parameters():
        part = "backbone" if name.startswith(f"student.module.{recipe.backbone}") else "new"
        groups[part, parameter.numel() == max(parameter.shape, default=1)].append(parameter)
    rates = {"backbone": recipe.backbone_rate, "new": recipe.new_rate}
    return torch.optim.AdamW(
        [
            {
                "name": part + ("_affine" if affine else ""),
                "params": parameters,
                "lr": rates[part],
                "weight_decay": 0.0 if affine else recipe.weight_decay,
            }
            for (part, affine), parameters in groups.items()
        ]
    )
