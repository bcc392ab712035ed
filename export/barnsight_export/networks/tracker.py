"""SAM 3's memory tracker, one animal a batch row (Carion et al. 2025, arXiv:2511.16719; after SAM 2, arXiv:2408.00714).

`Tracker` holds the stock modules of `transformers` under the attribute names of its `Sam3TrackerVideoModel`, so that
public checkpoints load by key. Four networks over those modules are what runs on a device; they share the tracker's
parameters, train as they are, and compute what the stock methods compute, with fixed shapes and an open batch:

    MemoryAttention   a frame meets what is remembered of each animal
    MaskDecoder       the frame so conditioned becomes a mask, an object pointer and two scores
    MemoryEncoder     a mask becomes a memory
    PromptDecoder     the mask of a new animal becomes its first object pointer

SAM 3 gives the tracker a neck of its own over the trunk. A compact student's is `TrackerNeck`: it narrows the maps that
the student gives the detector.

Letters in shapes: B animals, C width, D memory width, h x w grid, N = hw cells, M memory slots, P pointer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoMaskDecoderConfig,
    Sam3TrackerVideoPromptEncoderConfig,
)
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    NO_OBJ_SCORE,
    Sam3TrackerVideoFeedForward,
    Sam3TrackerVideoMaskDecoder,
    Sam3TrackerVideoMemoryAttention,
    Sam3TrackerVideoMemoryEncoder,
    Sam3TrackerVideoPositionalEmbedding,
    Sam3TrackerVideoPositionEmbeddingSine,
    Sam3TrackerVideoPromptEncoder,
    Sam3TrackerVideoRoPEAttention,
    get_1d_sine_pe,
)

from barnsight_engines.propagator import MemoryLayout
from barnsight_export.networks.student import EncoderMaps

_MASK_CANDIDATES = 3
_CERTAIN_POINTERS = 4
_PLACE_SHARE = 0.1  # how much of the sine position the memory attention adds to a frame
_MASK_SCALE, _MASK_SHIFT = 20.0, -10.0  # of a mask's probabilities before they are encoded


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Widths and depths of a tracker; the defaults are SAM 3's own, for 1008 pixels.

    `grid` is the coarse map's (height, width) and `patch` its stride in pixels, which sets how large a prompt's mask is
    drawn before it is looked at. `memories` counts the temporal positions, one of them for conditioning frames, and
    `pointer_frames` the frames that a pointer's age is measured in. Raises ValueError for a width that cannot be split.
    """

    grid: tuple[int, int] = (72, 72)
    patch: int = 14
    width: int = 256
    memory_width: int = 64
    attention_layers: int = 4
    feed_forward: int = 2048
    decoder_heads: int = 8
    memories: int = 7
    pointer_frames: int = 16

    def __post_init__(self) -> None:
        if self.width % 8 or self.width % self.memory_width:
            raise ValueError(
                f"a tracker's width must be a multiple of 8 and of its memory width {self.memory_width}, "
                f"got {self.width}"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """The picture's (height, width) in pixels."""
        return self.patch * self.grid[0], self.patch * self.grid[1]

    @property
    def mask_size(self) -> tuple[int, int]:
        """A mask's (height, width): masks lie at a quarter of the stride."""
        return 4 * self.grid[0], 4 * self.grid[1]

    @property
    def layout(self) -> MemoryLayout:
        """What is remembered of an animal: as many memories as there are temporal positions, and pointers as far back.

        Of those a few more are of conditioning frames, of whatever age.
        """
        return MemoryLayout(self.grid, self.memories, self.pointer_frames - 1 + _CERTAIN_POINTERS)

    @property
    def tokens_per_pointer(self) -> int:
        """An object pointer is as wide as the network; memories are narrower, so it becomes several tokens."""
        return self.width // self.memory_width

    def stock(self) -> Any:
        """The same as a configuration of `transformers`."""
        width = self.width
        config = Sam3TrackerVideoConfig(
            vision_config={
                "model_type": "sam3_vision_model",
                "backbone_config": {"model_type": "sam3_vit_model", "patch_size": self.patch},
                "fpn_hidden_size": width,
            },
            prompt_encoder_config=Sam3TrackerVideoPromptEncoderConfig(hidden_size=width, patch_size=self.patch),
            mask_decoder_config=Sam3TrackerVideoMaskDecoderConfig(
                hidden_size=width,
                mlp_dim=self.feed_forward,
                num_attention_heads=self.decoder_heads,
                iou_head_hidden_dim=width,
            ),
            image_size=max(self.image_size),  # its pictures are square
            num_maskmem=self.memories,
            max_object_pointers_in_encoder=self.pointer_frames,
            memory_attention_hidden_size=width,
            memory_attention_num_layers=self.attention_layers,
            memory_attention_feed_forward_hidden_size=self.feed_forward,
            memory_attention_dropout=0.0,
            memory_attention_rope_dropout=0.0,
            memory_encoder_hidden_size=width,
            memory_encoder_output_channels=self.memory_width,
            mask_downsampler_embed_dim=width,
            memory_fuser_embed_dim=width,
            memory_fuser_intermediate_dim=4 * width,
        )
        config.memory_attention_rope_feat_sizes = list(self.grid[::-1])
        for part in (config, config.mask_decoder_config):
            part._attn_implementation = "eager"  # what exports
        return config


class Candidates(NamedTuple):
    """The three masks that the mask decoder chooses one of, for training."""

    masks: Tensor  # (B, 3, 4h, 4w) logits
    ious: Tensor  # (B, 3) predicted IoU of each
    obj: Tensor  # (B, 1) logit
    ptr: Tensor  # (B, 3, C) object pointer of each


class Segmented(NamedTuple):
    """What the mask decoder says of each animal."""

    mask: Tensor  # (B, 4h, 4w) logits; -1024 everywhere where the animal is not in the picture
    ptr: Tensor  # (B, C) object pointer
    obj: Tensor  # (B, 1) logit: is the animal in the picture
    iou: Tensor  # (B, 1) predicted IoU of the mask, 0..1


class Tracker(nn.Module):
    """The parameters of SAM 3's tracker under their public names; it has no forward pass of its own."""

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        self.config = config
        stock = config.stock()
        width, narrow = config.width, config.memory_width
        self.shared_image_embedding = Sam3TrackerVideoPositionalEmbedding(stock.prompt_encoder_config)
        self.prompt_encoder = Sam3TrackerVideoPromptEncoder(stock.prompt_encoder_config)
        self.mask_decoder = Sam3TrackerVideoMaskDecoder(stock.mask_decoder_config)
        self.memory_attention = Sam3TrackerVideoMemoryAttention(stock)
        for layer in self.memory_attention.layers:  # the stock layer takes memories of width 64 alone
            layer.cross_attn_image = Sam3TrackerVideoRoPEAttention(stock, kv_in_dim=narrow, rope_k_repeat=True)
        self.memory_encoder = Sam3TrackerVideoMemoryEncoder(stock)
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.no_memory_positional_encoding = nn.Parameter(torch.zeros(1, 1, width))
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(config.memories, 1, 1, narrow))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, width))
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = Sam3TrackerVideoFeedForward(width, width, width, 3)
        self.temporal_positional_encoding_projection_layer = nn.Linear(width, narrow)
        self.occlusion_spatial_embedding_parameter = nn.Parameter(torch.zeros(1, narrow))

    def memory_positions(self) -> Tensor:
        """The temporal position of a memory by its age in frames, (memories, D); row 0 is for conditioning frames."""
        return self.memory_temporal_positional_encoding.flatten(1).roll(1, dims=0)

    def pointer_positions(self, ages: Tensor) -> Tensor:
        """The positions of object pointers `ages` (K,) frames old, one a token: (K · tokens_per_pointer, D)."""
        sines = get_1d_sine_pe(ages / (self.config.pointer_frames - 1), dim=self.config.width)
        positions: Tensor = self.temporal_positional_encoding_projection_layer(sines)
        return positions.repeat_interleave(self.config.tokens_per_pointer, dim=0)

    def at_grid(self, grid: tuple[int, int]) -> Tracker:
        """The same parameters, for maps of `grid` (height, width) cells."""
        other = Tracker(replace(self.config, grid=grid))
        other.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return other.to(self.no_memory_embedding.device)

    def pointer_tokens(self, pointers: Tensor) -> Tensor:
        """Object pointers (B, K, C) as tokens (B, K · tokens_per_pointer, D)."""
        return pointers.reshape(pointers.shape[0], -1, self.config.memory_width)


