"""From teachers to students by preset: pseudo-labels, SAM 3 as the teacher, and the command `distill`."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file
from torch import nn
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig, Sam3ViTConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionModel, Sam3VisionNeck

from barnsight_engines.detector import Detections
from barnsight_export import cli
from barnsight_export.distill.build import build_labeler, build_student, compared_maps
from barnsight_export.distill.journal import LOG
from barnsight_export.distill.losses import FOUR_TERMS
from barnsight_export.distill.pseudo import (
    Sam3Labeler,
    freeze,
    instance_map,
    place_student,
    write_pictures,
)
from barnsight_export.distill.sam3 import Sam3Detector, Sam3Necks, Sam3Trunk, load_necks, load_vision
from barnsight_export.distill.teacher import FrozenTeacher, Input, Network
from barnsight_export.distill.train import STUDENT, Distillation, Match, Recipe
from barnsight_export.errors import DataError, DataMissingError, ExportUsageError
from barnsight_export.networks.compact import CompactConfig
from barnsight_export.networks.sam3 import Detector, DetectorConfig
from barnsight_export.networks.student import NeckStudentConfig, TrunkStudentConfig
from barnsight_export.networks.teacher import TeacherConfig
from barnsight_export.networks.tinyvit import TinyViTConfig
from barnsight_export.presets import PRESETS, Preset
from barnsight_export.train.detector import DetectorRecipe, DetectorTrainer, train_detector
from barnsight_export.train.samples import IGNORED, TARGET, Simulated, Views, collate, find_targets
from barnsight_export.train.trainer import CHECKPOINT, Budget


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


# Pseudo-labels

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
VIT = replace(
    TINY,
    name="tiny-teacher",
    image_size=(64, 64),
    grid=(4, 4),
    student=TeacherConfig(TinyViTConfig((8, 16, 24, 32), (2, 3, 4), windows=(2, 4, 2), depths=(1, 1, 1, 1)), neck=16),
)
TUNING = DetectorRecipe(batch=4, warmup_steps=2, sizes=((0.0, 64),), validation_pictures=2)


def detections(*squares: tuple[float, int, int, int]) -> Detections:
    """Squares (score, top, left, side) on a mask grid of 16 cells over 64 pixels."""
    masks = np.full((len(squares), 16, 16), -9.0, np.float32)
    for mask, (_, top, left, side) in zip(masks, squares, strict=True):
        mask[top : top + side, left : left + side] = 9
    scores = np.array([score for score, *_ in squares], np.float32)
    return Detections(np.zeros((len(squares), 4), np.float32), scores, masks, (64, 64))


def test_sure_detections_are_targets_and_doubtful_ones_are_ignored() -> None:
    ids, visible = instance_map(detections((0.9, 0, 0, 5), (0.4, 8, 8, 6), (0.1, 0, 10, 4)))
    targets = find_targets(ids, visible)
    assert targets.kinds.tolist() == [TARGET, IGNORED]
    np.testing.assert_allclose(targets.boxes[0], [0.16, 0.16, 0.32, 0.32], atol=0.02)
    assert targets.masks[0, :4, :4].min() == 255


def test_the_better_of_two_detections_has_the_pixel() -> None:
    ids, _ = instance_map(detections((0.6, 0, 0, 6), (0.9, 0, 3, 6)))
    assert ids[8, 4] == 2  # ranked by score
    assert ids[8, 16] == 1


def test_nothing_found_is_an_empty_picture() -> None:
    ids, visible = instance_map(detections())
    assert not ids.any()
    assert not visible.any()


class Square:
    """Frames with one bright square, and a teacher that finds it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> np.ndarray:
        image = np.full((48, 48, 3), 40, np.uint8)
        image[12:30, 6 + 3 * index : 24 + 3 * index] = 220
        return image

    def detect(self, image: np.ndarray) -> Detections:
        logits = (image[::4, ::4, 0].astype(np.float32) - 130) / 10
        return Detections(np.zeros((1, 4), np.float32), np.array([0.8], np.float32), logits[None], image.shape[:2])


def pseudo_pictures(folder: Path) -> Simulated:
    write_pictures(Square(), Square().detect, folder, concept=1, size_px=64, show_progress=False)
    return Simulated(folder)


