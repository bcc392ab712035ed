"""The two students of SAM 3's encoder, the stock necks on the first, and the presets that use them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn
from torch.nn import functional as F

from barnsight_engines.manifest import Normalization
from barnsight_export.networks.sam3 import DetectorConfig, NeckedTrunk, Sam3
from barnsight_export.networks.student import (
    HALF,
    IMAGENET,
    NeckStudent,
    NeckStudentConfig,
    Refine,
    TrunkStudent,
    TrunkStudentConfig,
    area_resize,
    fold_normalization,
)
from barnsight_export.networks.tinyvit import TinyViT, TinyViTConfig
from barnsight_export.presets import ORIN, ORIN_B, PRESETS, Preset

TRUNK = TinyViTConfig(widths=(16, 24, 32, 48), heads=(2, 4, 4), windows=(2, 4, 2), depths=(1, 1, 2, 1))
POINT_A = TrunkStudentConfig(TRUNK, lateral=16, width=64, neck=32, grid=5)
POINT_B = NeckStudentConfig(TRUNK, neck=32, fine=16, grid=5)
DETECTOR = DetectorConfig(
    width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=2, queries=10, upsampling_stages=2, top_k=4
)
MAPS = [(2, 32, 20, 20), (2, 32, 10, 10), (2, 32, 5, 5), (2, 4, 20, 20), (2, 8, 10, 10), (2, 32, 5, 5)]


def no_weight_trivial(network: nn.Module) -> nn.Module:
    """The network with random scales and shifts: fresh ones hide branches that start at zero."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return network


def test_point_a_has_the_papers_size_and_output() -> None:
    with torch.device("meta"):
        student = TrunkStudent(TrunkStudentConfig())
        output = student(torch.zeros(1, 3, 1024, 1024))
    assert output.shape == (1, 1024, 72, 72)
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(40.66e6, abs=0.01e6)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())


def test_point_b_gives_detector_and_tracker_their_maps() -> None:
    with torch.device("meta"):
        maps = NeckStudent(NeckStudentConfig())(torch.zeros(1, 3, 512, 512))
    assert {name: tuple(value.shape[1:]) for name, value in maps._asdict().items()} == {
        "d4": (256, 144, 144),
        "d2": (256, 72, 72),
        "d1": (256, 36, 36),
        "t4": (32, 144, 144),
        "t2": (64, 72, 72),
        "t1": (256, 36, 36),
    }


