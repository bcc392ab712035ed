"""SAM 3's necks and concept detector over a student (Carion et al. 2025, arXiv:2511.16719).

Layers, heads, mask decoder and scoring are the stock modules of `transformers`, under the attribute names of its
`Sam3Model`, so that public checkpoints load by key. Only the loops over them are written anew: training decodes extra
queries that skip self-attention, and the exported graph keeps the best queries before it draws their masks.

SAM 3's queries start from learned places. A small detector's may start from places that its encoder proposes instead
(Zhu et al. 2021, arXiv:2010.04159, two-stage): few learned places never cover a row of animals side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam3.configuration_sam3 import (
    Sam3Config,
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3MaskDecoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
)
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrEncoder,
    Sam3DotProductScoring,
    Sam3MaskDecoder,
    Sam3SinePositionEmbedding,
    Sam3VisionNeck,
    inverse_sigmoid,
)

from barnsight_export.networks.compact import CompactConfig, CompactStudent, PyramidEncoder
from barnsight_export.networks.student import (
    EncoderMaps,
    NeckStudent,
    NeckStudentConfig,
    TrunkStudent,
    TrunkStudentConfig,
)
from barnsight_export.networks.teacher import Teacher, TeacherConfig

PROMPT_TOKENS = 4
_ANCHOR_SIDE = 0.15  # a proposed box before it is refined, as a share of the picture

PyramidConfig = CompactConfig | TeacherConfig  # of nano's scale: trained here, and of use to the detector alone
EncoderConfig = PyramidConfig | TrunkStudentConfig | NeckStudentConfig


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """Widths and depths of a detector; the defaults are SAM 3's own."""

    width: int = 256
    heads: int = 8
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 200
    upsampling_stages: int = 3
    dropout: float = 0.1
    top_k: int = 64
    proposals: bool = False  # queries start where the encoder proposes an animal, instead of at learned places


class Queries(NamedTuple):
    """Queries before the first decoder layer: contents (B, Q, C) and reference boxes (B, Q, 4), normalized cxcywh."""

    content: Tensor
    boxes: Tensor


class Proposals(NamedTuple):
    """Whether an animal's center lies in each cell, as logits (B, N), and its box (B, N, 4), normalized cxcywh.

    The cells are those of a `grid` of (rows, columns), row by row.
    """

    centers: Tensor
    boxes: Tensor
    grid: tuple[int, int]


class Tokens(NamedTuple):
    """The coarse map once it has met itself and the prompt: N tokens, one a cell of the `grid` (rows, columns)."""

    values: Tensor  # (B, N, C)
    positions: Tensor  # (B, N, C)
    grid: tuple[int, int]


class Decoded(NamedTuple):
    """What each of the L decoder layers says; the T queries are the detector's own, then any extra ones."""

    states: Tensor  # (L, B, T, C)
    boxes: Tensor  # (L, B, T, 4) normalized cxcywh
    presence: Tensor  # (L, B) logits


class Pixels(NamedTuple):
    """Pixel embeddings for masks (B, C, 4h, 4w) and the semantic logits (B, 4h, 4w), over a grid of (h, w) tokens."""

    instance: Tensor
    semantic: Tensor


class Detection(NamedTuple):
    """The K best queries, as the exported graph returns them."""

    boxes: Tensor  # (B, K, 4) normalized xyxy
    logits: Tensor  # (B, K)
    presence: Tensor  # (B, 1) logit
    masks: Tensor  # (B, K, 4h, 4w) logits


