"""The student encoder and SAM 3's detector on top of it: shapes, and agreement with the stock SAM 3 modules."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_export.networks.compact import CompactConfig, CompactStudent, places
from barnsight_export.networks.sam3 import Detector, DetectorConfig, Queries, Sam3, normalize
from barnsight_export.presets import NANO, PRESETS

SMALL = DetectorConfig(
    width=32,
    heads=2,
    feed_forward=64,
    encoder_layers=2,
    decoder_layers=3,
    queries=10,
    upsampling_stages=2,
    dropout=0.0,
    top_k=4,
)


def small_detector() -> Detector:
    torch.manual_seed(0)
    return Detector(SMALL).eval()


def small_inputs() -> tuple[torch.Tensor, ...]:
    """d4, d2, d1 and a prompt, for a 5 x 6 grid."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 32, 20, 24), (2, 32, 10, 12), (2, 32, 5, 6), (2, 4, 32))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def test_the_student_gives_three_maps_at_strides_4_8_and_16() -> None:
    maps = CompactStudent(CompactConfig()).eval()(torch.zeros(1, 3, 96, 160))
    assert [tuple(m.shape) for m in maps] == [(1, 96, 24, 40), (1, 96, 12, 20), (1, 96, 6, 10)]


def test_each_cell_knows_its_place() -> None:
    found = places(torch.zeros(1, 7, 2, 4))
    assert found.shape == (1, 22, 2, 4)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))  # x, left to right
    torch.testing.assert_close(found[0, 1, :, 0], torch.tensor([-0.5, 0.5]))  # y, top to bottom
    flat = found[0].flatten(1).T
    assert (torch.cdist(flat, flat) + torch.eye(8) > 0.5).all()


def test_bytes_become_the_range_minus_one_to_one() -> None:
    image = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)  # (1, 1, 1, 3)
    found = normalize(image)
    assert found.shape == (1, 3, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]))


def test_nano_stays_small() -> None:
    model = NANO.build()
    encoder, whole = (sum(p.numel() for p in module.parameters()) for module in (model.encoder, model))
    assert encoder < 1.8e6
    assert whole < 3.1e6
    assert NANO.image_size == tuple(16 * side for side in NANO.grid)
    assert NANO.tracker is not None
    assert NANO.tracker.image_size == NANO.image_size
    assert PRESETS["nano"] is NANO


def test_our_loops_compute_what_the_stock_forward_computes() -> None:
    detector = small_detector()
    _, _, d1, text = small_inputs()
    with torch.no_grad():
        tokens = detector.encode(d1, text)
        ours = detector.decode(tokens, text, detector.start(tokens))
        level = detector.position(d1.shape, d1.device, d1.dtype)
        encoded = detector.detr_encoder(vision_features=[d1], text_features=text, vision_pos_embeds=[level])
        stock = detector.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=text,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            spatial_shapes=encoded.spatial_shapes,
        )
    torch.testing.assert_close(tokens.values, encoded.last_hidden_state)
    torch.testing.assert_close(ours.states, stock.intermediate_hidden_states)
    torch.testing.assert_close(ours.presence, stock.presence_logits.squeeze(-1))


def test_masks_are_those_of_the_stock_mask_decoder() -> None:
    detector = small_detector()
    d4, d2, d1, text = small_inputs()
    with torch.no_grad():
        found = detector(d4, d2, d1, text)
        tokens = detector.encode(d1, text)
        decoded = detector.decode(tokens, text, detector.start(tokens))
        stock = detector.mask_decoder(
            decoder_queries=decoded.states[-1],
            backbone_features=[d4, d2, d1],
            encoder_hidden_states=tokens.values,
            prompt_features=text,
        )
        best = detector.score(decoded.states, text)[-1].topk(4, dim=1).indices
    assert found.boxes.shape == (2, 4, 4)
    assert found.logits.shape == (2, 4)
    assert found.presence.shape == (2, 1)
    torch.testing.assert_close(found.masks[1], stock.pred_masks[1, best[1]])
    torch.testing.assert_close(found.masks[0], stock.pred_masks[0, best[0]])


def test_the_best_queries_come_first_with_their_corners_in_order() -> None:
    found = small_detector()(*small_inputs())
    assert (found.logits.diff(dim=1) <= 0).all()
    assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()


def test_extra_queries_leave_the_learned_ones_alone() -> None:
    detector = small_detector()
    _, _, d1, text = small_inputs()
    extra = Queries(torch.randn(2, 7, 32), torch.rand(2, 7, 4) * 0.5 + 0.2)
    with torch.no_grad():
        tokens = detector.encode(d1, text)
        alone = detector.decode(tokens, text, detector.start(tokens))
        together = detector.decode(tokens, text, detector.start(tokens), extra)
    assert together.states.shape[2] == 17
    torch.testing.assert_close(together.states[:, :, :10], alone.states)
    torch.testing.assert_close(together.presence, alone.presence)


def test_the_heads_of_a_fresh_decoder_look_at_the_four_sides_of_a_box() -> None:
    torch.manual_seed(0)
    four_heads = replace(SMALL, heads=4)
    model = Sam3(CompactConfig(neck=32), four_heads, ("pig",))
    box = torch.tensor([[[0.45, 0.45, 0.6, 0.6]]])  # cells 2..7 of 10
    with torch.no_grad():
        bias = model.detector.detr_decoder._get_rpb_matrix(box, (10, 10)).reshape(4, 10, 10)
    left, right, top, bottom = bias
    assert left[4, 2] > left[4, 7] + 1.0
    assert right[4, 7] > right[4, 2] + 1.0
    assert top[2, 4] > top[7, 4] + 1.0
    assert bottom[7, 4] > bottom[2, 4] + 1.0
    assert (bias[:, 4, 4] > bias[:, 9, 9] + 1.0).all()  # inside beats outside, for all


def test_at_full_size_the_names_are_sam3s_own() -> None:
    with torch.device("meta"):
        names = set(Detector(DetectorConfig()).state_dict())
    expected = {
        "detr_encoder.layers.5.self_attn.q_proj.weight",
        "detr_decoder.layers.5.vision_cross_attn.o_proj.bias",
        "detr_decoder.presence_token.weight",
        "detr_decoder.box_rpb_embed_x.layer2.weight",
        "mask_decoder.pixel_decoder.conv_layers.2.weight",
        "dot_product_scoring.text_proj.weight",
    }
    assert expected <= names


def test_a_neck_that_does_not_fit_the_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="96 wide, the detector 32"):
        Sam3(CompactConfig(neck=96), SMALL, ("pig",))
