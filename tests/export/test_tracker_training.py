"""Training the tracker: samples follow the same animals, a run learns, and it sees what a session would show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn

from barnsight_engines.propagator import MemoryTracker, TemporalPositions, certain
from barnsight_export.cli import main
from barnsight_export.errors import DataError, DataMissingError
from barnsight_export.evaluate.stock_session import TorchEngine
from barnsight_export.networks.compact import CompactConfig, CompactStudent
from barnsight_export.networks.sam3 import DetectorConfig
from barnsight_export.networks.tracker import TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import session_constants
from barnsight_export.presets import Preset
from barnsight_export.train.sequences import Sequences
from barnsight_export.train.tracker import TrackerRecipe, TrackerTrainer, load_tracker, train_tracker, validate_tracker
from barnsight_export.train.trainer import CHECKPOINT, LOG, Budget, read_checkpoint
from barnsightd.tracking.memory import MemoryBank

SIZE_PX, FRAMES = 64, 6  # of the stored pictures
SIZE = (48, 64)
STUDENT = CompactConfig(stem=8, stages=(8, 16, 16), expansion=2, attention_blocks=0, neck=32)
TINY = Preset(
    "tiny",
    SIZE,
    (3, 4),
    ("pig",),
    STUDENT,
    DetectorConfig(width=32, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=1, queries=4),
    tracker=TrackerConfig(
        grid=(3, 4), patch=16, width=32, memory_width=16, attention_layers=1, feed_forward=32, decoder_heads=2
    ),
)
RECIPE = TrackerRecipe(
    batch=2,
    learning_rate=2e-3,
    warmup_steps=5,
    constant_share=0.9,
    sizes=(),
    frames=((0.0, 3), (0.5, 4)),
    animals=2,
    validation_sequences=4,
    optimizer="adamw",
)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pigs of their own colors that walk, in eight short sequences."""
    folder = tmp_path_factory.mktemp("sequences")
    for split in ("train", "val"):
        write_sequences(folder / split)
    return folder


def write_sequences(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(1)
    images = np.full((8, FRAMES, SIZE_PX, SIZE_PX, 3), 70, np.uint8)
    ids = np.zeros((8, FRAMES, SIZE_PX, SIZE_PX), np.uint8)
    visible = np.zeros((8, FRAMES, 30), np.float32)
    for sequence in range(8):
        speed, rows = rng.integers(-3, 4, 2), rng.integers(14, 50, 2)
        for frame in range(FRAMES):
            for number, color in ((1, (230, 180, 180)), (2, (90, 60, 160))):
                center = (int(20 + 24 * (number - 1) + speed[number - 1] * frame), int(rows[number - 1]))
                cv2.ellipse(images[sequence, frame], center, (12, 8), 20, 0, 360, color, -1)
                cv2.ellipse(ids[sequence, frame], center, (12, 8), 20, 0, 360, number, -1)
            visible[sequence, frame, :2] = 1
    np.save(folder / "images-00000.npy", images)
    np.save(folder / "ids-00000.npy", ids)
    np.savez(folder / "truth-00000.npz", species=np.zeros(8, np.int64), visible_fraction=visible)


def opened(folder: Path, size: tuple[int, int] = SIZE, *, augmented: bool = True) -> Sequences:
    return Sequences(folder, size=size, animals=2, seed=0, augmented=augmented)


def trainer_in(out: Path, seed: int = 1) -> TrackerTrainer:
    torch.manual_seed(1)
    return TrackerTrainer(TINY, replace(RECIPE, seed=seed), CompactStudent(STUDENT), out)


def test_a_sample_follows_its_animals_and_is_the_same_at_the_same_position(sequences: Path) -> None:
    data = opened(sequences / "train")
    first, again, other = data[(3, 4)], data[(3, 4)], data[(4, 4)]
    assert (tuple(first.images.shape), first.masks.shape[0], first.masks.shape[2:]) == ((4, 48, 64, 3), 4, (12, 16))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)
    assert first.present[0].all()  # an animal begins in sight
    plain = opened(sequences / "val", augmented=False)[(1, FRAMES)]
    columns = plain.masks.float().mean(2).argmax(2)  # (T, N): where each is
    assert ((columns[1:] - columns[:-1]).abs() <= 2).all()


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="simulate --sequences does"):
        opened(tmp_path)


