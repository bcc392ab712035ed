"""Distillation of tiny networks: teacher, cache, a run that can be stopped anywhere, two processes, pseudo-labels."""

from __future__ import annotations

import contextlib
import copy
import csv
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file
from torch import nn

from barnsight_export.distill import journal
from barnsight_export.distill.augment import Augmentation
from barnsight_export.distill.cache import CachedTeacher, FeatureCache, frame_key
from barnsight_export.distill.frames import Shuffled, Squares, stack
from barnsight_export.distill.losses import Weights
from barnsight_export.distill.teacher import FrozenTeacher, Input, Network, Tap, fingerprint
from barnsight_export.distill.train import STUDENT, Distillation, Match, Recipe, distill
from barnsight_export.errors import DataError, DataMissingError, ExportError, ExportUsageError, OutputError
from barnsight_export.train.trainer import CHECKPOINT

SIZE = 16
INPUT = Input((SIZE, SIZE))
LEVELS = {"d4": 1.0, "d2": 1.0, "d1": 1.0}
POINT_B = Match(LEVELS)
POINT_A = Match({"trunk": 1.0})
RECIPE = Recipe(batch=4, epochs=3, backbone_rate=3e-3, new_rate=1e-2, ema=0.9, checkpoint_every_s=0.0)


class Pyramid(nn.Module):
    """Maps d4, d2 and d1; `inner` is wide in a teacher and narrow in a student."""

    def __init__(self, inner: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, inner, 3, 2, 1), nn.GELU(), nn.Conv2d(inner, inner, 3, 1, 1))
        self.drop = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Conv2d(inner, 6, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.drop(self.trunk(x))
        return tuple(nn.functional.avg_pool2d(head(y), 2**k) for k, head in enumerate(self.heads))


class Tokens(nn.Module):
    """A trunk in the form of a vision transformer: tokens (B, hw, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.patch(x).flatten(2).transpose(1, 2))


class Noise:
    """A store of frames that differ."""

    def __init__(self, count: int = 10, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        small = np.random.default_rng((self.seed, index)).integers(0, 256, (4, 6, 3))
        return np.kron(small, np.ones((6, 4, 1))).astype(np.uint8)  # 24 x 24, no square of SIZE


def network(inner: int, seed: int, dropout: float = 0.0, taps: dict[str, Tap] | None = None) -> Network:
    torch.manual_seed(seed)
    return Network(Pyramid(inner, dropout), INPUT, tuple(LEVELS), taps)


def teacher(seed: int = 7, taps: dict[str, Tap] | None = None) -> FrozenTeacher:
    return FrozenTeacher(network(12, seed, taps=taps))


def new_run(
    out: Path, recipe: Recipe = RECIPE, taught_by: object = None, cache: FeatureCache | None = None
) -> Distillation:
    student = network(5, seed=1, dropout=0.2)
    return Distillation(student, taught_by or teacher(), POINT_B, recipe, out, size_px=SIZE, cache=cache)


def state_of(run: Distillation) -> dict[str, torch.Tensor]:
    return {
        **{f"pupil.{k}": v for k, v in run.pupil.state_dict().items()},
        **{f"average.{k}": v for k, v in run.average.state_dict().items()},
    }


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / journal.LOG).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


# Networks


def test_a_network_names_its_outputs_and_resizes_and_normalizes() -> None:
    seen = []
    found = network(4, 0)
    found.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    maps = found(torch.full((2, 3, 24, 24), 0.75))
    assert [(name, tuple(value.shape)) for name, value in maps.items()] == [
        ("d4", (2, 6, 8, 8)),
        ("d2", (2, 6, 4, 4)),
        ("d1", (2, 6, 2, 2)),
    ]
    torch.testing.assert_close(seen[0], torch.full((2, 3, SIZE, SIZE), 0.5))


def test_tokens_become_a_map_in_reading_order() -> None:
    trunk = Network(Tokens(8), INPUT, ["trunk"])
    images = torch.rand(1, 3, SIZE, SIZE)
    tokens = trunk.module(INPUT.prepare(images))
    assert trunk(images)["trunk"].shape == (1, 8, 4, 4)
    torch.testing.assert_close(trunk(images)["trunk"][0, :, 1, 2], tokens[0, 6])


def test_inner_layers_are_tapped_in_copies_too() -> None:
    tapped = network(4, 0, taps={"early": Tap("trunk.0")})
    copied = copy.deepcopy(tapped)
    images = torch.rand(1, 3, SIZE, SIZE)
    assert copied(images)["early"].shape == (1, 4, 8, 8)
    torch.testing.assert_close(copied(images)["early"], tapped(images)["early"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(4, 0, taps={"x": Tap("trunk.9")}), "Pyramid has no layer 'trunk.9'"),
        (
            lambda: Network(Pyramid(4), INPUT, ["trunk"])(torch.rand(1, 3, 16, 16)),
            "gives 3 outputs, named are 1: trunk",
        ),
    ],
    ids=["tap", "outputs"],
)
def test_names_that_do_not_fit_are_refused(make: object, message: str) -> None:
    with pytest.raises(ExportUsageError, match=message):
        make()  # type: ignore[operator]


def test_a_teacher_does_not_learn_and_its_key_follows_its_weights_and_input() -> None:
    first, same, other = teacher(7), teacher(7), teacher(8)
    assert first.key == same.key != other.key
    assert not first(torch.rand(1, 3, SIZE, SIZE))["d1"].requires_grad
    larger = network(12, 7)
    larger.inputs = Input((32, 32))
    assert fingerprint(larger) != first.key


# Cache


class Counting:
    """A teacher that counts the frames it was shown, and may break off."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.inner, self.calls, self.stop_after = teacher(), 0, stop_after
        self.key = self.inner.key

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += len(images)
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        return self.inner(images)


def shown(count: int = 3) -> tuple[torch.Tensor, list[str]]:
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255, [frame_key(image) for image in images]


def test_kept_features_are_those_that_were_computed(tmp_path: Path) -> None:
    counting = Counting()
    cached = CachedTeacher(counting, FeatureCache(tmp_path, 10**6))
    images, keys = shown()
    first, second = cached(images, keys), cached(images, keys)
    assert counting.calls == 3
    for name, value in teacher()(images).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=2e-3, rtol=2e-3)  # half precision