class Proposer(nn.Module):
    """What each of the encoder's tokens says by itself: a center's heat map, boxes, and what a query there begins as.

    A query's content follows from its token and not from its rank, so that a small change of the map is a small change
    of the queries, whatever places they change.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = nn.Linear(width, 5)  # is a center here, and its box
        nn.init.constant_(heads.bias[:1], -3.0)
        self.heads = nn.Sequential(nn.Linear(width, width), nn.ReLU(), heads)
        self.content = nn.Linear(width, width)

    def forward(self, tokens: Tokens) -> Proposals:
        """Read proposals from the tokens."""
        output = self.heads(tokens.values)
        rows, columns = (torch.arange(side, device=output.device) for side in tokens.grid)
        sides = torch.tensor(tokens.grid[::-1], device=output.device)
        center = (torch.cartesian_prod(rows, columns).flip(1) + 0.5) / sides  # (N, 2) x, y
        anchors = torch.cat([center, torch.full_like(center, _ANCHOR_SIDE)], dim=1)
        boxes = (output[..., 1:] + inverse_sigmoid(anchors)).sigmoid()
        return Proposals(output[..., 0], boxes, tokens.grid)


class Detector(nn.Module):
    """DETR encoder, DETR decoder with presence token and box refinement, mask decoder, dot-product scoring."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        transformer: dict[str, Any] = {
            "hidden_size": config.width,
            "num_attention_heads": config.heads,
            "intermediate_size": config.feed_forward,
            "dropout": config.dropout,
        }
        encoder = Sam3DETREncoderConfig(num_layers=config.encoder_layers, **transformer)
        decoder = Sam3DETRDecoderConfig(num_layers=config.decoder_layers, num_queries=config.queries, **transformer)
        mask = Sam3MaskDecoderConfig(
            hidden_size=config.width,
            num_attention_heads=config.heads,
            num_upsampling_stages=config.upsampling_stages,
        )
        scoring = Sam3Config(detr_decoder_config=decoder)
        for part in (encoder, decoder, mask):
            part._attn_implementation = "eager"  # what exports, and the faster backward on a CPU
        self.detr_encoder = Sam3DetrEncoder(encoder)
        self.detr_decoder = Sam3DetrDecoder(decoder)
        self.mask_decoder = Sam3MaskDecoder(mask)
        self.dot_product_scoring = Sam3DotProductScoring(scoring)
        self.position = Sam3SinePositionEmbedding(config.width // 2, normalize=True)
        self.proposer = Proposer(config.width) if config.proposals else None
        if config.proposals:
            del self.detr_decoder.reference_points, self.detr_decoder.query_embed

    def forward(self, d4: Tensor, d2: Tensor, d1: Tensor, text: Tensor) -> Detection:
        """Detect the animals that the prompt `text` (B, T, C) names in the encoder's maps."""
        tokens = self.encode(d1, text)
        decoded = self.decode(tokens, text, self.start(tokens))
        logits, best = self.score(decoded.states[-1:], text)[0].topk(self.config.top_k, dim=1)  # (B, K)
        states = _gather(decoded.states[-1], best)
        chosen = _gather(decoded.boxes[-1], best)
        center, size = chosen[..., :2], chosen[..., 2:]
        boxes = torch.cat([center - size / 2, center + size / 2], dim=-1)
        pixels = self.embed_pixels(d4, d2, d1, tokens, text)
        masks = torch.einsum("bkc,bchw->bkhw", self.mask_decoder.mask_embedder(states), pixels.instance)
        return Detection(boxes, logits, decoded.presence[-1].unsqueeze(1), masks)

    def encode(self, d1: Tensor, text: Tensor) -> Tokens:
        """Let the coarse map (B, C, h, w) attend to itself and to the prompt."""
        positions = self.position(d1.shape, d1.device, d1.dtype).flatten(2).transpose(1, 2)
        values = d1.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)
        for layer in self.detr_encoder.layers:
            values = layer(values, prompt_feats=text, vision_pos_encoding=positions)
        return Tokens(values, positions, (d1.shape[2], d1.shape[3]))

    def start(self, tokens: Tokens) -> Queries:
        """The queries before the first layer: at learned places, or at the likeliest centers on the tokens."""
        if self.proposer is None:
            decoder, batch = self.detr_decoder, tokens.values.shape[0]
            boxes = decoder.reference_points.weight.sigmoid()
            return Queries(*(value.expand(batch, -1, -1) for value in (decoder.query_embed.weight, boxes)))
        proposals = self.proposer(tokens)
        likeliest = proposals.centers.topk(self.config.queries, dim=1).indices
        content = self.proposer.content(_gather(tokens.values, likeliest))
        return Queries(content, _gather(proposals.boxes, likeliest).detach())

    def decode(self, tokens: Tokens, text: Tensor, start: Queries, extra: Queries | None = None) -> Decoded:
        """Refine the queries, and any extra ones, layer by layer."""
        decoder = self.detr_decoder
        values, positions, grid = tokens
        batch = values.shape[0]
        queries, boxes = start
        attending = 1 + queries.shape[1]
        if extra is not None:
            queries = torch.cat([queries, extra.content], dim=1)
            boxes = torch.cat([boxes, extra.boxes], dim=1)
        hidden = torch.cat([decoder.presence_token.weight.expand(batch, -1, -1), queries], dim=1)
        all_states, all_boxes, all_presence = [], [], []
        for layer in decoder.layers:
            where = decoder.ref_point_head(decoder.position_encoding.encode_boxes(boxes))
            # The presence token stands first; it has no position and looks everywhere alike.
            where = F.pad(where, (0, 0, 1, 0))
            bias = F.pad(decoder._get_rpb_matrix(boxes, grid), (0, 0, 1, 0))
            hidden = _decoder_layer(layer, hidden, where, text, values, positions, bias, attending)
            states = decoder.output_layer_norm(hidden[:, 1:])
            refined = (decoder.box_head(states) + inverse_sigmoid(boxes)).sigmoid()
            boxes = refined.detach()
            presence = decoder.presence_head(decoder.presence_layer_norm(hidden[:, 0])).squeeze(-1)
            limit = decoder.clamp_presence_logit_max_val
            all_states.append(states)
            all_boxes.append(refined)
            all_presence.append(presence.clamp(-limit, limit))
        return Decoded(torch.stack(all_states), torch.stack(all_boxes), torch.stack(all_presence))

    def score(self, states: Tensor, text: Tensor) -> Tensor:
        """How well each query fits the prompt: (L, B, T, C) -> logits (L, B, T)."""
        logits: Tensor = self.dot_product_scoring(states, text)
        return logits.squeeze(-1)

    def embed_pixels(self, d4: Tensor, d2: Tensor, d1: Tensor, tokens: Tokens, text: Tensor) -> Pixels:
        """Climb from the prompted tokens through the finer maps to stride 4."""
        head = self.mask_decoder
        prompted, _ = head.prompt_cross_attn(head.prompt_cross_attn_norm(tokens.values), text, text)
        pixels = head._embed_pixels([d4, d2, d1], tokens.values + head.prompt_cross_attn_dropout(prompted))
        return Pixels(head.instance_projection(pixels), head.semantic_projection(pixels).squeeze(1))