def test_sequences_that_are_too_short_are_refused_at_the_start(sequences: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.recipe = replace(RECIPE, frames=((0.0, FRAMES + 1),))
    with pytest.raises(DataError, match="holds sequences of 6 frames, the recipe follows 7"):
        train_tracker(trainer, Budget("images", 2), lambda split, size: opened(sequences / split, size), workers=0)


def test_sequences_without_an_animal_end_the_search(tmp_path: Path) -> None:
    write_sequences(tmp_path / "empty")
    ids = np.load(tmp_path / "empty/ids-00000.npy")
    np.save(tmp_path / "empty/ids-00000.npy", np.zeros_like(ids))
    with pytest.raises(DataError, match="empty: no animal to follow in 100 sequences; render others"):
        opened(tmp_path / "empty", augmented=False)[(0, 3)]


def test_a_run_learns_to_follow(sequences: Path, tmp_path: Path) -> None:
    trainer, data = trainer_in(tmp_path), opened(sequences / "train")
    batch = [data[(position, 3)] for position in range(2)]
    losses = [trainer.step(batch, 0.0)["loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(sequences: Path, tmp_path: Path) -> None:
    whole, data = trainer_in(tmp_path), opened(sequences / "train")
    batches = [[data[(2 * k + i, 3)] for i in range(2)] for k in range(4)]
    for batch in batches[:2]:
        whole.step(batch, 0.0)
    whole.save()
    for batch in batches[2:]:
        whole.step(batch, 0.0)
    resumed = trainer_in(tmp_path)
    resumed.resume()
    for batch in batches[2:]:
        resumed.step(batch, 0.0)
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], value, msg=name)


def test_a_run_leaves_a_log_and_a_tracker_that_loads(sequences: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)

    def open_sequences(split: str, size: tuple[int, int]) -> Sequences:
        return opened(sequences / split, size)

    train_tracker(trainer, Budget("images", 6), open_sequences, workers=0, show_progress=False)
    assert (
        (tmp_path / LOG).read_text().startswith("minutes,images,mean_iou,last_iou,presence_accuracy,lr,loss,presence,")
    )
    loaded = load_tracker(tmp_path / CHECKPOINT, TINY)
    torch.testing.assert_close(loaded.neck.project.weight, trainer.average.neck.project.weight)


def test_small_pictures_train_the_same_parameters(sequences: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    small = trainer.follower(trainer.model, (32, 32)).tracker
    assert small.config.grid == (2, 2)
    assert all(a is b for a, b in zip(small.parameters(), trainer.model.tracker.parameters(), strict=True))
    trainer.step([opened(sequences / "train", (32, 32))[(position, 3)] for position in range(2)], 0.0)
    attention = trainer.follower(trainer.model, SIZE).attention.layers[0].cross_attn_image.k_proj.weight
    assert attention is small.memory_attention.layers[0].cross_attn_image.k_proj.weight
    assert attention.grad is not None


@torch.no_grad()
def test_training_sees_what_a_session_sees(sequences: Path, tmp_path: Path) -> None:
    """The same frames through the training's own loop and through engines and bank: the same masks.

    On every other frame only the first animal's pointer is kept.
    """
    trainer = trainer_in(tmp_path)
    model, follower = trainer.average, trainer.follower(trainer.average, SIZE)
    nn.init.constant_(model.tracker.mask_decoder.pred_obj_score_head.proj_out.bias, 3.0)
    images, masks, _ = opened(sequences / "val", augmented=False)[(0, FRAMES)]
    maps = trainer.maps(model, images[None])

    positions = TemporalPositions.from_arrays(session_constants(model.tracker))
    engines = MemoryTracker(*map(TorchEngine, roles.tracker_graphs(model.tracker)), positions=positions)
    bank = MemoryBank(2, positions, engines.layout, batch=2, dtype=np.float32)
    named = [{name: value.numpy() for name, value in frame._asdict().items()} for frame in maps]
    drawn = certain(masks[0].numpy() / 255 - 0.5)
    bank.condition(
        [0, 1], 0, engines.memorize(named[0], drawn, np.ones(2, np.float32)), engines.point_at(named[0], drawn)
    )
    memories = [follower.begin(maps[0].t1, masks[0].float() / 255)]
    for frame in range(1, FRAMES):
        found, pointers = follower.look(frame, maps[frame], memories)
        own = found.masks[torch.arange(2), found.best]
        kept = torch.tensor([True, frame % 2 == 0])
        memories.append(follower.remember(frame, maps[frame].t1, own, found.obj, pointers, kept))
        seen = engines.segment(named[frame], bank.recall([0, 1], frame))
        bank.remember([0, 1], frame, engines.memorize(named[frame], seen.mask_logits, seen.presence))
        bank.point(kept.nonzero()[:, 0].tolist(), frame, seen.pointers[kept.numpy()])
        np.testing.assert_allclose(seen.mask_logits, own.numpy(), atol=1e-4)
        np.testing.assert_allclose(seen.presence, found.obj.numpy(), atol=1e-4)


def test_validation_knows_a_tracker_that_knows_nothing(sequences: Path, tmp_path: Path) -> None:
    figures = validate_tracker(trainer_in(tmp_path), opened(sequences / "val", augmented=False), FRAMES)
    assert set(figures) == {"mean_iou", "last_iou", "presence_accuracy"}
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["mean_iou"] < 0.6


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "tracker", "--data", str(tmp_path), "--student", str(tmp_path / "none.pt")]
    assert main([*command, "--out", str(tmp_path / "run"), "--images", "2"]) == 66
    assert "none.pt: no checkpoint there" in capsys.readouterr().err


def test_a_run_starts_from_the_tracker_of_another(sequences: Path, tmp_path: Path) -> None:
    first, second = trainer_in(tmp_path / "first", seed=2), trainer_in(tmp_path / "second")
    first.save()
    assert not torch.equal(first.average.neck.project.weight, second.average.neck.project.weight)
    second.start_with(read_checkpoint(tmp_path / "first" / CHECKPOINT)["average"])
    torch.testing.assert_close(second.model.state_dict(), first.average.state_dict())
    torch.testing.assert_close(second.average.state_dict(), first.average.state_dict())