class TrackerNeck(nn.Module):
    """The tracker's maps from a compact student's; `conv_s0` and `conv_s1` are named as in SAM 3's mask decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, d4: Tensor, d2: Tensor, d1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`t4` (B, C/8, 4h, 4w), `t2` (B, C/4, 2h, 2w) and `t1` (B, C, h, w)."""
        return self.conv_s0(d4), self.conv_s1(d2), self.project(d1)


class TrackedStudent(nn.Module):
    """A compact student with both necks: image in, the maps of detector and tracker out."""

    def __init__(self, student: nn.Module, neck: TrackerNeck) -> None:
        super().__init__()
        self.student, self.neck = student, neck

    def forward(self, image: Tensor) -> EncoderMaps:
        d4, d2, d1 = self.student(image)
        return EncoderMaps(d4, d2, d1, *self.neck(d4, d2, d1))


class MemoryAttention(nn.Module):
    """Condition a frame on each animal's memories.

    Memories stand in M fixed slots and object pointers in P fixed tokens; an additive bias masks those that hold
    nothing, so that a bank can be a ring buffer: slots have no order. Four things differ from the stock module in form
    and not in result: the bias; rotary pairs lie half a width apart, by an order of the query and key rows, instead of
    side by side; memories are averaged before they are widened to values, which one head allows; and all animals share
    the frame until the first of them looks into its memory, so that the first self-attention runs once.
    """

    cos: Tensor
    sin: Tensor
    place: Tensor
    memory_place: Tensor
    half_split: Tensor

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        config, stock = tracker.config, tracker.memory_attention
        self.layers = stock.layers
        self.layer_norm = stock.layer_norm
        cos, sin = stock.rotary_emb(torch.zeros(1), stock.position_ids)  # (1, N, C), each angle twice
        self.register_buffer("cos", cos[0, :, ::2], persistent=False)  # (N, C / 2)
        self.register_buffer("sin", sin[0, :, ::2], persistent=False)
        even = torch.arange(0, config.width, 2)
        self.register_buffer("half_split", torch.cat([even, even + 1]), persistent=False)
        self.register_buffer("place", _sine_places(config.width, config.grid), persistent=False)  # (N, C)
        self.register_buffer("memory_place", _sine_places(config.memory_width, config.grid), persistent=False)

    def forward(self, t1: Tensor, mem: Tensor, mempos: Tensor, ptr: Tensor, ptrpos: Tensor, bias: Tensor) -> Tensor:
        """The conditioned frame (B, C, h, w).

        `t1` (1, C, h, w) is the frame; `mem` (B, M·N, D) holds the memories slot by slot and `mempos` (M, D) the
        slots' temporal positions; `ptr` and `ptrpos` (B, P, D) are pointer tokens and their positions; `bias`
        (B, 1, M·N + P) is 0, or `MASKED` where there is nothing.
        """
        cells, narrow = self.memory_place.shape
        placed = mem.reshape(-1, mempos.shape[0], cells, narrow) + self.memory_place + mempos[:, None]  # (B, M, N, D)
        pointed = ptr + ptrpos
        values = torch.cat([mem, ptr], dim=1)  # (B, M·N + P, D)
        tokens = t1.flatten(2).transpose(1, 2) + _PLACE_SHARE * self.place  # (1, C, h, w) -> (1, N, C)
        for layer in self.layers:
            tokens = tokens + self._look_around(layer.self_attn, layer.layer_norm1(tokens))
            tokens = tokens + self._recall(
                layer.cross_attn_image, layer.layer_norm2(tokens), placed, pointed, values, bias
            )
            tokens = tokens + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(tokens))))
        conditioned: Tensor = self.layer_norm(tokens)
        return conditioned.transpose(1, 2).reshape(-1, *t1.shape[1:])  # (B, N, C) -> (B, C, h, w)

    def _look_around(self, attention: Any, tokens: Tensor) -> Tensor:
        query = self._turn(self._halves(attention.q_proj, tokens)) * attention.scaling
        key = self._turn(self._halves(attention.k_proj, tokens))
        weights = (query @ key.transpose(1, 2)).softmax(-1)  # (B, N, N)
        mixed: Tensor = attention.o_proj(weights @ attention.v_proj(tokens))
        return mixed

    def _recall(
        self, attention: Any, tokens: Tensor, placed: Tensor, pointed: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        query = self._turn(self._halves(attention.q_proj, tokens)) * attention.scaling
        spatial = self._turn(self._halves(attention.k_proj, placed)).flatten(1, 2)  # (B, M·N, C)
        key = torch.cat([spatial, self._halves(attention.k_proj, pointed)], dim=1)  # pointers have no place
        weights = (query @ key.transpose(1, 2) + bias).softmax(-1)  # (B, N, M·N + P)
        recalled: Tensor = attention.o_proj(attention.v_proj(weights @ values))
        return recalled

    def _halves(self, projection: Any, x: Tensor) -> Tensor:
        """Project, with the first of each rotary pair in the first half and the second in the other."""
        return F.linear(x, projection.weight[self.half_split], projection.bias[self.half_split])

    def _turn(self, x: Tensor) -> Tensor:
        """Rotary position encoding (Su et al. 2021) of (..., N, C)."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1)


class _MaskHead(nn.Module):
    """SAM's two-way transformer and hypernetworks over a map: what mask decoder and prompt decoder share.

    The best of three candidates by predicted IoU is chosen before it is drawn, by a product with a one-hot row, which
    batches and draws one mask instead of four.
    """

    position: Tensor
    candidates: Tensor

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.mask_decoder = tracker.mask_decoder
        self.object_pointer_proj = tracker.object_pointer_proj
        self.no_object_pointer = tracker.no_object_pointer
        self.shared_image_embedding = tracker.shared_image_embedding
        self.no_point = tracker.prompt_encoder.not_a_point_embed
        centers = [(torch.arange(side) + 0.5) / side for side in tracker.config.grid]
        y, x = torch.meshgrid(*centers, indexing="ij")
        self.register_buffer("position", torch.stack([x, y], dim=-1), persistent=False)  # (h, w, 2), 0..1
        self.register_buffer("candidates", torch.arange(_MASK_CANDIDATES), persistent=False)

    def transform(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Let the output tokens and the map (B, C, h, w) attend to each other: (B, tokens, C), (B, C, h, w)."""
        head = self.mask_decoder
        no_points = self.no_point.weight.expand(2, -1)  # SAM pads an absent prompt with two points that are none
        tokens = torch.cat([head.obj_score_token.weight, head.iou_token.weight, head.mask_tokens.weight, no_points])
        places = self.shared_image_embedding(self.position).permute(2, 0, 1)[None]  # (1, C, h, w)
        tokens, cells = head.transformer(
            point_embeddings=tokens.expand(image.shape[0], 1, -1, -1),
            image_embeddings=image,
            image_positional_embeddings=places,
            attention_similarity=None,
        )
        return tokens[:, 0], cells[:, 0].transpose(1, 2).reshape(image.shape)

    def choose(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted IoU of the best candidate (B, 1) and its one-hot row (B, 1, 3)."""
        ious = self.mask_decoder.iou_prediction_head(tokens[:, 1])[:, 1:]  # without SAM's single-mask token
        best = ious.argmax(dim=1, keepdim=True)
        hot = (best == self.candidates).to(ious.dtype)
        return (ious * hot).sum(dim=1, keepdim=True), hot.unsqueeze(1)

    def presence(self, tokens: Tensor) -> Tensor:
        """Whether the animal is in the picture, a logit (B, 1)."""
        logit: Tensor = self.mask_decoder.pred_obj_score_head(tokens[:, 0])
        return logit

    def pointer(self, tokens: Tensor, hot: Tensor, present: Tensor) -> Tensor:
        """The object pointer (B, C), or the learned one for an animal that is not `present` (B, 1)."""
        chosen: Tensor = self.object_pointer_proj((hot @ _candidates(tokens)).squeeze(1))
        return torch.where(present, chosen, self.no_object_pointer)


class MaskDecoder(_MaskHead):
    """From a conditioned frame to each animal's mask."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(tracker)
        self.no_mask = tracker.prompt_encoder.no_mask_embed

    def forward(self, pix: Tensor, t4: Tensor, t2: Tensor) -> Segmented:
        """Segment each animal.

        `pix` (B, C, h, w) is the conditioned frame; `t4` (1, C/8, 4h, 4w) and `t2` (1, C/4, 2h, 2w) are its finer maps.
        """
        tokens, cells = self.transform(pix + self.no_mask.weight[..., None, None])
        iou, hot = self.choose(tokens)
        obj = self.presence(tokens)
        present = obj > 0
        mask = self._draw(tokens, hot, cells, t4, t2)
        return Segmented(
            mask=torch.where(present[..., None], mask, NO_OBJ_SCORE),
            ptr=self.pointer(tokens, hot, present),
            obj=obj,
            iou=iou,
        )

    def propose(self, pix: Tensor, t4: Tensor, t2: Tensor) -> Candidates:
        """All three candidates, before one is chosen."""
        tokens, cells = self.transform(pix + self.no_mask.weight[..., None, None])
        everyone = torch.eye(_MASK_CANDIDATES, dtype=pix.dtype, device=pix.device)
        masks = self._draw(tokens, everyone.expand(len(pix), -1, -1), cells, t4, t2)
        return Candidates(
            masks=masks.reshape(len(pix), _MASK_CANDIDATES, *t4.shape[2:]),
            ious=self.mask_decoder.iou_prediction_head(tokens[:, 1])[:, 1:],
            obj=self.presence(tokens),
            ptr=self.object_pointer_proj(_candidates(tokens)),
        )

    def _draw(self, tokens: Tensor, hot: Tensor, cells: Tensor, t4: Tensor, t2: Tensor) -> Tensor:
        """The masks that the rows of `hot` (B, R, 3) choose, one below the other: (B · R, 4h, 4w)."""
        head = self.mask_decoder
        pixels = head.activation(head.upscale_layer_norm(head.upscale_conv1(cells) + t2))
        pixels = head.activation(head.upscale_conv2(pixels) + t4)  # (B, C/8, 4h, 4w)
        brushes = torch.stack(
            [
                brush(token)
                for brush, token in zip(
                    head.output_hypernetworks_mlps[1:], _candidates(tokens).unbind(dim=1), strict=True
                )
            ],
            dim=1,
        )  # (B, 3, C/8)
        masks: Tensor = hot @ brushes @ pixels.flatten(2)  # (B, R, 16N)
        return masks.reshape(-1, *pixels.shape[2:])


class PromptDecoder(_MaskHead):
    """From the mask of a new animal to its first object pointer; the mask itself needs no decoder."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(tracker)
        self.mask_downsample = tracker.mask_downsample
        self.mask_embed = tracker.prompt_encoder.mask_embed
        self.image_size = tracker.config.image_size
        self.mask_size = tracker.config.mask_size

    def forward(self, t1: Tensor, mask: Tensor) -> Tensor:
        """The pointer (B, C) of each animal: the frame is `t1` (1, C, h, w), its `mask` (B, 1, 4h, 4w) logits."""
        drawn = (mask > 0).to(mask.dtype)
        scaled = self.mask_downsample(_resize(drawn, self.image_size))
        tokens, _ = self.transform(t1 + self.mask_embed(_resize(scaled, self.mask_size)))
        _, hot = self.choose(tokens)
        somewhere = mask.amax(dim=(2, 3)) > 0  # (B, 1)
        return self.pointer(tokens, hot, (self.presence(tokens) > 0) & somewhere)


class MemoryEncoder(nn.Module):
    """From a mask to a memory of what the animal looks like and where it is."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.memory_encoder = tracker.memory_encoder
        self.occluded = tracker.occlusion_spatial_embedding_parameter
        self.image_size = tracker.config.image_size
        height, width = tracker.config.mask_size
        self.drawn_size = 4 * height, 4 * width

    def forward(self, t1: Tensor, mask: Tensor, obj: Tensor) -> Tensor:
        """The memory (B, N, D) of each animal in the frame `t1` (1, C, h, w).

        `mask` (B, 1, 4h, 4w) and `obj` (B, 1) are logits. The mask of a conditioning frame, which is certain, is given
        as large logits of both signs. SAM 3 draws a mask at the picture's size before it encodes it, so that two
        resizes follow each other; both enlarge, so they need no antialiasing.
        """
        stock = self.memory_encoder
        certainty = _resize(_resize(mask, self.image_size), self.drawn_size).sigmoid() * _MASK_SCALE + _MASK_SHIFT
        fused = stock.feature_projection(t1) + stock.mask_downsampler(certainty)
        memory: Tensor = stock.projection(stock.memory_fuser(fused))  # (B, D, h, w)
        return memory.flatten(2).transpose(1, 2) + torch.where(obj > 0, 0.0, self.occluded)[:, None]


def _candidates(tokens: Tensor) -> Tensor:
    """The output tokens of the three candidate masks, (B, 3, C): after presence, IoU and SAM's single-mask token."""
    return tokens[:, 3 : 3 + _MASK_CANDIDATES]


def _resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if mask.shape[-2:] == size:
        return mask
    return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


def _sine_places(width: int, grid: tuple[int, int]) -> Tensor:
    """Sine position encodings (N, width) of the cells of a grid."""
    sine = Sam3TrackerVideoPositionEmbeddingSine(num_position_features=width // 2, normalize=True)
    places: Tensor = sine(torch.Size((1, width, *grid)), torch.device("cpu"), torch.float32)
    return places.flatten(2).transpose(1, 2)[0]
