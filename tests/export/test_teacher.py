"""The nano set's teacher: a ViT trunk that gives what the compact student gives, exported and trained as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_engines.loader import load_model_set
from barnsight_export.networks.sam3 import DetectorConfig, normalize
from barnsight_export.networks.teacher import Teacher, TeacherConfig
from barnsight_export.networks.tinyvit import TinyViT, TinyViTConfig
from barnsight_export.onnx.export import export_model_set
from barnsight_export.presets import NANO, NANO_TEACHER, PRESETS
from barnsight_export.train.detector import DetectorRecipe, DetectorTrainer
from barnsight_export.train.samples import TARGET, Batch

TRUNK = TinyViTConfig((8, 16, 24, 32), (2, 3, 4), windows=(2, 4, 2), depths=(1, 1, 1, 1))
TINY = replace(
    NANO_TEACHER,
    name="tiny",
    image_size=(64, 64),
    grid=(4, 4),
    student=TeacherConfig(TRUNK, neck=16),
    detector=DetectorConfig(
        width=16, heads=2, feed_forward=32, encoder_layers=1, decoder_layers=2, queries=6, upsampling_stages=2,
        dropout=0.0, top_k=4,
    ),
)  # fmt: skip


def test_the_trunks_pyramid_begins_a_stage_before_its_features() -> None:
    trunk, image = TinyViT(TRUNK).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        fine, *others = trunk.pyramid(image)
        features = trunk(image)
    assert fine.shape == (1, 8, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(others, features, strict=True))


def test_the_teacher_gives_the_students_maps_and_sees_the_coarsest_one() -> None:
    teacher = Teacher(TeacherConfig(TRUNK, neck=16)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = teacher(image)
        torch.nn.init.zeros_(teacher.join[1].weight)
        without = teacher(image)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16), (2, 16, 8, 8), (2, 16, 4, 4)]
    assert not torch.allclose(maps[2], without[2])
    with pytest.raises(ValueError, match="resize it to multiples of 64 px"):
        teacher(torch.rand(1, 3, 80, 80))


def test_at_full_size_it_is_ten_times_the_student_under_the_same_heads() -> None:
    with torch.device("meta"):
        trunk = Teacher(TeacherConfig()).trunk
    assert sum(p.numel() for p in trunk.parameters()) == pytest.approx(20.6e6, abs=0.1e6)
    assert not any(side % trunk.config.image_multiple for side in NANO_TEACHER.image_size)
    assert PRESETS["nano-teacher"] is NANO_TEACHER
    assert NANO_TEACHER.detector == NANO.detector
    assert NANO_TEACHER.concepts == NANO.concepts


def test_it_trains_as_the_student_does(tmp_path: Path) -> None:
    trainer = DetectorTrainer(TINY, DetectorRecipe(batch=2, warmup_steps=2), tmp_path)
    image = torch.full((2, 64, 64, 3), 60, dtype=torch.uint8)
    image[:, 16:40, 16:40] = 220
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    masks[:, :, 4:10, 4:10] = 255
    boxes = torch.tensor([[[28 / 64, 28 / 64, 24 / 64, 24 / 64]]]).repeat(2, 1, 1)
    batch = Batch(image, torch.zeros(2, dtype=torch.int64), boxes, torch.full((2, 1), TARGET), masks)
    losses = [trainer.step(batch, 0.1)["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow  # PyTorch's exporter takes its time
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")  # of its own
def test_it_is_exported_as_encoder_and_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TINY.build().eval()
    export_model_set(model, TINY, tmp_path / "set", trained_on="nothing")
    image = normalize(torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8))
    with load_model_set(tmp_path / "set", runtime="onnxruntime") as loaded, torch.no_grad():
        assert not loaded.manifest.has_tracker
        maps = loaded.encoder.backend.run({"image": image.contiguous().numpy()})
        for name, expected in zip(("d4", "d2", "d1"), model.encoder(image), strict=True):
            np.testing.assert_allclose(maps[name], expected.numpy(), atol=1e-4)