def test_pseudo_labels_become_batches_of_the_detectors_own_training(tmp_path: Path) -> None:
    pictures = pseudo_pictures(tmp_path)
    assert len(pictures) == 6
    assert pictures[0].concept == 1
    batch = collate([Views(pictures, 2, 0)[(k, (48, 64))] for k in range(4)])
    assert batch.boxes.shape == (4, 1, 4)
    assert (batch.kinds == TARGET).any()
    labeled = (tmp_path / "ids-00000.npy").stat().st_mtime_ns
    pseudo_pictures(tmp_path)  # complete shards are kept
    assert (tmp_path / "ids-00000.npy").stat().st_mtime_ns == labeled


def test_heads_are_tuned_on_pseudo_labels_over_a_frozen_student(tmp_path: Path) -> None:
    pictures = pseudo_pictures(tmp_path / "pictures")
    trainer = DetectorTrainer(TINY, TUNING, tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    freeze(trainer, ("encoder.",))
    train_detector(trainer, Budget("images", 12), lambda _: pictures, workers=0, show_progress=False)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))
    moved = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert any(name.startswith("detector.") for name in moved)
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_tuning_heads_alone_lowers_the_loss(tmp_path: Path) -> None:
    pictures = pseudo_pictures(tmp_path / "pictures")
    batch = collate([Views(pictures, 2, 0)[(k, (48, 64))] for k in range(4)])
    trainer = DetectorTrainer(TINY, TUNING, tmp_path / "run")
    freeze(trainer, ("encoder.",))
    losses = [trainer.step(batch, 0.1)["loss"] for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_trained_detector_labels_frames(tmp_path: Path) -> None:
    found = Sam3Labeler(TINY.build(), concept=0, size=(48, 64))(Square()[0])
    assert found.image_size == (48, 48)
    assert found.mask_logits.shape[1:] == (12, 16)
    assert (found.scores >= 0.25).all()


def test_a_distilled_student_takes_the_encoders_place(tmp_path: Path) -> None:
    trainer, other = DetectorTrainer(TINY, TUNING, tmp_path), TINY.build()
    save_file(other.encoder.state_dict(), tmp_path / STUDENT)
    place_student(trainer, tmp_path / STUDENT)
    for name, value in other.encoder.state_dict().items():
        assert torch.equal(trainer.average.encoder.state_dict()[name], value)
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / STUDENT)
    with pytest.raises(DataError, match="does not fit CompactStudent"):
        place_student(trainer, tmp_path / STUDENT)
    (tmp_path / STUDENT).write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read"):
        place_student(trainer, tmp_path / STUDENT)
    with pytest.raises(DataMissingError, match="does not exist"):
        place_student(trainer, tmp_path / "nowhere.safetensors")


# SAM 3 as the teacher, and presets

SMALL_SAM3 = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "window_size": 2,
    "global_attn_indexes": [1],
    "pretrain_image_size": 28,
    "image_size": 56,
}
SMALL_TRUNK = TinyViTConfig((8, 16, 24, 32), (2, 3, 4), windows=(2, 4, 2), depths=(1, 1, 1, 1))


def small_vision() -> Sam3VisionModel:
    config = Sam3VisionConfig(backbone_config=Sam3ViTConfig(**SMALL_SAM3), fpn_hidden_size=16)
    return Sam3VisionModel(config).eval()


