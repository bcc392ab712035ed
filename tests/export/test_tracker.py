"""The tracker's networks compute what the stock tracker of `transformers` computes, patch by patch, and in batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoModel,
    apply_rotary_pos_emb_2d,
)

from barnsight_engines.propagator import MASKED
from barnsight_export.networks.tracker import (
    MaskDecoder,
    MemoryAttention,
    MemoryEncoder,
    PromptDecoder,
    Segmented,
    Tracker,
    TrackerConfig,
)

GRID, WIDTH, NARROW, SLOTS, POINTERS = 5, 128, 64, 3, 4
CELLS = GRID * GRID
SMALL = TrackerConfig(grid=(GRID, GRID), width=WIDTH, attention_layers=2, feed_forward=64, decoder_heads=2)


@pytest.fixture(scope="module")
def stock() -> Sam3TrackerVideoModel:
    """The unpatched model, with every parameter away from its start, so that each one counts."""
    generator = torch.Generator().manual_seed(0)
    config = SMALL.stock()
    model = Sam3TrackerVideoModel(config, remove_vision_encoder=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 4
            parameter.add_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        # Half of the animals that the tests make up shall be in the picture.
        logits = [animal.obj for animal in stock_segmentation(model, frames(), *finer_maps())]
        model.mask_decoder.pred_obj_score_head.proj_out.bias -= torch.cat(logits).sort().values[2:4].mean()
    return model


@pytest.fixture(scope="module")
def tracker(stock: Sam3TrackerVideoModel) -> Tracker:
    model = Tracker(SMALL).eval()
    model.load_state_dict(stock.state_dict())
    return model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bank(batch: int = 2) -> tuple[Tensor, ...]:
    """A full memory of three slots and four pointer tokens: mem, mempos, ptr, ptrpos, bias."""
    return (
        noise(batch, SLOTS * CELLS, NARROW, seed=2),
        noise(SLOTS, NARROW, seed=3),
        noise(batch, POINTERS, NARROW, seed=4),
        noise(batch, POINTERS, NARROW, seed=5),
        torch.zeros(batch, 1, SLOTS * CELLS + POINTERS),
    )


def stock_attention(stock: Sam3TrackerVideoModel, t1: Tensor, *full: Tensor) -> Tensor:
    """The unpatched memory attention, animal by animal, on memories without any mask."""
    mem, mempos, ptr, ptrpos = full[:4]
    place = noise_free_places(stock, WIDTH)
    memory_place = noise_free_places(stock, NARROW)
    slot_positions = (memory_place + mempos[:, None]).flatten(0, 1)  # (M·N, D)
    results = []
    for animal in range(len(mem)):
        result = stock.memory_attention(
            current_vision_features=t1.flatten(2).permute(2, 0, 1),
            current_vision_position_embeddings=place[:, None],
            memory=torch.cat([mem[animal], ptr[animal]])[:, None],
            memory_posision_embeddings=torch.cat([slot_positions, ptrpos[animal]])[:, None],
            num_object_pointer_tokens=ptr.shape[1],
        )
        results.append(result.squeeze().T.reshape(-1, GRID, GRID))
    return torch.stack(results)


def noise_free_places(stock: Sam3TrackerVideoModel, width: int) -> Tensor:
    sine = copy.copy(stock.memory_encoder.position_encoding)
    sine.num_position_features = width // 2
    places = sine(torch.Size((1, width, GRID, GRID)), torch.device("cpu"), torch.float32)
    return places.flatten(2)[0].T


def frames() -> Tensor:
    """Conditioned frames of six animals."""
    return noise(6, WIDTH, GRID, GRID)


def finer_maps() -> tuple[Tensor, Tensor]:
    return noise(1, WIDTH // 8, 4 * GRID, 4 * GRID, seed=6), noise(1, WIDTH // 4, 2 * GRID, 2 * GRID, seed=7)


def stock_segmentation(stock: Sam3TrackerVideoModel, pix: Tensor, t4: Tensor, t2: Tensor) -> list[Segmented]:
    """The unpatched single-frame forward pass, animal by animal."""
    found = []
    for animal in pix:
        result = stock._single_frame_forward(image_embeddings=[t4, t2, animal[None]], multimask_output=True)
        found.append(
            Segmented(
                result.pred_masks[0, 0],
                result.object_pointer[0, 0],
                result.object_score_logits[0, 0],
                result.iou_scores.amax(dim=-1)[0],
            )
        )
    return found


def stock_memory(stock: Sam3TrackerVideoModel, t1: Tensor, mask: Tensor, obj: Tensor, *, certain: bool) -> Tensor:
    drawn = torch.nn.functional.interpolate(mask, (stock.image_size, stock.image_size), mode="bilinear")
    features, _ = stock._encode_new_memory(
        current_vision_feats=t1.flatten(2).permute(2, 0, 1).expand(-1, len(mask), -1),
        pred_masks_high_res=drawn,
        object_score_logits=obj[..., None],
        is_mask_from_pts=certain,
    )
    return features.transpose(0, 1).float()  # (N, B, D), rounded to bfloat16 -> (B, N, D)


def blobs() -> Tensor:
    """Masks of two animals and of one that is nowhere, as logits (3, 1, 4G, 4G)."""
    y, x = torch.meshgrid(torch.arange(4.0 * GRID), torch.arange(4.0 * GRID), indexing="ij")
    near, far = (3 - ((y - cy) ** 2 + (x - cx) ** 2) ** 0.5 for cy, cx in ((5, 6), (12, 14)))
    return torch.stack([near, far, torch.full_like(near, -5.0)])[:, None]


# Names


def test_the_parameters_bear_the_public_names(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    assert {n: v.shape for n, v in tracker.state_dict().items()} == {n: v.shape for n, v in stock.state_dict().items()}


def test_at_full_size_the_tracker_has_sam3s_11_74_million_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Tracker(TrackerConfig()).parameters()) == pytest.approx(11.74e6, abs=0.01e6)


def test_a_width_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory width 64, got 96"):
        TrackerConfig(width=96)


# Memory attention


def test_memory_attention_is_the_stock_one(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    t1, full = noise(1, WIDTH, GRID, GRID), bank()
    found = MemoryAttention(tracker)(t1, *full)
    assert found.shape == (2, WIDTH, GRID, GRID)
    torch.testing.assert_close(found, stock_attention(stock, t1, *full), rtol=1e-4, atol=1e-5)


def test_a_masked_slot_equals_a_dropped_slot(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    t1 = noise(1, WIDTH, GRID, GRID)
    mem, mempos, ptr, ptrpos, bias = bank()
    bias[..., CELLS : 2 * CELLS] = MASKED  # the second slot
    bias[..., -1] = MASKED  # and the last pointer token
    kept = torch.cat([mem[:, :CELLS], mem[:, 2 * CELLS :]], dim=1)
    found = MemoryAttention(tracker)(t1, mem * 1.0, mempos, ptr, ptrpos, bias)
    expected = stock_attention(stock, t1, kept, mempos[[0, 2]], ptr[:, :-1], ptrpos[:, :-1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    mem[:, CELLS : 2 * CELLS] = 50.0  # what a masked slot holds is never seen
    torch.testing.assert_close(MemoryAttention(tracker)(t1, mem, mempos, ptr, ptrpos, bias), found)


def test_slots_have_no_order(tracker: Tracker) -> None:
    t1 = noise(1, WIDTH, GRID, GRID)
    mem, mempos, ptr, ptrpos, bias = bank()
    order = [2, 0, 1]
    turned = mem.reshape(2, SLOTS, CELLS, NARROW)[:, order].flatten(1, 2)
    attention = MemoryAttention(tracker)
    found = attention(t1, turned, mempos[order], ptr, ptrpos, bias)
    torch.testing.assert_close(found, attention(t1, mem, mempos, ptr, ptrpos, bias), rtol=1e-4, atol=1e-5)


def test_half_split_rotation_is_the_interleaved_one(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    attention, x = MemoryAttention(tracker), noise(1, 1, CELLS, WIDTH)
    cos, sin = stock.memory_attention.rotary_emb(x, stock.memory_attention.position_ids)
    interleaved, _ = apply_rotary_pos_emb_2d(x, x, cos, sin)
    torch.testing.assert_close(attention._turn(x[..., attention.half_split]), interleaved[..., attention.half_split])


def test_averaging_memories_before_widening_them_is_the_stock_cross_attention(
    stock: Sam3TrackerVideoModel, tracker: Tracker
) -> None:
    attention, (mem, mempos, ptr, ptrpos, bias) = MemoryAttention(tracker), bank(1)
    layer, tokens = stock.memory_attention.layers[0].cross_attn_image, noise(1, CELLS, WIDTH)
    placed = mem.reshape(1, SLOTS, CELLS, NARROW) + mempos[:, None]
    values = torch.cat([mem, ptr], dim=1)
    expected, _ = layer(
        query=tokens[:, None],
        key=torch.cat([placed.flatten(1, 2), ptr + ptrpos], dim=1)[:, None],
        value=values[:, None],
        position_embeddings=stock.memory_attention.rotary_emb(tokens, stock.memory_attention.position_ids),
        num_k_exclude_rope=POINTERS,
    )
    mine = tracker.memory_attention.layers[0].cross_attn_image
    found = attention._recall(mine, tokens, placed, ptr + ptrpos, values, bias)
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_the_first_self_attention_runs_once_for_all_animals(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, look_around = [], MemoryAttention._look_around

    def count(self: MemoryAttention, layer: object, tokens: Tensor) -> Tensor:
        rows.append(len(tokens))
        return look_around(self, layer, tokens)

    monkeypatch.setattr(MemoryAttention, "_look_around", count)
    MemoryAttention(tracker)(noise(1, WIDTH, GRID, GRID), *bank(3))
    assert rows == [1, 3]


def test_a_memory_may_be_narrower_than_sam3s() -> None:
    torch.manual_seed(0)
    nano = Tracker(replace(SMALL, width=96, memory_width=24, patch=16)).eval()
    t1, mask = noise(1, 96, GRID, GRID), blobs()
    mem = MemoryEncoder(nano)(t1, mask, torch.ones(3, 1))
    ptr = nano.pointer_tokens(PromptDecoder(nano)(t1, mask)[:, None])
    ptrpos = nano.pointer_positions(torch.ones(1)).expand(3, -1, -1)
    assert (mem.shape, ptr.shape, ptrpos.shape) == ((3, CELLS, 24), (3, 4, 24), (3, 4, 24))
    pix = MemoryAttention(nano)(t1, mem, nano.memory_positions()[:1], ptr, ptrpos, torch.zeros(3, 1, CELLS + 4))
    assert pix.shape == (3, 96, GRID, GRID)


# Positions in time


def test_memory_positions_count_ages_from_the_conditioning_frame(tracker: Tracker) -> None:
    learned = tracker.memory_temporal_positional_encoding
    positions = tracker.memory_positions()
    for age in range(7):
        torch.testing.assert_close(positions[age], learned[age - 1, 0, 0])  # as the stock session indexes them


def test_pointer_tokens_and_positions_are_the_stock_ones(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    pointers, ages = noise(2, 3, WIDTH), [1, 4, 40]
    tokens, positions = stock._process_object_pointers(ages, list(pointers.unbind(1)), 16, 2, WIDTH, pointers.device)
    torch.testing.assert_close(tracker.pointer_tokens(pointers), tokens.transpose(0, 1))
    torch.testing.assert_close(tracker.pointer_positions(torch.tensor([1.0, 4.0, 40.0])), positions[:, 0])


# Mask decoder


def test_masks_pointers_and_scores_are_the_stock_ones_for_a_whole_batch(
    stock: Sam3TrackerVideoModel, tracker: Tracker
) -> None:
    pix, (t4, t2) = frames(), finer_maps()
    found = MaskDecoder(tracker)(pix, t4, t2)
    assert [tuple(v.shape) for v in found] == [(6, 4 * GRID, 4 * GRID), (6, WIDTH), (6, 1), (6, 1)]
    present = found.obj[:, 0] > 0
    assert present.sum() == 3  # so both ways are compared below
    for animal, expected in enumerate(stock_segmentation(stock, pix, t4, t2)):
        for name, value in expected._asdict().items():
            got = getattr(found, name)[animal]
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_one_hot_choice_takes_the_first_of_equals(tracker: Tracker) -> None:
    decoder = copy.deepcopy(MaskDecoder(tracker))
    decoder.mask_decoder.iou_prediction_head.proj_out.weight.zero_()
    decoder.mask_decoder.iou_prediction_head.proj_out.bias.copy_(torch.tensor([9.0, 0.0, 2.0, 2.0]))
    iou, hot = decoder.choose(noise(2, 8, WIDTH))
    assert hot.tolist() == [[[0, 1, 0]], [[0, 1, 0]]]
    torch.testing.assert_close(iou, torch.full((2, 1), 2.0).sigmoid())


def test_an_absent_animal_has_an_empty_mask_and_the_learned_pointer(tracker: Tracker) -> None:
    decoder = copy.deepcopy(MaskDecoder(tracker))
    decoder.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-1e4)
    found = decoder(noise(2, WIDTH, GRID, GRID), *finer_maps())
    assert (found.mask == -1024).all()
    torch.testing.assert_close(found.ptr, tracker.no_object_pointer.expand(2, -1))


# Memory encoder


@pytest.mark.parametrize("obj", [3.0, -3.0], ids=["visible", "occluded"])
def test_memories_are_the_stock_ones(stock: Sam3TrackerVideoModel, tracker: Tracker, obj: float) -> None:
    t1, mask, logits = noise(1, WIDTH, GRID, GRID), blobs(), torch.full((3, 1), obj)
    found = MemoryEncoder(tracker)(t1, mask, logits)
    assert found.shape == (3, CELLS, NARROW)
    expected = stock_memory(stock, t1, mask, logits, certain=False)
    torch.testing.assert_close(found.bfloat16().float(), expected, rtol=0.01, atol=0.01)


def test_a_plain_resize_is_the_antialiased_one_where_it_enlarges() -> None:
    mask = blobs()
    plain, antialiased = (
        torch.nn.functional.interpolate(mask, scale_factor=4.0, mode="bilinear", antialias=a) for a in (False, True)
    )
    torch.testing.assert_close(plain, antialiased)


def test_large_logits_are_the_masks_that_are_certain(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    """The session binarizes the mask of a conditioning frame; at a thousand times the logits, the sigmoid does."""
    t1, mask, obj = noise(1, WIDTH, GRID, GRID), blobs(), torch.ones(3, 1)
    found = MemoryEncoder(tracker)(t1, 1000 * mask, obj)
    expected = stock_memory(stock, t1, mask, obj, certain=True)
    torch.testing.assert_close(found.bfloat16().float(), expected, rtol=0.01, atol=0.02)


# Prompt decoder


def test_the_pointer_of_a_new_animal_is_the_stock_one(stock: Sam3TrackerVideoModel, tracker: Tracker) -> None:
    t1, mask = noise(1, WIDTH, GRID, GRID), blobs()
    found = PromptDecoder(tracker)(t1, mask)
    assert found.shape == (3, WIDTH)
    for animal in range(3):
        drawn = (mask[animal][None] > 0).float()
        expected = stock._use_mask_as_output(t1, list(finer_maps()), drawn).object_pointer[0, 0]
        torch.testing.assert_close(found[animal], expected, rtol=1e-4, atol=1e-4)


def test_a_mask_of_nothing_gives_the_learned_pointer(tracker: Tracker) -> None:
    found = PromptDecoder(tracker)(noise(1, WIDTH, GRID, GRID), torch.full((1, 1, 4 * GRID, 4 * GRID), -1.0))
    torch.testing.assert_close(found, tracker.no_object_pointer)
