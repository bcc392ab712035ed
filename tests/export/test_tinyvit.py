"""TinyViT: timm's names and sizes, windows and their bias, GroupNorm in place of BatchNorm."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from barnsight_export.networks.tinyvit import (
    TINY_VIT_5M,
    TINY_VITS,
    Attention,
    DropPath,
    TinyViT,
    TinyViTBlock,
    TinyViTConfig,
    norm_groups,
    to_group_norm,
)

SMALL = TinyViTConfig(widths=(16, 24, 32, 48), heads=(2, 4, 4), windows=(2, 4, 2), depths=(1, 1, 2, 1))


def small(drop_path: float = 0.0) -> TinyViT:
    """A TinyViT for multiples of 64 px in which no weight is trivial."""
    torch.manual_seed(0)
    network = TinyViT(replace(SMALL, drop_path=drop_path))
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return network


@pytest.mark.parametrize(
    ("name", "millions"),  # with a classifier of 1000 classes, as timm lists them
    [
        ("tiny_vit_5m", 5.39),
        ("tiny_vit_11m", 11.00),
        ("tiny_vit_21m", 21.20),
        ("tiny_vit_21m_384", 21.23),
        ("tiny_vit_21m_512", 21.27),
    ],
)
def test_the_public_models_have_their_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = TinyViT(TINY_VITS[name])
    last = TINY_VITS[name].widths[-1]
    classifier = 2 * last + 1000 * last + 1000  # norm, weights, biases
    assert sum(p.numel() for p in network.parameters()) + classifier == pytest.approx(millions * 1e6, abs=5e3)


def test_parameters_bear_timms_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in TinyViT(TINY_VIT_5M).state_dict().items()}
    timm = {
        "patch_embed.conv1.conv.weight": (32, 3, 3, 3),
        "patch_embed.conv2.bn.running_var": (64,),
        "stages.0.blocks.1.conv1.conv.weight": (256, 64, 1, 1),
        "stages.0.blocks.1.conv2.conv.weight": (256, 1, 3, 3),
        "stages.0.blocks.1.conv3.bn.weight": (64,),
        "stages.1.downsample.conv1.conv.weight": (128, 64, 1, 1),
        "stages.1.downsample.conv2.conv.weight": (128, 1, 3, 3),
        "stages.1.downsample.conv3.bn.num_batches_tracked": (),
        "stages.1.blocks.0.attn.attention_biases": (4, 49),
        "stages.1.blocks.0.attn.norm.weight": (128,),
        "stages.1.blocks.0.attn.qkv.weight": (384, 128),
        "stages.1.blocks.0.attn.proj.bias": (128,),
        "stages.1.blocks.0.mlp.norm.bias": (128,),
        "stages.1.blocks.0.mlp.fc1.weight": (512, 128),
        "stages.1.blocks.0.mlp.fc2.weight": (128, 512),
        "stages.1.blocks.0.local_conv.conv.weight": (128, 1, 3, 3),
        "stages.2.blocks.5.attn.attention_biases": (5, 196),
        "stages.3.blocks.1.local_conv.bn.running_mean": (320,),
    }
    assert {key: shapes.get(key) for key in timm} == timm
    # 6 tensors a convolution with its norm, 7 an attention, 6 an MLP; 10 blocks of attention
    assert len(shapes) == 6 * (2 + 2 * 3 + 3 * 3 + 10) + (7 + 6) * 10


def test_the_features_are_those_of_stages_1_2_and_3() -> None:
    features = small().eval()(torch.randn(2, 3, 64, 128))
    assert [tuple(f.shape) for f in features] == [(2, 24, 8, 16), (2, 32, 4, 8), (2, 48, 2, 4)]


def test_an_image_that_does_not_fill_the_windows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"64 x 96 px .* multiples of 64 px"):
        small()(torch.zeros(1, 3, 64, 96))
    assert {name: config.image_multiple for name, config in TINY_VITS.items()} == {
        "tiny_vit_5m": 224,
        "tiny_vit_11m": 224,
        "tiny_vit_21m": 224,
        "tiny_vit_21m_384": 384,
        "tiny_vit_21m_512": 512,
    }


def test_the_bias_of_two_cells_is_that_of_their_offset() -> None:
    attention = Attention(channels=8, heads=2, window=3)
    nn.init.normal_(attention.attention_biases)
    bias = attention.bias()
    assert bias.shape == (2, 9, 9)
    for first in range(9):
        for second in range(9):
            down, across = abs(first // 3 - second // 3), abs(first % 3 - second % 3)
            assert torch.equal(bias[:, first, second], attention.attention_biases[:, 3 * down + across])


def test_windows_do_not_see_one_another() -> None:
    block = TinyViTBlock(channels=8, heads=2, window=3, drop_path=0.0).eval()
    block.local_conv = nn.Identity()  # the part that does reach across windows
    x = torch.randn(1, 8, 6, 6)
    whole = block(x)
    for y0 in (0, 3):
        for x0 in (0, 3):
            alone = block(x[..., y0 : y0 + 3, x0 : x0 + 3])
            torch.testing.assert_close(whole[..., y0 : y0 + 3, x0 : x0 + 3], alone)


def test_group_norm_takes_scale_and_shift_over_and_leaves_the_original_alone() -> None:
    original = small()
    converted = to_group_norm(original)
    kinds = [type(module) for module in converted.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.GroupNorm) == sum(isinstance(m, nn.BatchNorm2d) for m in original.modules())
    grouped, batched = converted.stages[1].blocks[0].local_conv.bn, original.stages[1].blocks[0].local_conv.bn
    assert torch.equal(grouped.weight, batched.weight)
    assert torch.equal(grouped.bias, batched.bias)
    assert (grouped.num_groups, grouped.eps) == (24, batched.eps)
    assert isinstance(batched, nn.BatchNorm2d)
    grouped.weight.data += 1.0
    assert not torch.equal(grouped.weight, batched.weight)


def test_groups_are_the_largest_divisor_up_to_32() -> None:
    assert {c: norm_groups(c) for c in (7, 32, 48, 96, 112, 160, 192, 576, 1024)} == {
        7: 7,
        32: 32,
        48: 24,
        96: 32,
        112: 28,
        160: 32,
        192: 32,
        576: 32,
        1024: 32,
    }


@torch.no_grad()
def test_with_group_norm_training_and_evaluation_are_equal_bit_for_bit() -> None:
    image = torch.randn(2, 3, 64, 64)
    batched, grouped = small(), to_group_norm(small())
    evaluated = grouped.eval()(image)
    for trained, expected in zip(grouped.train()(image), evaluated, strict=True):
        assert torch.equal(trained, expected)
    assert not torch.equal(batched.train()(image)[2], batched.eval()(image)[2])


@torch.no_grad()
def test_drop_path_drops_whole_branches_in_training_only() -> None:
    torch.manual_seed(0)
    branch = torch.ones(1000, 2, 3, 3)
    drop = DropPath(0.25)
    assert torch.equal(drop.eval()(branch), branch)
    dropped = drop.train()(branch)
    assert torch.equal(dropped, dropped[:, :1, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    network = to_group_norm(small(drop_path=0.5))
    image = torch.randn(4, 3, 64, 64)
    assert not torch.equal(network.train()(image)[2], network.eval()(image)[2])