def test_without_a_cache_a_batch_is_computed_at_once_and_rounded_alike(tmp_path: Path) -> None:
    shapes = []

    class Whole(Counting):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            shapes.append(tuple(images.shape))
            return super().__call__(images)

    images, keys = shown()
    plain = CachedTeacher(Whole(), None)(images, keys)
    assert shapes == [(3, 3, SIZE, SIZE)]
    kept = CachedTeacher(teacher(), FeatureCache(tmp_path, 10**6))(images, keys)
    for name, value in plain.items():
        assert torch.equal(value, value.half().float())
        torch.testing.assert_close(value, kept[name], atol=1e-3, rtol=1e-3)  # one step of half precision


def test_what_does_not_fit_the_budget_is_computed_again(tmp_path: Path) -> None:
    images, keys = shown()
    CachedTeacher(teacher(), FeatureCache(tmp_path, 10**6))(images[:1], keys[:1])
    (entry,) = tmp_path.glob("*/*.npz")
    counting = Counting()
    cached = CachedTeacher(counting, FeatureCache(tmp_path, 3 * entry.stat().st_size))
    cached(images, keys)
    assert counting.calls == 2
    cached(images, keys)
    assert counting.calls in (3, 4)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 3 * entry.stat().st_size


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_entry_is_computed_again_and_replaced(tmp_path: Path, damage: str) -> None:
    images, keys = shown(1)
    expected = CachedTeacher(teacher(), FeatureCache(tmp_path, 10**6))(images, keys)
    (entry,) = tmp_path.glob("*/*.npz")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    entry.write_bytes({"cut": whole[:middle], "empty": b"", "flipped": flipped, "other": b"no zip" * 50}[damage])
    counting = Counting()
    found = CachedTeacher(counting, FeatureCache(tmp_path, 10**6))(images, keys)
    assert counting.calls == 1
    assert torch.equal(found["d1"], expected["d1"])
    assert entry.read_bytes() == whole