@torch.no_grad()
@pytest.mark.parametrize("student", [TrunkStudent(POINT_A), NeckStudent(POINT_B)], ids=["A", "B"])
def test_training_and_evaluation_are_equal_bit_for_bit(student: nn.Module) -> None:
    no_weight_trivial(student)
    image = torch.randn(2, 3, 64, 64)
    trained, evaluated = student.train()(image), student.eval()(image)
    for one, other in zip(trained, evaluated, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_point_a_is_the_papers_sum_of_parts() -> None:
    student = no_weight_trivial(TrunkStudent(POINT_A))
    image = torch.randn(1, 3, 64, 64)
    first, second, third = (layer(s) for layer, s in zip(student.laterals, student.trunk(image), strict=True))
    joined = torch.cat(
        [
            F.interpolate(first, size=(5, 5), mode="area"),
            F.interpolate(second, size=(5, 5), mode="bilinear", align_corners=False),
            F.interpolate(third, size=(5, 5), mode="bilinear", align_corners=False),
        ],
        dim=1,
    )
    projected = student.project(joined)
    expected = (projected + student.refine.body(projected)) * student.scale + student.shift
    torch.testing.assert_close(student(image), expected)


def test_the_residual_block_starts_as_the_identity() -> None:
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(Refine(8)(x), x)


@pytest.mark.parametrize(("side", "grid"), [(128, 72), (64, 36), (64, 72), (8, 5), (6, 6)])
def test_area_resize_is_that_of_interpolate(side: int, grid: int) -> None:
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(area_resize(x, grid), F.interpolate(x, size=(grid, grid), mode="area"))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_a_folded_normalization_is_exact_inside_and_differs_where_the_padding_shows(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias)
    before = conv.weight.clone()
    folded = fold_normalization(conv, IMAGENET, HALF)
    colors = torch.rand(1, 3, 16, 16)  # 0..1

    def normalized(colors: torch.Tensor, by: Normalization) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (by.mean, by.std))
        return (colors - mean) / std

    expected = conv(normalized(colors, IMAGENET))
    found = folded(normalized(colors, HALF))
    torch.testing.assert_close(found[..., 1:, 1:], expected[..., 1:, 1:])
    # Zero padding is a frame in the color of the mean: gray here, ImageNet's mean color there.
    assert not torch.allclose(found[..., 0, :], expected[..., 0, :])
    gray_frame = F.pad(colors, (1, 1, 1, 1), value=0.5)
    unpadded = F.conv2d(normalized(gray_frame, IMAGENET), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(found, unpadded)
    assert torch.equal(conv.weight, before)


def test_a_student_adopts_a_copy_of_a_pretrained_trunk() -> None:
    student, pretrained = TrunkStudent(POINT_A), TinyViT(TRUNK)
    names = set(student.state_dict())
    student.adopt(pretrained)
    assert set(student.state_dict()) == names
    assert torch.equal(student.trunk.stages[1].blocks[0].mlp.fc1.weight, pretrained.stages[1].blocks[0].mlp.fc1.weight)
    folded = fold_normalization(pretrained.patch_embed.conv1.conv, IMAGENET, HALF)
    assert torch.equal(student.trunk.patch_embed.conv1.conv.weight, folded.weight)
    student.trunk.stages[1].blocks[0].mlp.fc1.weight.data += 1.0
    assert not torch.equal(
        student.trunk.stages[1].blocks[0].mlp.fc1.weight, pretrained.stages[1].blocks[0].mlp.fc1.weight
    )


@torch.no_grad()
def test_the_necks_on_point_a_are_the_stock_ones() -> None:
    encoder = NeckedTrunk(POINT_A)
    image = torch.randn(2, 3, 64, 64)
    maps = encoder(image)
    trunk = encoder.trunk(image)
    detector_maps, _ = encoder.neck(trunk)
    tracker_maps, _ = encoder.tracker_neck(trunk)
    expected = (*detector_maps[:3], encoder.conv_s0(tracker_maps[0]), encoder.conv_s1(tracker_maps[1]), tracker_maps[2])
    assert [tuple(found.shape) for found in maps] == MAPS
    for found, stock in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, stock)


@pytest.mark.parametrize("encoder", [NeckedTrunk(POINT_A), NeckStudent(POINT_B)], ids=["A", "B"])
def test_every_weight_that_learns_has_a_gradient(encoder: nn.Module) -> None:
    no_weight_trivial(encoder)
    sum(found.square().mean() for found in encoder(torch.randn(1, 3, 64, 64))).backward()
    idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@torch.no_grad()
@pytest.mark.parametrize("student", [POINT_A, POINT_B], ids=["A", "B"])
def test_the_detector_stands_on_either_student(student: TrunkStudentConfig | NeckStudentConfig) -> None:
    model = Sam3(student, DETECTOR, ("pig", "cow"), prompt_tokens=3).eval()
    found = model(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert found.boxes.shape == (2, 4, 4)
    assert found.masks.shape == (2, 4, 20, 20)


def test_prompts_replace_the_learned_ones_where_all_fit() -> None:
    model = Sam3(POINT_B, DETECTOR, ("pig", "cow"), prompt_tokens=3)
    pig, cow = torch.randn(3, 32), torch.randn(3, 32)
    model.adopt_prompts({"cow": cow, "pig": pig})
    assert torch.equal(model.concepts, torch.stack([pig, cow]))
    with pytest.raises(ValueError, match=r"'cow' must be \(3, 32\) .* got \(4, 32\)"):
        model.adopt_prompts({"pig": pig, "cow": torch.zeros(4, 32)})
    with pytest.raises(ValueError, match=r"'cow' .* got None"):
        model.adopt_prompts({"pig": pig})


@pytest.mark.parametrize("preset", [ORIN, ORIN_B], ids=lambda preset: preset.name)
def test_the_full_scale_presets_build_and_fit_together(preset: Preset) -> None:
    with torch.device("meta"):
        model = preset.build()
        maps = model.encoder(torch.zeros(1, 3, *preset.image_size))
    assert PRESETS[preset.name] is preset
    assert maps.d4.shape[2:] == preset.mask_size
    assert maps.d1.shape[1] == preset.detector.width
    assert model.concepts.shape == (3, 3, 256)