def public_file(path: Path) -> tuple[Sam3VisionModel, Sam3VisionNeck]:
    """A file in the layout of facebook/sam3 with small random weights, and the modules that it holds."""
    torch.manual_seed(0)
    vision, tracker_neck = small_vision(), small_vision().neck
    narrow = {"conv_s0": nn.Conv2d(16, 2, 1), "conv_s1": nn.Conv2d(16, 4, 1)}
    weights = {f"detector_model.vision_encoder.{key}": value for key, value in vision.state_dict().items()}
    weights |= {f"tracker_neck.{key}": value for key, value in tracker_neck.state_dict().items()}
    for name, conv in narrow.items():
        weights |= {f"tracker_model.mask_decoder.{name}.{key}": value for key, value in conv.state_dict().items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return vision, tracker_neck


def test_sam3_teaches_the_maps_that_its_own_heads_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    vision, tracker_neck = public_file(path)
    necks = load_necks(path, 4, small_vision().config).eval()
    image = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        stock, found = vision(image), necks(image)
        trunk = Network(Sam3Trunk(load_vision(path, 4, small_vision().config)), Input((56, 56)), ["trunk"]).eval()(
            image
        )
        tracker, _ = tracker_neck(stock.last_hidden_state.transpose(1, 2).reshape(1, 16, 4, 4))
    for name, expected in zip(("d4", "d2", "d1"), stock.fpn_hidden_states, strict=False):
        torch.testing.assert_close(getattr(found, name), expected)
    torch.testing.assert_close(found.t1, tracker[2])
    torch.testing.assert_close(found.t4, necks.conv_s0(tracker[0]))
    assert [tuple(value.shape[1:]) for value in found] == [
        (16, 16, 16),
        (16, 8, 8),
        (16, 4, 4),
        (2, 16, 16),
        (4, 8, 8),
        (16, 4, 4),
    ]
    normalized = Input((56, 56)).prepare(image)
    with torch.no_grad():
        again = vision(normalized).last_hidden_state
    torch.testing.assert_close(trunk["trunk"].flatten(2).transpose(1, 2), again)


def test_a_grid_of_another_size_takes_the_same_weights(tmp_path: Path) -> None:
    public_file(tmp_path / "model.safetensors")
    necks = load_necks(tmp_path, 8, small_vision().config).eval()
    assert necks(torch.rand(1, 3, 112, 112)).d1.shape == (1, 16, 8, 8)


@pytest.mark.parametrize(
    ("student", "maps"),
    [
        (TrunkStudentConfig(SMALL_TRUNK, lateral=8, width=16, neck=16, grid=4), ("trunk",)),
        (NeckStudentConfig(SMALL_TRUNK, neck=16, fine=8, grid=4), ("d4", "d2", "d1", "t4", "t2", "t1")),
    ],
    ids=["A", "B"],
)
def test_a_student_learns_from_sam3_at_both_points(
    tmp_path: Path, student: TrunkStudentConfig | NeckStudentConfig, maps: tuple[str, ...]
) -> None:
    public_file(tmp_path / "model.safetensors")
    preset = replace(TINY, image_size=(64, 64), grid=(4, 4), student=student)
    pupil = build_student(preset)
    assert compared_maps(preset) == maps == pupil.outputs
    necks = load_necks(tmp_path, 4, small_vision().config)
    module = Sam3Trunk(necks) if maps == ("trunk",) else necks
    master = FrozenTeacher(Network(module, Input((56, 56)), maps))
    run = Distillation(
        pupil,
        master,
        Match(dict.fromkeys(maps, 1.0)),
        Recipe(backbone_rate=3e-3, new_rate=1e-2),
        tmp_path / "run",
        size_px=64,
    )
    rates = {group["name"]: len(group["params"]) for group in run.optimizer.param_groups}
    assert min(rates.values()) > 0  # the TinyViT is the backbone
    batch = next(iter(run.loader(Square(), 0)))
    losses = [run.step(batch, 0.0) for _ in range(12)]
    assert losses[-1]["cosine"] < 0.9 * losses[0]["cosine"]
    step = run.progress.steps
    run.save()
    run.progress.steps = 0
    run.resume()
    assert run.progress.steps == step == 12
    with pytest.raises(ExportUsageError, match="has no TinyViT"):
        build_student(TINY, trunk=tmp_path / "tiny_vit.safetensors")


def test_sam3_labels_frames_with_prompts_of_any_length() -> None:
    config = replace(TINY.detector, width=16)
    model = Sam3Detector(
        Sam3Necks(small_vision()), Detector(config), {"pig": torch.randn(3, 16), "ox": torch.randn(5, 16)}
    )
    found = Sam3Labeler(model, concept=1, size=(56, 56))(Square()[0])
    assert found.image_size == (48, 48)
    with pytest.raises(ExportUsageError, match="'tiny' knows no concept 'goat'; choose one of pig, cow"):
        build_labeler(TINY, Path("nowhere"), "goat")


# The command


@pytest.fixture
def pen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two videos, a broken one, and a detector's checkpoint; the preset `tiny` is known."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        writer = cv2.VideoWriter(str(tmp_path / "videos" / f"{name}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 6, (48, 48))
        for index in range(6):
            writer.write(Square()[index])
        writer.release()
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    torch.manual_seed(5)
    DetectorTrainer(TINY, TUNING, tmp_path).save()
    return tmp_path


def command(pen: Path, *options: str, teacher: str = CHECKPOINT) -> int:
    arguments = ["distill", "--data", str(pen / "videos"), "--student", "tiny", "--teacher", str(pen / teacher)]
    return cli.main([*arguments, "--workers", "0", "--frames", "4", "--out", str(pen / "out"), *options])


def test_the_command_distills_from_videos_and_names_the_broken_ones(
    pen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(pen, "--epochs", "2", "--seed", "3") == 0
    assert "videos: left out 1 of 3 videos, broken: broken.mp4" in capsys.readouterr().err
    assert [row["epoch"] for row in log_of(pen / "out")] == ["0", "1"]
    assert list((pen / "out" / "features").glob("*/*.npz"))
    place_student(DetectorTrainer(TINY, TUNING, pen), pen / "out" / STUDENT)
    assert command(pen) == os.EX_USAGE
    assert "holds a run already: add --resume" in capsys.readouterr().err
    assert command(pen, "--epochs", "2", "--seed", "3", "--resume") == 0
    init = str(pen / "out" / STUDENT)
    assert command(pen, "--epochs", "1", "--init", init, "--cache-gb", "0", "--out", str(pen / "second")) == 0
    assert not (pen / "second" / "features").exists()


def test_a_student_follows_a_teacher_of_another_preset_in_a_short_run(
    pen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny-teacher", VIT)
    DetectorTrainer(VIT, TUNING, pen / "vit").save()
    options = [
        "--teacher-preset",
        "tiny-teacher",
        "--rate",
        "0.002",
        "--cache-gb",
        "0",
        "--epochs",
        "3",
        "--batch",
        "2",
    ]
    assert command(pen, *options, teacher=f"vit/{CHECKPOINT}") == 0
    rows = log_of(pen / "out")
    assert [float(row["rate_new"]) for row in rows] == pytest.approx([2e-3, 1.5e-3, 5e-4], rel=1e-2)  # one whole cosine
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    place_student(DetectorTrainer(TINY, TUNING, pen), pen / "out" / STUDENT)
    assert command(pen, *options[:2], "--labels", "cow", teacher=f"vit/{CHECKPOINT}") == 0


def test_the_command_labels_frames_as_pictures(pen: Path) -> None:
    assert command(pen, "--labels", "cow") == 0
    assert len(Simulated(pen / "out" / "train")) == len(Simulated(pen / "out" / "val")) == 4


def test_the_command_reads_simulated_pictures(pen: Path) -> None:
    for split in ("train", "val"):
        pseudo_pictures(pen / "pictures" / split)
    data = ["--data", str(pen / "pictures"), "--format", "simulated"]
    weights = ["--without", "magnitude", "--schedule", "direction-then-scale"]
    inner = ["--attention", "1", "--intermediate", "0.5", "--match", "stage16.0=stage16.0"]
    assert command(pen, *data, *weights, *inner, "--epochs", "1") == 0
    (row,) = log_of(pen / "out")
    assert float(row["attention"]) > 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--data", "nowhere"], os.EX_NOINPUT, "nowhere: no such folder"),
        (["--data", "nowhere", "--format", "edinburgh"], os.EX_NOINPUT, "holds the Edinburgh clips"),
        (["--data", "nowhere", "--format", "simulated"], os.EX_NOINPUT, "simulate --pictures does"),
        (["--teacher", "nowhere.pt"], os.EX_NOINPUT, "nowhere.pt: no checkpoint there"),
        (["--student", "giant"], os.EX_USAGE, "no preset 'giant'; choose one of"),
        (["--teacher-preset", "giant"], os.EX_USAGE, "--teacher-preset: no preset 'giant'; choose one of"),
        (["--rate", "0"], os.EX_USAGE, "--rate must be positive, got 0"),
        (["--epochs", "0"], os.EX_USAGE, "--epochs must be 1 or more, got 0"),
        (["--match", "stem"], os.EX_USAGE, "--match must be STUDENT_LAYER=TEACHER_LAYER, got 'stem'"),
        (["--match", "stem=stem"], os.EX_USAGE, "--match alone changes nothing"),
        (["--resume"], os.EX_NOINPUT, "no checkpoint there"),
        ([f"--without={term}" for term in FOUR_TERMS], os.EX_USAGE, "leaves no term"),
        (
            [*(f"--without={term}" for term in FOUR_TERMS), "--attention=1"],
            os.EX_USAGE,
            "leaves no term to validate by",
        ),
        (
            ["--without=direction", "--without=cosine", "--schedule=direction-then-scale"],
            os.EX_USAGE,
            "begins with direction and cosine: keep one of them",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_the_command_refuses_what_does_not_fit(
    pen: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert command(pen, *options) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"cut short", None], ids=["empty", "cut", "other network"])
def test_a_wrong_teacher_is_named(pen: Path, capsys: pytest.CaptureFixture[str], content: bytes | None) -> None:
    if content is None:
        torch.save({"average": {"conv.weight": torch.zeros(1)}}, pen / "wrong.pt")
    else:
        (pen / "wrong.pt").write_bytes(content)
    assert command(pen, teacher="wrong.pt") == os.EX_DATAERR
    assert re.search(r"wrong\.pt:? (is no checkpoint of a run|does not fit Sam3)", capsys.readouterr().err)