class NeckedTrunk(nn.Module):
    """A student in the place of SAM 3's trunk, under the stock necks of detector and tracker.

    Input `image` (B, 3, S, S), normalized with mean and standard deviation 0.5; outputs `EncoderMaps`. `conv_s0` and
    `conv_s1` are those of the tracker's mask decoder, which so receives its fine maps narrowed already.
    """

    def __init__(self, config: TrunkStudentConfig) -> None:
        super().__init__()
        stock = Sam3VisionConfig(backbone_config=Sam3ViTConfig(hidden_size=config.width), fpn_hidden_size=config.neck)
        self.trunk = TrunkStudent(config)
        self.neck = Sam3VisionNeck(stock)
        self.tracker_neck = Sam3VisionNeck(stock)
        self.conv_s0 = nn.Conv2d(config.neck, config.neck // 8, 1)
        self.conv_s1 = nn.Conv2d(config.neck, config.neck // 4, 1)
        for neck in (self.neck, self.tracker_neck):
            neck.fpn_layers[3].requires_grad_(False)  # the map at G/2, which nothing reads

    def forward(self, image: Tensor) -> EncoderMaps:
        trunk = self.trunk(image)
        d4, d2, d1 = (layer(trunk) for layer in self.neck.fpn_layers[:3])
        t4, t2, t1 = (layer(trunk) for layer in self.tracker_neck.fpn_layers[:3])
        return EncoderMaps(d4, d2, d1, self.conv_s0(t4), self.conv_s1(t2), t1)


def build_encoder(config: EncoderConfig) -> PyramidEncoder | NeckedTrunk | NeckStudent:
    """The encoder that `config` describes, up to the maps that the heads read, with fresh weights."""
    if isinstance(config, PyramidConfig):
        return build_pyramid(config)
    return NeckedTrunk(config) if isinstance(config, TrunkStudentConfig) else NeckStudent(config)


def build_pyramid(config: PyramidConfig) -> PyramidEncoder:
    """An encoder of nano's scale, with fresh weights."""
    return CompactStudent(config) if isinstance(config, CompactConfig) else Teacher(config)


class Sam3(nn.Module):
    """A student encoder, SAM 3's detector, and one prompt per concept, learned or computed, for the text encoder."""

    def __init__(
        self,
        student: EncoderConfig,
        detector: DetectorConfig,
        concepts: Sequence[str],
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        super().__init__()
        if student.neck != detector.width:
            raise ValueError(f"the neck is {student.neck} wide, the detector {detector.width}: make them equal")
        self.concept_names = tuple(concepts)
        self.encoder = build_encoder(student)
        self.detector = Detector(detector)
        self.concepts = nn.Parameter(torch.randn(len(concepts), prompt_tokens, detector.width))
        initialize(self.detector)
        spread_queries(self.detector)
        aim_heads(self.detector)

    def forward(self, image: Tensor, concept: Tensor) -> Detection:
        """Detect concept number `concept` (B,) in `image` (B, 3, H, W), normalized."""
        d4, d2, d1 = self.encoder(image)[:3]
        detection: Detection = self.detector(d4, d2, d1, self.concepts[concept])
        return detection

    @torch.no_grad()
    def adopt_prompts(self, prompts: Mapping[str, Tensor]) -> None:
        """Take each concept's text embedding (T, C) as its prompt; ValueError where one is missing or misshapen."""
        for prompt, name in zip(self.concepts, self.concept_names, strict=True):
            found = tuple(prompts[name].shape) if name in prompts else None
            if found != tuple(prompt.shape):
                raise ValueError(
                    f"the prompt of '{name}' must be {tuple(prompt.shape)} (tokens, width), got {found}: "
                    "embed it, or choose a concept of as many tokens"
                )
            prompt.copy_(prompts[name])


@torch.no_grad()
def initialize(detector: Detector) -> None:
    """Weights that keep a signal's size (Glorot): the stock 0.02 suits wide layers only. Boxes start at rest."""
    for module in detector.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(detector.detr_decoder.box_head.layer3.weight)


@torch.no_grad()
def spread_queries(detector: Detector, box_size: float = 0.2) -> None:
    """Start the learned queries as equal boxes on a low-discrepancy pattern (Roberts' R2), told apart by content."""
    decoder = detector.detr_decoder
    if detector.proposer is not None:  # alike at first, wherever they start
        nn.init.zeros_(detector.proposer.content.weight)
        nn.init.normal_(detector.proposer.content.bias, std=0.5)
        return
    nn.init.normal_(decoder.query_embed.weight, std=0.5)
    order = torch.arange(1, detector.config.queries + 1, dtype=torch.float64)
    plastic = 1.32471795724474602596
    centers = torch.stack([(order / plastic) % 1, (order / plastic**2) % 1], dim=1)
    boxes = torch.cat([0.05 + 0.9 * centers, torch.full_like(centers, box_size)], dim=1)
    decoder.reference_points.weight.copy_(boxes.logit())


@torch.no_grad()
def aim_heads(detector: Detector, outside: float = 6.0, across: float = 5.0) -> None:
    """Start the box-relative position bias so that heads look inside their box, each toward one of its four sides.

    The stock bias is an MLP of the signed log distances to a box's two edges along each axis. Its first four hidden
    units become the distances before the first edge, beyond the second, past the first and short of the second. Heads
    that see different sides tell at once in which direction a box is off; values alone carry no positions.
    """
    decoder = detector.detr_decoder
    sides = torch.arange(detector.config.heads) % 4  # left, right, top, bottom
    for axis, mlp in enumerate((decoder.box_rpb_embed_x, decoder.box_rpb_embed_y)):
        mlp.layer1.weight[:4] = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
        mlp.layer1.bias[:4] = 0.0
        mlp.layer2.weight[:, :2] = -outside
        mlp.layer2.weight[:, 2] = -across * (sides == 2 * axis)
        mlp.layer2.weight[:, 3] = -across * (sides == 2 * axis + 1)


def _decoder_layer(
    layer: Any,
    hidden: Tensor,
    where: Tensor,
    text: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor,
    attending: int,
) -> Tensor:
    """One stock decoder layer in which only the first `attending` rows of `hidden` attend to one another."""
    first = hidden[:, :attending]
    queries = first + where[:, :attending]
    attended, _ = layer.self_attn(queries, queries, first)
    first = first + layer.self_attn_dropout(attended)
    hidden = layer.self_attn_layer_norm(torch.cat([first, hidden[:, attending:]], dim=1))
    attended, _ = layer.text_cross_attn(hidden + where, text, text)
    hidden = layer.text_cross_attn_layer_norm(hidden + layer.text_cross_attn_dropout(attended))
    attended, _ = layer.vision_cross_attn(hidden + where, values + positions, values, attention_mask=bias)
    hidden = layer.vision_cross_attn_layer_norm(hidden + layer.vision_cross_attn_dropout(attended))
    updated: Tensor = layer.mlp_layer_norm(hidden + layer.mlp_dropout(layer.mlp(hidden)))
    return updated


def normalize(image: Tensor) -> Tensor:
    """Bytes (B, H, W, 3) RGB to the network's input (B, 3, H, W), mean and standard deviation 0.5."""
    return image.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each batch entry: (B, T, C), (B, K) -> (B, K, C)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