def test_another_teacher_has_entries_of_its_own(tmp_path: Path) -> None:
    images, keys = shown(1)
    for seed in (7, 8):
        CachedTeacher(teacher(seed), FeatureCache(tmp_path, 10**6))(images, keys)
    assert len(list(tmp_path.glob("*/*.npz"))) == 2


def test_features_that_half_precision_does_not_hold_are_refused() -> None:
    loud = teacher()
    with torch.no_grad():
        loud.network.module.heads[2].weight.mul_(1e8)
    with pytest.raises(DataError, match="map 'd1' reaches"):
        CachedTeacher(loud, None)(*shown(1))


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow over 1 kB: what a full disk does. Around one call only, since pytest's own log is a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_and_leaves_no_half_entry(tmp_path: Path) -> None:
    caching = CachedTeacher(teacher(), FeatureCache(tmp_path, 10**9))
    message = r"npz: File too large; free some space or lower --cache-gb.*--resume"
    with pytest.raises(OutputError, match=message), small_disk():
        caching(*shown(1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_leaves_the_checkpoint_that_stood(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.save()
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(OutputError, match="the checkpoint before it stands"), small_disk():
        run.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


# Epochs


def test_every_frame_comes_once_an_epoch_and_epochs_differ() -> None:
    orders = [[place[0] for batch in Shuffled(8, 4, 0, epoch, 0, 0, 1) for place in batch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1]


def test_processes_share_a_batch_and_see_the_same_views() -> None:
    whole = list(Shuffled(10, 4, 0, 2, 1, 0, 1))
    shares = [list(Shuffled(10, 4, 0, 2, 1, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
    assert len(whole) == len(Shuffled(10, 4, 0, 2, 1, 0, 1)) == 2  # the third batch is filled up
    squares = Squares(Noise(), SIZE, Augmentation(), seed=3)
    again = Squares(Noise(), SIZE, Augmentation(), seed=3)
    assert torch.equal(stack([squares[whole[0][0]]]).views, stack([again[whole[0][0]]]).views)


# Runs


def test_a_student_comes_nearer_to_its_teacher_and_leaves_a_log(tmp_path: Path) -> None:
    run = new_run(tmp_path, replace(RECIPE, epochs=12))
    before = run.validate(Noise(4, seed=1))
    distill(run, Noise(), Noise(4, seed=1), show_progress=False)
    after = run.validate(Noise(4, seed=1))
    assert after["cosine"] < 0.5 * before["cosine"]
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == [str(k) for k in range(12)]
    assert {"images", "rate_backbone", "rate_new", "loss", "direction", "val_loss", "val_magnitude"} <= set(rows[0])
    best = min(float(row["val_loss"]) for row in rows)
    student = network(5, seed=3)
    student.module.load_state_dict(load_file(tmp_path / STUDENT))
    assert run.progress.best == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("with_cache", [False, True], ids=["computed", "cached"])
def test_a_run_that_is_killed_in_mid_epoch_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, with_cache: bool
) -> None:
    """Bit for bit, with dropout and augmentation, whether features were kept or not."""
    kept, afresh = (FeatureCache(tmp_path / name, 10**6) if with_cache else None for name in ("features", "afresh"))
    whole = new_run(tmp_path / "whole", cache=afresh)
    distill(whole, Noise(), Noise(2, seed=1), show_progress=False)

    # The probe takes one frame, an epoch 12, validation 2: this breaks off in the second epoch's second batch, or,
    # where the cache answers, not before the first frames are all known.
    stopped = new_run(tmp_path / "stopped", taught_by=Counting(stop_after=6 if with_cache else 21), cache=kept)
    with pytest.raises(KeyboardInterrupt):
        distill(stopped, Noise(), Noise(2, seed=1), show_progress=False)
    resumed = new_run(tmp_path / "stopped", cache=kept)
    resumed.resume()
    assert resumed.progress.batch == 1
    assert resumed.progress.epoch == (0 if with_cache else 1)
    distill(resumed, Noise(), Noise(2, seed=1), show_progress=False)

    expected = state_of(whole)
    for name, value in state_of(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    best, again = load_file(tmp_path / "whole" / STUDENT), load_file(tmp_path / "stopped" / STUDENT)
    assert all(torch.equal(again[name], value) for name, value in best.items())


def test_a_run_ends_when_validation_gets_no_better(tmp_path: Path) -> None:
    run = new_run(tmp_path, replace(RECIPE, epochs=50, patience=2, backbone_rate=0.0, new_rate=0.0, least_rate=0.0))
    distill(run, Noise(4), Noise(2, seed=1), show_progress=False)
    assert run.progress.epoch == 3  # the first is the best, then two that are not better
    assert run.finished


def test_patience_waits_until_the_curriculum_is_complete(tmp_path: Path) -> None:
    still = replace(
        RECIPE, epochs=10, patience=2, backbone_rate=0.0, new_rate=0.0, least_rate=0.0, schedule="direction-then-scale"
    )
    run = new_run(tmp_path, still)
    distill(run, Noise(4), Noise(2, seed=1), show_progress=False)
    assert run.progress.epoch == 6  # scale has faded in at 4.5 of 10; then two that are not better


def test_the_backbone_has_a_rate_of_its_own_and_affine_parameters_do_not_decay(tmp_path: Path) -> None:
    run = new_run(tmp_path, Recipe())
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone": (1e-4, 1e-4),
        "backbone_affine": (1e-4, 0.0),
        "new": (3e-4, 1e-4),
        "new_affine": (3e-4, 0.0),
    }
    counts = [len(groups[name]["params"]) for name in ("backbone", "backbone_affine", "new", "new_affine")]
    assert counts == [2, 2, 3, 3]


def test_the_rate_falls_by_cosine_and_restarts(tmp_path: Path) -> None:
    run = new_run(tmp_path, replace(Recipe(), batch=4, first_cycle_epochs=2))
    batch = next(iter(run.loader(Noise(4), 0)))
    rates = []
    for _ in range(5):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.step(batch, 0.0)
        run.rate.step()
    assert rates == pytest.approx([1e-4, 5.05e-5, 1e-4, 8.55e-5, 5.05e-5], rel=1e-3)


def test_inner_maps_are_matched_where_it_is_asked_for(tmp_path: Path) -> None:
    taps = {"early": Tap("trunk.0")}
    student = network(5, 1, taps=taps)
    match = Match(LEVELS, {"early": "early"})
    recipe = replace(RECIPE, weights=Weights(attention=1.0, intermediate=1.0))
    run = Distillation(student, teacher(taps=taps), match, recipe, tmp_path, size_px=SIZE)
    assert run.pupil.regressors["early"].weight.shape == (12, 5, 1, 1)
    batch = next(iter(run.loader(Noise(4), 0)))
    losses = [run.step(batch, 0.0) for _ in range(30)]
    assert losses[-1]["intermediate"] < 0.7 * losses[0]["intermediate"]
    assert losses[-1]["attention"] < losses[0]["attention"]
    assert "attention" not in new_run(tmp_path).step(batch, 0.0)


def test_a_trunk_is_distilled_in_the_papers_units(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, master = (Network(Tokens(8), INPUT, ["trunk"]) for _ in range(2))
    run = Distillation(student, FrozenTeacher(master), POINT_A, RECIPE, tmp_path, size_px=SIZE)
    batch = next(iter(run.loader(Noise(4), 0)))
    losses = run.step(batch, 0.0)
    parts = sum(w * losses[k] for k, w in {"direction": 1, "cosine": 0.5, "scale": 0.3, "magnitude": 0.1}.items())
    assert losses["loss"] == pytest.approx(parts, rel=1e-5)
    assert losses["direction"] == pytest.approx(2 / 8 * losses["cosine"], rel=1e-4)


@pytest.mark.parametrize(
    ("match", "weights", "message"),
    [
        (Match({"d8": 1.0}), Weights(), "the student gives no map 'd8', only d4, d2, d1"),
        (Match(LEVELS, {"d4": "early"}), Weights(attention=1.0), "the teacher gives no map 'early'"),
        (POINT_B, Weights(intermediate=1.0), "needs pairs of inner maps"),
    ],
    ids=["level", "pair", "no pairs"],
)
def test_what_does_not_fit_is_refused_before_training(
    tmp_path: Path, match: Match, weights: Weights, message: str
) -> None:
    with pytest.raises(ExportUsageError, match=message):
        Distillation(network(5, 1), teacher(), match, replace(RECIPE, weights=weights), tmp_path, size_px=SIZE)


def test_a_student_of_another_width_is_refused(tmp_path: Path) -> None:
    wide = Network(Tokens(9), INPUT, ["trunk"])
    master = FrozenTeacher(Network(Tokens(8), INPUT, ["trunk"]))
    with pytest.raises(ExportUsageError, match="the student gives 9 x 4 x 4, the teacher 8 x 4 x 4"):
        Distillation(wide, master, POINT_A, RECIPE, tmp_path, size_px=SIZE)


def test_a_run_is_resumed_with_its_own_recipe_and_teacher_only(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"checkpoint\.pt: no checkpoint there"):
        new_run(tmp_path).resume()
    new_run(tmp_path).save()
    with pytest.raises(ExportUsageError, match="begun with schedule fixed, now it is direction-then-scale"):
        new_run(tmp_path, replace(RECIPE, schedule="direction-then-scale")).resume()
    with pytest.raises(ExportUsageError, match="begun with another teacher"):
        new_run(tmp_path, taught_by=teacher(8)).resume()
    torch.save({"model": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(DataError, match="is no checkpoint of a distillation"):
        new_run(tmp_path).resume()


def test_no_frames_and_a_loss_that_is_no_number_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="no frames to train on"):
        distill(new_run(tmp_path), Noise(0), Noise(2), show_progress=False)
    run = new_run(tmp_path)
    with torch.no_grad():
        run.pupil.student.module.heads[0].weight.fill_(float("nan"))
    with pytest.raises(ExportError, match="the loss became nan at step 0"):
        distill(run, Noise(4), Noise(2), show_progress=False)


def test_curves_go_to_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setattr(journal.importlib.util, "find_spec", lambda _: object())
    board = journal.Board(tmp_path, first_step=12)
    board.write(13, {"step/loss": 0.5})
    board.close()
    assert written == [("tensorboard", 12), ("step/loss", 0.5, 13), "closed"]


TWO_PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_distillation import *
out, rank = Path({out!r}), int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{{out}}/meet", rank=rank, world_size=2)
run = undisturbed(out / "two")
assert run.processes == 2
distill(run, Noise(), Noise(3, seed=1), show_progress=False)
torch.save(run.pupil.state_dict(), out / f"rank{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


def undisturbed(out: Path) -> Distillation:
    """A run without dropout: its noise is drawn by process."""
    return Distillation(network(5, seed=1), teacher(), POINT_B, replace(RECIPE, epochs=2), out, size_px=SIZE)


@pytest.mark.slow  # two fresh processes import everything
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    script = TWO_PROCESSES.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        one = undisturbed(tmp_path / "one")
        distill(one, Noise(), Noise(3, seed=1), show_progress=False)
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in one.pupil.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert [row["epoch"] for row in log_of(tmp_path / "two")] == ["0", "1"]
    for two, alone in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert float(two["val_loss"]) == pytest.approx(float(alone["val_loss"]), rel=1e-3)
