"""One training run in a folder, whatever it trains: optimizers, moving average, checkpoint, log, and the loop.

The whole schedule (learning rate, end, and what a network adds to it) follows one number: the share of the budget that
is spent. A checkpoint holds everything, and nothing random is carried from step to step, so a run that was stopped goes
on with `--resume` as if nothing had happened.
"""

from __future__ import annotations

import copy
import csv
import math
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from barnsight_export.checkpoints import load
from barnsight_export.errors import DataError, DataMissingError, ExportError, ExportUsageError
from barnsight_export.files import write_whole
from barnsight_export.presets import Preset
from barnsight_export.train.muon import Muon

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
CPU = torch.device("cpu")
_MATRIX_SIDE = 16  # a parameter this wide both ways is a matrix to Muon
_EMBEDDINGS = (  # in names of parameters
    *("query_embed", "reference_points", "_token.", "mask_tokens", "concepts", "_point_embed", "no_mask_embed"),
    *("positional_encoding", "no_memory", "no_object", "occlusion_spatial"),
)

Batch = TypeVar("Batch")

_PACE = ("validate_every_s", "checkpoint_every_s")  # what a resumed run may change of its recipe


def in_force(stages: tuple[tuple[float, int], ...], progress: float) -> int:
    """Of the stages (share of the budget from which on, value), of which the first begins at 0, the last begun."""
    return next(value for share, value in reversed(stages) if progress >= share)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; shares are of the budget."""

    batch: int = 12
    learning_rate: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.03
    clip: float = 1.0
    warmup_steps: int = 100
    constant_share: float = 0.4
    final_rate_share: float = 0.01
    ema: float = 0.998
    optimizer: Literal["muon", "adamw"] = "muon"
    seed: int = 0
    # From which share on how many pixels, as the side of a square; none: the preset's own size throughout.
    sizes: tuple[tuple[float, int], ...] = ()
    validate_every_s: float = 420.0
    checkpoint_every_s: float = 180.0

    def rate(self, progress: float, step: int) -> float:
        """Learning rate: warm up, hold, then fall in a line."""
        falling = max(0.0, progress - self.constant_share) / (1 - self.constant_share)
        share = 1 - (1 - self.final_rate_share) * min(1.0, falling)
        return self.learning_rate * share * min(1.0, (step + 1) / self.warmup_steps)

    def image_size(self, progress: float, preset: Preset) -> tuple[int, int]:
        """Height and width of the training pictures at `progress` in 0..1."""
        return preset.size_of(in_force(self.sizes, progress)) if self.sizes else preset.image_size


@dataclass(frozen=True, slots=True)
class Budget:
    """When training ends: after so many images or minutes of training, whichever is given."""

    unit: Literal["images", "minutes"]
    amount: float

    def progress(self, images: int, elapsed_s: float) -> float:
        """Share of the budget that is spent, 0..1."""
        spent = images if self.unit == "images" else elapsed_s / 60
        return min(1.0, spent / self.amount)


@dataclass(slots=True)
class Counters:
    """How far a run has come, over all its resumptions."""

    images: int = 0
    steps: int = 0
    elapsed_s: float = 0.0


class Trainer(ABC, Generic[Batch]):
    """A run in a folder: a network, what is trained beside it, optimizers, moving average, counters and checkpoint.

    `aids` are trained and saved, but do not count among the network: they have no average. Parameters that need no
    gradient stay as they are.
    """

    def __init__(
        self, name: str, model: nn.Module, aids: nn.Module, recipe: Recipe, out: Path, device: torch.device = CPU
    ) -> None:
        self.name, self.recipe, self.out, self.device = name, recipe, out, device
        self.model, self.aids = model.to(device), aids.to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = _optimizers([self.model, self.aids], recipe)
        self.counters = Counters()
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if recipe.batch % self.processes:
            raise ExportUsageError(f"a batch of {recipe.batch} does not divide among {self.processes} processes")

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Forward pass and total loss of a batch, with the parts for the log."""

    def step(self, batch: Batch, progress: float) -> dict[str, float]:
        """One update on one batch; returns the losses."""
        recipe = self.recipe
        seed_step(recipe.seed, self.counters.steps, self.rank)
        rate = recipe.rate(progress, self.counters.steps)
        for group in self.groups():
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_fast_bf16(self.device)):
            loss, parts = self.loss(batch)
        if not math.isfinite(loss.item()):
            raise ExportError(
                f"the loss became {loss.item()} at step {self.counters.steps}:"
                f" begin another run from {self.out / CHECKPOINT} (--init), with another seed or recipe"
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        parameters = [p for group in self.groups() for p in group["params"]]
        self._share_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow()
        self.counters.steps += 1
        self.counters.images += recipe.batch
        return {"lr": rate, "loss": loss.item(), **parts}

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of every optimizer."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _share_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # this process's share of the batch did not reach it
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.processes
        for parameter, mean in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(mean.view_as(parameter))  # in place: the gradient keeps the parameter's layout

    def agree(self, elapsed_s: float) -> float:
        """The first process's clock, for all."""
        clock = torch.tensor(elapsed_s, dtype=torch.float64, device=self.device)
        if self.processes > 1:
            dist.broadcast(clock, 0)
        return clock.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the moving average follow the network; early on it forgets its random start sooner."""
        decay = min(self.recipe.ema, (1 + self.counters.steps) / (10 + self.counters.steps))
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True))
        slow, fast = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        get_ema_multi_avg_fn(decay)(list(slow), list(fast), None)  # type: ignore[no-untyped-call]
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; the first process does."""
        if self.rank:
            return
        state = {
            "name": self.name,
            "recipe": self._options(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "aids": self.aids.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": asdict(self.counters),
        }
        advice = "free some space, then go on with --resume: the checkpoint before it stands"
        write_whole(self.out / CHECKPOINT, lambda file: torch.save(state, file), advice)

    def start_with(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of another network as a start."""
        self.model.load_state_dict(weights)
        self.average.load_state_dict(weights)

    def resume(self) -> None:
        """Take up the run that stands in the folder.

        Raises DataMissingError where there is none, DataError where it is of other networks or another recipe.
        """
        path = self.out / CHECKPOINT
        state = read_checkpoint(path)
        if state.get("name") != self.name or "optimizers" not in state:
            raise DataError(f"{path}: is no run of '{self.name}' to go on with; start from it with --init")
        was, now = state.get("recipe", {}), self._options()  # older checkpoints do not tell their recipe
        changed = next((name for name in now if was.get(name, now[name]) != now[name]), None)
        if changed:
            raise DataError(
                f"{path}: begun with {changed} {was[changed]}, now it is {now[changed]};"
                " resume with the same options, or choose another folder"
            )
        for module, part in ((self.model, "model"), (self.average, "average"), (self.aids, "aids")):
            load(path, module, state[part])
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except ValueError as error:
            raise DataError(
                f"{path}: trained other parameters ({error}); resume with the same --freeze, or choose another folder"
            ) from None
        self.counters = Counters(**state["counters"])

    def _options(self) -> dict[str, Any]:
        """What a resumed run must share with the one that stood."""
        return {name: value for name, value in asdict(self.recipe).items() if name not in _PACE}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let what a step of a process draws depend on nothing that came before."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def train(
    trainer: Trainer[Batch],
    budget: Budget,
    batches: Callable[[], Iterable[Batch]],
    validate: Callable[[], Mapping[str, float]],
    *,
    stage: Callable[[float], object] = lambda _: None,
    show_progress: bool = True,
) -> None:
    """Run `trainer` until its budget is spent.

    `batches()` opens this process's endless share of the stream where the counters stand; it is opened anew after each
    validation, and whenever `stage(progress)` changes. Where several processes train together (`torch.distributed`),
    the first one validates, saves and logs.
    """
    recipe, counters = trainer.recipe, trainer.counters
    first = trainer.rank == 0
    trainer.out.mkdir(parents=True, exist_ok=True)
    log = _Log(trainer.out / LOG)
    progress = budget.progress(counters.images, counters.elapsed_s)
    with tqdm(total=100.0, initial=100 * progress, unit="%", disable=not (first and show_progress)) as bar:
        while progress < 1.0:
            current = stage(progress)
            validate_at_s, save_at_s = (
                counters.elapsed_s + pause for pause in (recipe.validate_every_s, recipe.checkpoint_every_s)
            )
            trainer.model.train()
            resumed_s = time.monotonic() - counters.elapsed_s
            for batch in batches():
                losses = trainer.step(batch, progress)
                counters.elapsed_s = trainer.agree(time.monotonic() - resumed_s)
                progress = budget.progress(counters.images, counters.elapsed_s)
                log.add(losses)
                bar.n = 100 * progress
                bar.set_postfix(images=counters.images, loss=f"{losses['loss']:.2f}")
                if progress >= 1.0 or stage(progress) != current or counters.elapsed_s > validate_at_s:
                    break
                if counters.elapsed_s > save_at_s:
                    save_at_s += recipe.checkpoint_every_s
                    trainer.save()
            trainer.save()
            if first:
                score = validate()
                log.write(counters, score)
                figures = ", ".join(f"{name} {value:.3g}" for name, value in score.items())
                bar.write(f"{counters.elapsed_s / 60:.1f} min, {counters.images} images: {figures}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents; raises DataMissingError where there is none, DataError where the file is no such."""
    if not path.is_file():
        raise DataMissingError(f"{path}: no checkpoint there; start a run without --resume, or name its folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError):
        state = None
    if not isinstance(state, dict):
        raise DataError(f"{path}: is no checkpoint of a run, or damaged; name the checkpoint.pt of another")
    return state


def read_networks(source: Path, preset: Preset) -> dict[str, Any]:
    """A checkpoint's contents, or of a model set's folder its detector as `average`, without aids and counters.

    Raises DataMissingError where there is neither, DataError where the file is no checkpoint or the set is of another
    preset.
    """
    if not source.is_dir():
        state = read_checkpoint(source)
        if "average" not in state:
            raise DataError(f"{source}: holds no trained networks; name the checkpoint.pt of `barnsight-export train`")
        return state
    from barnsight_export.onnx.weights import read_weights

    return {"average": read_weights(source, preset)}


def average_checkpoints(paths: Sequence[Path], out: Path, preset: Preset) -> None:
    """Write a checkpoint whose networks are the mean of several runs', one of which began where another ended.

    Such a mean is often better than either (Wortsman et al. 2022, arXiv:2203.05482). It is a start for other runs and
    for `export`, and cannot be resumed: it has no optimizer. The training aids are the last run's. The folder of a
    model set of `preset` may stand for a run, but not for all of them.
    Raises DataMissingError where a checkpoint is missing, DataError where they are not of the same networks.
    """
    states = [read_networks(path, preset) for path in paths]
    first = states[0]
    last = next((state for state in reversed(states) if "aids" in state), None)
    if last is None:
        raise DataError(f"{paths[-1]}: a model set, as all the others; name the checkpoint of a run among them")
    for path, state in zip(paths, states, strict=True):
        shapes = {name: value.shape for name, value in state["average"].items()}
        if shapes != {name: value.shape for name, value in first["average"].items()}:
            raise DataError(f"{path}: is not of the same networks as {paths[0]}; average runs of one preset")
    mean = {
        name: torch.stack([state["average"][name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in first["average"].items()
    }
    made = {"name": last["name"], "average": mean, "aids": last["aids"], "counters": last["counters"]}
    write_whole(out, lambda file: torch.save(made, file), "free some space, then start again")


class _Log:
    """Means of the losses between validations, one CSV line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, losses: dict[str, float]) -> None:
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def write(self, counters: Counters, score: Mapping[str, float]) -> None:
        means = {name: value / self._count for name, value in self._sums.items()}
        head = {"minutes": counters.elapsed_s / 60, "images": counters.images}
        row = {name: f"{value:.6g}" for name, value in {**head, **score, **means}.items()}
        new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._sums, self._count = {}, 0


def _optimizers(modules: Iterable[nn.Module], recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon on matrices, where the recipe has it, AdamW on the rest; no decay on biases, norms, embeddings, prompts."""
    matrices: list[nn.Parameter] = []
    narrow: list[nn.Parameter] = []  # last layers of a few outputs, depthwise kernels; without Muon, everything
    free: list[nn.Parameter] = []
    named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
    for name, parameter in named:
        embedding = any(part in name for part in _EMBEDDINGS)
        if parameter.ndim < 2 or embedding:
            free.append(parameter)
        else:
            wide = recipe.optimizer == "muon" and min(parameter.flatten(1).shape) >= _MATRIX_SIDE
            (matrices if wide else narrow).append(parameter)
    groups = [{"params": narrow, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    if not matrices:
        return (adamw,)
    return Muon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay), adamw


def _fast_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 natively; on other CPUs autocast costs ten times what it saves."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def quiet_worker(_: int) -> None:
    """Keep a process that prepares samples to one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
