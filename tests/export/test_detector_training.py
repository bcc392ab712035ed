"""Training the detector: targets from instance maps, matching, schedule, and a run that resumes as if uninterrupted."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_export.cli import main
from barnsight_export.errors import DataError, DataMissingError, ExportError
from barnsight_export.networks.compact import CompactConfig
from barnsight_export.networks.sam3 import Detection, DetectorConfig, Proposals, Proposer, Tokens
from barnsight_export.networks.teacher import TeacherConfig
from barnsight_export.networks.tinyvit import TinyViTConfig
from barnsight_export.presets import NANO, ORIN, PRESETS, Preset
from barnsight_export.train.augment import augment
from barnsight_export.train.detector import (
    RECIPES,
    DetectorRecipe,
    DetectorTrainer,
    load_trained,
    train_detector,
)
from barnsight_export.train.device import backend
from barnsight_export.train.losses import (
    BACKGROUND,
    UNJUDGED,
    _dense_loss,
    match_one_to_many,
    match_one_to_one,
    noise_boxes,
    outline_losses,
    overlaps,
    presence_loss,
    prototype_losses,
    semantic_loss,
)
from barnsight_export.train.muon import Muon
from barnsight_export.train.plot import plot_log
from barnsight_export.train.samples import (
    IGNORED,
    PADDING,
    TARGET,
    Batch,
    Picture,
    Simulated,
    Views,
    collate,
    find_targets,
    resized,
)
from barnsight_export.train.trainer import CHECKPOINT, LOG, Budget
from barnsight_export.train.validation import best_threshold, golden_image, validate

TINY = Preset(
    name="tiny",
    image_size=(48, 64),
    grid=(3, 4),
    concepts=("pig", "cow"),
    student=CompactConfig(stem=8, stages=(8, 16, 40), expansion=2, attention_blocks=1, neck=16),
    detector=DetectorConfig(
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=2,
        queries=6,
        upsampling_stages=2,
        dropout=0.0,
        top_k=4,
    ),
)
VIT = TeacherConfig(TinyViTConfig((8, 16, 24, 32), (2, 3, 4), windows=(2, 4, 2), depths=(1, 1, 1, 1)), neck=16)
RECIPE = DetectorRecipe(batch=4, warmup_steps=2, sizes=((0.0, 64),), validation_pictures=2)


class Ellipses:
    """A store of pictures with two ellipses each; odd pictures show cows, every fifth one is empty."""

    def __init__(self, count: int = 10) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Picture:
        rng = np.random.default_rng(index)
        image = np.full((96, 96, 3), 60, np.uint8)
        ids = np.zeros((96, 96), np.uint8)
        if index % 5 == 4:
            return Picture(image, ids, None, np.ones(0, np.float32))
        for number, column in ((1, 25), (2, 70)):
            center = (column, int(rng.integers(25, 70)))
            cv2.ellipse(image, center, (18, 10), 30, 0, 360, (220, 180, 180), -1)
            cv2.ellipse(ids, center, (18, 10), 30, 0, 360, number, -1)
        return Picture(image, ids, index % 2, np.ones(2, np.float32))


def one_picture(boxes: list[tuple[float, float, float, float]], kinds: list[int]) -> Batch:
    """A batch of one picture with the given boxes, normalized cxcywh."""
    masks = torch.zeros(1, len(boxes), 16, 16, dtype=torch.uint8)
    return Batch(
        torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([boxes]),
        torch.tensor([kinds]),
        masks,
    )


# Targets


def test_an_instance_becomes_its_tight_box_and_a_mask_at_a_quarter() -> None:
    ids = np.zeros((320, 320), np.uint8)
    ids[80:160, 32:96] = 1  # rows, columns
    targets = find_targets(ids, np.ones(1, np.float32))
    np.testing.assert_allclose(targets.boxes, [[0.2, 0.375, 0.2, 0.25]])
    assert targets.kinds.tolist() == [TARGET]
    assert targets.masks.shape == (1, 80, 80)
    assert targets.masks[0, 20:40, 8:24].min() == 255
    assert int((targets.masks[0] > 0).sum()) == 20 * 16


@pytest.mark.parametrize(
    ("side_px", "visible", "kind"), [(10, 1.0, TARGET), (5, 1.0, IGNORED), (10, 0.05, IGNORED)], ids=str
)
def test_slivers_are_neither_found_nor_missed(side_px: int, visible: float, kind: int) -> None:
    ids = np.zeros((320, 320), np.uint8)
    ids[:side_px, :side_px] = 1
    assert find_targets(ids, np.array([visible], np.float32)).kinds.tolist() == [kind]


def test_an_animal_that_the_view_cuts_down_to_a_sliver_is_ignored() -> None:
    ids = np.zeros((320, 320), np.uint8)
    ids[:20, :20] = 1
    cut = find_targets(ids, np.ones(1, np.float32), full_area_px=np.array([8000.0], np.float32))
    assert cut.kinds.tolist() == [IGNORED]


def test_batches_pad_to_the_fullest_picture() -> None:
    empty, two = Ellipses()[4], Ellipses()[0]
    samples = [(p.image, 0, find_targets(p.ids, p.visible_fraction)) for p in (empty, two)]
    batch = collate(samples)
    assert batch.kinds.tolist() == [[PADDING, PADDING], [TARGET, TARGET]]
    assert tuple(batch.masks.shape) == (2, 2, 24, 24)


def test_a_resized_map_lies_where_the_resized_picture_does() -> None:
    disk = cv2.circle(np.zeros((384, 384), np.uint8), (190, 201), 12, 1, -1)
    image = np.repeat(255 * disk[..., None], 3, axis=2)
    shown, ids = resized(image, disk, (256, 384))
    drawn = shown[..., 0] > 127
    assert (drawn & (ids > 0)).sum() / (drawn | (ids > 0)).sum() > 0.98


# Views


def test_a_view_depends_on_seed_and_position_alone() -> None:
    first, again, other = (Views(Ellipses(), 2, seed)[(17, (48, 64))] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_animals_stay_under_their_ids_through_augmentation() -> None:
    """White animals on black: through every view, what the map calls an animal is the brighter part."""
    ids = np.zeros((96, 96), np.uint8)
    ids[30:66, 30:66] = 1
    image = np.repeat(ids[..., None] * 200, 3, axis=2).astype(np.uint8)
    for seed in range(12):
        view, view_ids, _ = augment(image, ids, (80, 120), np.random.default_rng(seed))
        inside = cv2.erode((view_ids > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        near = cv2.dilate((view_ids > 0).astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
        ring = near & ~(cv2.dilate((view_ids > 0).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0)
        assert inside.any()
        assert np.median(view[inside]) > np.median(view[ring])


def test_a_wrong_or_absent_animal_leaves_nothing_to_find() -> None:
    views = Views(Ellipses(), 2, seed=0)
    wrong = 0
    for position in range(200):
        _, concept, targets = views[(position, (64, 64))]
        rng = np.random.default_rng((0, position))
        picture = views.pictures[int(rng.integers(len(views.pictures)))]
        if concept != picture.concept:
            wrong += 1
            assert len(targets.boxes) == 0
    assert 200 * 0.15 < wrong < 200 * 0.45  # a fifth is empty, a tenth of the others is asked for wrongly


def test_the_most_crowded_pictures_are_left_out_of_training(tmp_path: Path) -> None:
    animals = [3, 20, 0, 12]
    np.save(tmp_path / "images-00000.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "ids-00000.npy", np.stack([np.full((8, 8), count, np.uint8) for count in animals]))
    visible = np.stack([np.where(np.arange(30) < count, 0.5, 0.0) for count in animals]).astype(np.float32)
    np.savez(tmp_path / "truth-00000.npz", species=np.array([0, 0, 1, 1]), visible_fraction=visible)
    some = Simulated(tmp_path, most_animals=12)
    assert [int(some[index].ids.max()) for index in range(len(some))] == [3, 0, 12]
    assert [some[index].concept for index in range(len(some))] == [0, None, 1]
    assert len(Simulated(tmp_path)) == 4


# Matching


def test_iou_and_giou_of_known_boxes() -> None:
    square, shifted, far = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.3, 0.2, 0.2, 0.2], [0.7, 0.2, 0.2, 0.2]])
    iou, giou = overlaps(torch.stack([square, square, square]), torch.stack([square, shifted, far]))
    torch.testing.assert_close(iou, torch.tensor([1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1.0, 1 / 3, -3 / 7]))


def test_one_to_one_gives_each_animal_its_nearest_query() -> None:
    batch = one_picture([(0.2, 0.2, 0.1, 0.1), (0.8, 0.8, 0.1, 0.1), (0.5, 0.5, 0.1, 0.1)], [TARGET, TARGET, PADDING])
    boxes = torch.tensor([[[[0.79, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.21, 0.2, 0.1, 0.1]]]])
    assert match_one_to_one(torch.zeros(1, 1, 3), boxes, batch).tolist() == [[[1, BACKGROUND, 0]]]


def test_a_query_on_an_ignored_animal_is_not_judged() -> None:
    batch = one_picture([(0.2, 0.2, 0.1, 0.1)], [IGNORED])
    boxes = torch.tensor([[[[0.2, 0.2, 0.1, 0.1], [0.6, 0.6, 0.1, 0.1]]]])
    assert match_one_to_one(torch.zeros(1, 1, 2), boxes, batch).tolist() == [[[UNJUDGED, BACKGROUND]]]


def test_nobody_is_told_that_an_ignored_animal_is_none() -> None:
    batch = one_picture([(0.5, 0.5, 0.5, 0.5)], [IGNORED])
    batch.masks[..., 4:12, 4:12] = 255
    nowhere = torch.full((1, 16), -6.0)
    proposed = nowhere.clone()
    proposed[0, 10] = 4.0  # the token at its center
    boxes = torch.full((1, 16, 4), 0.5)
    dense = [_dense_loss(Proposals(centers, boxes, (4, 4)), batch) for centers in (nowhere, proposed)]
    assert dense[1] <= dense[0]

    ignored = batch.masks[:, 0].flatten(1) > 0
    drawn = torch.where(ignored, 8.0, -8.0)
    animal = torch.zeros(1, 256)
    assert semantic_loss(drawn, animal, ~ignored) == semantic_loss(torch.full((1, 256), -8.0), animal, ~ignored)
    assert semantic_loss(drawn, animal, torch.ones_like(ignored)) > 1

    sure = torch.full((2, 1), 5.0)
    assert presence_loss(sure, batch.kinds) == 0
    assert presence_loss(sure, torch.tensor([[PADDING]])) > 4
    assert presence_loss(-sure, torch.tensor([[IGNORED, TARGET]])) > 4


def test_one_to_many_takes_at_most_four_queries_that_fit() -> None:
    batch = one_picture([(0.5, 0.5, 0.2, 0.2)], [TARGET])
    shifts = torch.tensor([0.0, 0.005, 0.01, 0.015, 0.02, 0.3])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).repeat(1, 1, 6, 1)
    boxes[..., 0] += shifts
    matched = match_one_to_many(torch.full((1, 1, 6), 2.0), boxes, batch)
    assert matched.tolist() == [[[0, 0, 0, 0, BACKGROUND, BACKGROUND]]]


def test_denoising_boxes_are_near_and_its_negatives_farther() -> None:
    torch.manual_seed(0)
    batch = one_picture([(0.5, 0.5, 0.3, 0.2), (0.3, 0.3, 0.2, 0.2), (0.5, 0.5, 0.1, 0.1)], [TARGET, TARGET, IGNORED])
    denoising = noise_boxes(batch)
    matched = denoising.matched[0]
    assert sorted(matched.tolist()) == [UNJUDGED] * 3 + [BACKGROUND] * 2 + [0, 0, 1, 1]
    positive = matched >= 0
    iou, _ = overlaps(denoising.boxes[0, positive], batch.boxes[0, matched[positive]])
    assert (iou > 0.2).all()
    near, _ = overlaps(denoising.boxes[0, :, None], batch.boxes[0, :2])
    assert near[matched == BACKGROUND].max() < iou.min()


# Schedule


def test_size_and_rate_follow_the_share_of_the_budget() -> None:
    recipe = DetectorRecipe(learning_rate=1e-3, sizes=((0.0, 192), (0.3, 256), (0.78, 320)))
    square = replace(TINY, image_size=(64, 64), grid=(4, 4))
    sizes = [recipe.image_size(progress, square)[0] for progress in (0.0, 0.29, 0.3, 0.77, 0.78, 1.0)]
    assert sizes == [192, 192, 256, 256, 320, 320]
    assert RECIPES["heads"].image_size(0.5, ORIN) == (1024, 1024)
    assert [NANO.size_of(side) for side in (192, 256, 352)] == [(160, 240), (208, 320), (288, 432)]
    assert recipe.rate(0.0, 0) == pytest.approx(1e-5)
    assert recipe.rate(0.3, 1000) == pytest.approx(1e-3)
    assert recipe.rate(0.7, 1000) == pytest.approx(1e-3 * 0.505)
    assert recipe.rate(1.0, 1000) == pytest.approx(1e-5)


def test_budgets_count_images_or_minutes() -> None:
    assert Budget("images", 1000).progress(250, 1e9) == 0.25
    assert Budget("minutes", 10).progress(10**9, 300.0) == 0.5
    assert Budget("images", 10).progress(12, 0.0) == 1.0


# Runs


def run(out: Path, images: int, *, resume: bool = False) -> DetectorTrainer:
    trainer = DetectorTrainer(TINY, RECIPE, out)
    if resume:
        trainer.resume()
    train_detector(trainer, Budget("images", images), lambda _: Ellipses(), workers=0, show_progress=False)
    return trainer


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = DetectorTrainer(TINY, RECIPE, tmp_path / "whole")
    views = Views(Ellipses(), 2, RECIPE.seed)
    batches = [collate([views[(4 * k + i, (48, 64))] for i in range(4)]) for k in range(4)]
    for batch in batches[:2]:
        whole.step(batch, 0.1)
    whole.out.mkdir()
    whole.save()
    for batch in batches[2:]:
        whole.step(batch, 0.1)

    resumed = DetectorTrainer(TINY, RECIPE, tmp_path / "whole")
    resumed.resume()
    assert (resumed.counters.images, resumed.counters.steps) == (8, 2)
    for batch in batches[2:]:
        resumed.step(batch, 0.1)
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], value, msg=name)


def test_a_run_leaves_a_log_and_a_checkpoint_that_loads(tmp_path: Path) -> None:
    run(tmp_path, 8)
    trainer = run(tmp_path, 16, resume=True)
    with (tmp_path / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["8", "16"]
    assert {"minutes", "size_px", "ap50", "ap75", "recall", "false_positives", "lr", "loss", "dice"} <= set(rows[0])
    loaded = load_trained(tmp_path / CHECKPOINT, TINY)
    torch.testing.assert_close(loaded.concepts.data, trainer.average.concepts.data)


def test_a_run_starts_from_another_ones_networks_and_nothing_else_of_it(tmp_path: Path) -> None:
    first = DetectorTrainer(TINY, RECIPE, tmp_path / "first")
    train_detector(first, Budget("images", 8), lambda _: Ellipses(), workers=0, show_progress=False)
    second = DetectorTrainer(TINY, RECIPE, tmp_path / "second")
    second.start_from(tmp_path / "first" / CHECKPOINT)
    for name, weight in first.average.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight)
        torch.testing.assert_close(second.average.state_dict()[name], weight)
    assert second.counters.images == 0
    torch.testing.assert_close(second.aids.noised, first.aids.noised)
    assert not any(optimizer.state for optimizer in second.optimizers)


def test_the_mean_of_two_runs_is_a_checkpoint_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [DetectorTrainer(TINY, replace(RECIPE, seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    for trainer in runs:
        trainer.out.mkdir()
        trainer.save()
    paths = [str(trainer.out / CHECKPOINT) for trainer in runs]
    assert main(["train", "average", *paths, "--out", str(tmp_path / "mean.pt")]) == 0
    mean = load_trained(tmp_path / "mean.pt", TINY).concepts
    torch.testing.assert_close(mean, (runs[0].average.concepts + runs[1].average.concepts) / 2)

    other = DetectorTrainer(replace(TINY, concepts=("pig",)), RECIPE, tmp_path / "other")
    other.out.mkdir()
    other.save()
    assert main(["train", "average", paths[0], str(other.out / CHECKPOINT), "--out", str(tmp_path / "no.pt")]) == 65
    assert "is not of the same networks as" in capsys.readouterr().err
    assert not (tmp_path / "no.pt").exists()


def test_a_run_starts_under_the_heads_of_another_encoder(tmp_path: Path) -> None:
    source = DetectorTrainer(replace(TINY, student=VIT), RECIPE, tmp_path / "source")
    source.save()
    trainer = DetectorTrainer(TINY, RECIPE, tmp_path / "run")
    fresh = {name: value.clone() for name, value in trainer.model.encoder.state_dict().items()}
    trainer.start_heads(tmp_path / "source" / CHECKPOINT)
    for model in (trainer.model, trainer.average):
        assert all(torch.equal(value, fresh[name]) for name, value in model.encoder.state_dict().items())
        assert torch.equal(model.concepts, source.average.concepts)
        for name, value in source.average.detector.state_dict().items():
            assert torch.equal(model.detector.state_dict()[name], value)
    assert torch.equal(trainer.aids.noised, source.aids.noised)
    wide = replace(TINY, student=replace(TINY.student, neck=32), detector=replace(TINY.detector, width=32))
    with pytest.raises(DataError, match="does not fit Sam3"):
        DetectorTrainer(wide, RECIPE, tmp_path / "wide").start_heads(tmp_path / "source" / CHECKPOINT)
    torch.save({"pupil": {}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="missing"):
        trainer.start_heads(tmp_path / "other.pt")


def test_the_command_takes_heads_batch_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "nano", TINY)
    monkeypatch.setitem(RECIPES, "nano", RECIPE)
    monkeypatch.setattr("barnsight_export.train.samples.Simulated", lambda *_: Ellipses())
    DetectorTrainer(replace(TINY, student=VIT), RECIPE, tmp_path / "source").save()
    heads = ["--heads", str(tmp_path / "source" / CHECKPOINT)]
    command = ["train", "detector", "--data", str(tmp_path), "--workers", "0", "--images", "2"]
    for seed in ("1", "2"):
        out = ["--batch", "2", "--seed", seed, "--out", str(tmp_path / seed)]
        assert main([*command, *heads, "--freeze", "detector", *out]) == 0
    first, second = (torch.load(tmp_path / seed / CHECKPOINT, weights_only=True) for seed in "12")
    assert first["counters"]["images"] == 2
    scale = "detector.detr_encoder.layers.0.layer_norm1.weight"
    assert torch.equal(first["model"][scale], second["model"][scale])
    assert not torch.equal(first["model"]["encoder.stem.0.0.weight"], second["model"]["encoder.stem.0.0.weight"])
    assert main([*command, "--batch", "0", "--out", str(tmp_path / "none")]) == os.EX_USAGE
    assert main([*command, *heads, "--sam3", "x", "--student", "y", "--out", str(tmp_path / "none")]) == os.EX_USAGE


def test_pretrained_heads_are_tuned_by_adamw_alone(tmp_path: Path) -> None:
    kinds = {
        name: [type(o).__name__ for o in DetectorTrainer(TINY, RECIPES[name], tmp_path).optimizers] for name in RECIPES
    }
    assert kinds.pop("heads") == ["AdamW"]
    assert set(map(tuple, kinds.values())) == {("Muon", "AdamW")}


def test_muon_moves_a_matrix_alike_in_every_direction_and_a_kernel_as_a_matrix() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(24, 2, 3, 4) * torch.logspace(0, -2, 24)[:, None, None, None]  # rows of very unlike size
    kernel = torch.nn.Parameter(torch.zeros(24, 2, 3, 4))
    kernel.grad = gradient
    Muon([kernel], lr=1.0, weight_decay=0.0).step()
    update = -kernel.detach().flatten(1)  # (24, 24)
    stretched = torch.linalg.svdvals(update) / (0.2 * 24**0.5)
    assert torch.linalg.svdvals(gradient.flatten(1)).max() > 100 * torch.linalg.svdvals(gradient.flatten(1)).min()
    assert stretched.min() > 0.2
    assert stretched.max() < 1.3
    assert (update * gradient.flatten(1)).sum() > 0


def test_muon_descends_where_its_weights_decay() -> None:
    torch.manual_seed(0)
    wanted, weight = torch.randn(16, 20), torch.nn.Parameter(torch.zeros(16, 20))
    muon = Muon([weight], lr=0.2, weight_decay=0.01)
    start = (weight - wanted).square().mean().item()
    for _ in range(60):
        muon.zero_grad()
        (weight - wanted).square().mean().backward()
        muon.step()
    assert (weight - wanted).square().mean().item() < 0.1 * start


def test_a_mask_on_another_animal_costs_more_than_one_on_the_floor() -> None:
    spilled, mask = torch.tensor([[5.0, 5.0, -5.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    beside, alone = torch.tensor([[1.0, 1.0, 0.0]]), mask
    on_animal, on_floor = outline_losses(spilled, mask, beside), outline_losses(spilled, mask, alone)
    assert on_animal["mask"] > 3 * on_floor["mask"]
    assert on_animal["dice"] == on_floor["dice"]
    exact = torch.tensor([[5.0, -5.0, -5.0]])
    assert outline_losses(exact, mask, beside)["mask"] < 0.1 * on_floor["mask"]


def test_prototypes_ask_touching_animals_to_differ() -> None:
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])  # (1, 2, 4): two halves of one row
    target, animal = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 4)
    alike = torch.full((1, 1, 4), 5.0)  # (1, 1, 4)
    apart = torch.tensor([[[5.0, 5.0, -5.0, -5.0]]])
    for name in ("prototype_mask", "prototype_dice"):
        assert prototype_losses(apart, masks, target, animal)[name] < 0.01
        assert prototype_losses(alike, masks, target, animal)[name] > 0.5
    assert prototype_losses(alike, masks, ~target, 0 * animal)["prototype_mask"] == 0


def test_two_runs_in_a_row_become_one_picture(tmp_path: Path) -> None:
    head = "minutes,images,size_px,ap50,ap75,recall,false_positives,loss\n"
    logs = [tmp_path / "first.csv", tmp_path / "second.csv"]
    logs[0].write_text(head + "5,3000,192,0.1,0,0.1,2,40\n")
    logs[1].write_text(head + "5,2000,256,0.4,0.1,0.5,1,30\n")
    picture = tmp_path / "run.svg"
    plot_log(logs, picture)
    text = picture.read_text()
    assert "<!-- 3.0 -->" in text  # thousands of views, on the axis
    assert "<!-- 5.0 -->" in text


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "minutes,images,size_px,ap50,ap75,recall,false_positives,loss\n5,3000,192,0.1,0,0.1,2,40\n9,5000,256,0.4,0.1,0.5,1,30\n"
    )
    picture = tmp_path / "images" / "run.png"
    plot_log([log], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["", "minutes,images\n1,2\n", "images,ap50\n1,many\n"], ids=["empty", "other", "words"]
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(DataError, match=r"log\.csv"):
        plot_log([log], tmp_path / "run.svg")


def test_a_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    DetectorTrainer(TINY, RECIPE, tmp_path).save()
    DetectorTrainer(TINY, replace(RECIPE, validate_every_s=1.0), tmp_path).resume()
    with pytest.raises(DataError, match=r"checkpoint\.pt: begun with batch 4, now it is 2; resume with the same"):
        DetectorTrainer(TINY, replace(RECIPE, batch=2), tmp_path).resume()
    with pytest.raises(DataError, match="is no run of 'other' to go on with"):
        DetectorTrainer(replace(TINY, name="other"), RECIPE, tmp_path).resume()
    older = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del older["recipe"]
    torch.save({**older, "random": torch.get_rng_state()}, tmp_path / CHECKPOINT)
    DetectorTrainer(TINY, RECIPE, tmp_path).resume()


@pytest.mark.parametrize("content", [b"not a checkpoint", None], ids=["damaged", "foreign"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / CHECKPOINT
    if content is None:
        torch.save({"average": {"conv.weight": torch.zeros(1)}}, path)
    else:
        path.write_bytes(content)
    trainer = DetectorTrainer(TINY, RECIPE, tmp_path)
    for use in (lambda: load_trained(path, TINY), lambda: trainer.start_from(path), trainer.resume):
        with pytest.raises(DataError, match=r"checkpoint\.pt"):
            use()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    trainer = DetectorTrainer(TINY, RECIPE, tmp_path)
    torch.nn.init.constant_(trainer.model.encoder.stem[0][0].weight, math.nan)
    batch = collate([Views(Ellipses(), 2, 0)[(0, (48, 64))]])
    with pytest.raises(ExportError, match="the loss became nan at step 0"):
        trainer.step(batch, 0.1)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = DetectorTrainer(TINY, RECIPE, tmp_path)
    views = Views(Ellipses(), 2, 0)
    batch = collate([views[(position, (48, 64))] for position in range(4)])
    losses = [trainer.step(batch, 0.1)["loss"] for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_resuming_nothing_names_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"checkpoint\.pt: no checkpoint there"):
        DetectorTrainer(TINY, RECIPE, tmp_path).resume()


# Validation


class Oracle(torch.nn.Module):
    """Answers with the truth of the pictures it is shown in turn, plus one phantom of this score (a logit)."""

    def __init__(self, pictures: Ellipses, *, phantom: float = -9.0) -> None:
        super().__init__()
        self.pictures, self.phantom, self.shown = pictures, phantom, 0

    def forward(self, image: torch.Tensor, concept: torch.Tensor) -> Detection:
        ids = self.pictures[self.shown].ids
        self.shown += 1
        masks = np.stack([np.where(ids == k, 9.0, -9.0) for k in (1, 2)] + [np.full(ids.shape, -9.0)])
        masks[2, :8, :8] = 9.0
        small = torch.from_numpy(masks).float()[None]
        present = 4.0 if ids.any() else -9.0
        scores = torch.tensor([[4.0, 3.0, self.phantom]])
        return Detection(torch.zeros(1, 3, 4), scores, torch.tensor([[present]]), small)


def test_the_truth_scores_one_and_a_phantom_is_counted() -> None:
    pictures = Ellipses(5)
    perfect = validate(Oracle(pictures), pictures, (64, 96), limit=5)
    haunted = validate(Oracle(pictures, phantom=2.0), pictures, (64, 96), limit=5)
    assert (perfect.ap50, perfect.ap75, perfect.recall, perfect.false_positives) == (1.0, 1.0, 1.0, 0.0)
    assert haunted.recall == 1.0
    assert haunted.false_positives == 4 / 5  # not in the empty scene: nothing is present there


def test_the_threshold_is_the_lowest_that_does_as_well_as_the_best() -> None:
    pictures = Ellipses(5)
    assert best_threshold(Oracle(pictures), pictures, (64, 96), limit=5) == 0.1
    assert best_threshold(Oracle(pictures, phantom=-0.5), pictures, (64, 96), limit=5) == 0.4  # it scores 0.37


class Doubter(torch.nn.Module):
    """Scores one query of two high, and that of a light picture one half, unless `sure`."""

    def __init__(self, *, sure: bool) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, image: torch.Tensor, concept: torch.Tensor) -> Detection:
        score = 4.0 if self.sure or image.max() < 0.5 else 0.0
        return Detection(
            torch.zeros(1, 2, 4), torch.tensor([[score, -9.0]]), torch.tensor([[9.0]]), torch.zeros(1, 2, 8, 8)
        )


def test_the_golden_picture_is_the_fullest_of_which_the_network_is_sure() -> None:
    empty, filled = Ellipses()[4], Ellipses()[0]
    either_way = ([filled, empty], [empty, filled])
    first, last = (golden_image(Doubter(sure=True), pictures, (64, 96), limit=2) for pictures in either_way)
    assert first.shape == (1, 3, 64, 96)
    np.testing.assert_array_equal(first, last)
    assert first.max() > 0.5  # a light pig, and not the bare floor
    assert golden_image(Doubter(sure=False), [filled, empty], (64, 96), limit=2).max() < 0.5
    np.testing.assert_array_equal(golden_image(Doubter(sure=False), [filled], (64, 96), limit=2), first)


# Proposals


def random_tokens(pictures: int) -> Tokens:
    values = torch.randn(pictures, math.prod(TINY.grid), TINY.detector.width)
    return Tokens(values, torch.zeros_like(values), TINY.grid)


def test_queries_start_where_the_encoder_proposes_an_animal() -> None:
    torch.manual_seed(0)
    learned, proposing = (
        replace(TINY, detector=replace(TINY.detector, proposals=proposals)).build() for proposals in (False, True)
    )
    assert not hasattr(proposing.detector.detr_decoder, "reference_points")
    assert not hasattr(proposing.detector.detr_decoder, "query_embed")
    tokens = random_tokens(2)
    proposer = proposing.detector.proposer
    assert proposer is not None
    found, start = proposer(tokens), proposing.detector.start(tokens)
    best = found.centers.argmax(dim=1)
    torch.testing.assert_close(start.boxes[:, 0], found.boxes[torch.arange(2), best])
    assert not start.boxes.requires_grad
    same = learned.detector.start(tokens)
    torch.testing.assert_close(same.boxes[0], same.boxes[1])


def test_what_a_query_begins_as_does_not_depend_on_its_rank() -> None:
    torch.manual_seed(0)
    detector = replace(TINY, detector=replace(TINY.detector, proposals=True)).build().detector
    assert detector.proposer is not None
    torch.nn.init.normal_(detector.proposer.content.weight)
    tokens = random_tokens(1)
    before = detector.start(tokens)
    heat = detector.proposer.heads[-1]
    with torch.no_grad():
        heat.weight[0], heat.bias[0] = -heat.weight[0], -heat.bias[0]  # the likeliest cell is now the least likely
    detector.config = replace(detector.config, queries=math.prod(TINY.grid))
    after = detector.start(tokens)
    for content, box in zip(before.content[0], before.boxes[0], strict=True):
        same = (after.boxes[0] == box).all(1)
        assert same.sum() == 1
        torch.testing.assert_close(after.content[0, same][0], content)


def test_an_untrained_proposal_lies_at_its_own_cell() -> None:
    proposer = Proposer(8)
    torch.nn.init.zeros_(proposer.heads[-1].weight)
    torch.nn.init.zeros_(proposer.heads[-1].bias)
    tokens = torch.randn(1, 8, 8)
    boxes = proposer(Tokens(tokens, tokens, (2, 4))).boxes[0]
    torch.testing.assert_close(boxes[6], torch.tensor([2.5 / 4, 1.5 / 2, 0.15, 0.15]))  # third column, second row


def test_a_detector_that_proposes_learns_too(tmp_path: Path) -> None:
    preset = replace(TINY, detector=replace(TINY.detector, proposals=True))
    trainer = DetectorTrainer(preset, RECIPE, tmp_path)
    views = Views(Ellipses(), 2, 0)
    batch = collate([views[(position, (48, 64))] for position in range(4)])
    losses = [trainer.step(batch, 0.1)["loss"] for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_processes_meet_through_nccl_only_where_each_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = torch.device("cuda", 0)
    assert [backend(gpu, processes) for processes in (1, 2, 3)] == ["nccl", "nccl", "gloo"]
    assert backend(torch.device("cpu"), 1) == "gloo"
