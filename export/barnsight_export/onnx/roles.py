"""The engines by role, one function each: which network, which tensors, which of them have an open batch.

    encoder           image (1, 3, H, W)                                    -> d4, d2, d1 [, t4, t2, t1]
    detector          d4, d2, d1, text (1, T, C)                            -> boxes, logits, presence, masks
    memory_attention  t1, mem (B, M·N, D), mempos (M, D), ptr and ptrpos (B, P, D), bias (B, 1, M·N + P) -> pix
    mask_decoder      pix (B, C, h, w), t4, t2                              -> mask, ptr, obj, iou
    memory_encoder    t1, mask (B, 1, 4h, 4w), obj (B, 1)                   -> mem (B, N, D)
    prompt_decoder    t1, mask (B, 1, 4h, 4w)                               -> ptr (B, C)
    embedder          crops (B, 3, 224, 224)                                -> cls (B, E), patch_mean (B, E)
    behavior          window (B, T, E)                                      -> logits (B, 9)

Maps: `d4`, `d2`, `d1` are (1, C, 4h, 4w), (1, C, 2h, 2w) and (1, C, h, w) for the detector; `t4`, `t2`, `t1` have
C/8, C/4 and C channels for the tracker. N = hw cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from barnsight_engines.propagator import MASKED
from barnsight_export.networks.behavior import BehaviorClassifier
from barnsight_export.networks.sam3 import PROMPT_TOKENS, Detection, Detector
from barnsight_export.networks.tracker import (
    MaskDecoder,
    MemoryAttention,
    MemoryEncoder,
    PromptDecoder,
    Segmented,
    Tracker,
    TrackerConfig,
)
from barnsight_export.onnx.graph import Graph

DETECTOR_MAPS = ("d4", "d2", "d1")
TRACKER_MAPS = ("t4", "t2", "t1")
CROP_SIZE = 224

_MANY_CELLS = 2000  # from here on the scores of one animal's memory attention fill more than a GB


def encoder(network: nn.Module, image_size: tuple[int, int], outputs: tuple[str, ...] = DETECTOR_MAPS) -> Graph:
    """The image encoder: a student, with the necks where it stands at the trunk's place."""

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:  # noqa: ARG001 - one image at a time
        return {"image": torch.rand((1, 3, *image_size), generator=_generator(seed)) * 2 - 1}

    return Graph("encoder", network, draw, outputs)


def detector(network: Detector, grid: tuple[int, int], text_tokens: int = PROMPT_TOKENS) -> Graph:
    """The concept detector; `text_tokens` is the length of every concept's prompt."""

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:  # noqa: ARG001 - one image at a time
        noise, width = _generator(seed), network.config.width
        maps = {f"d{k}": torch.randn((1, width, k * grid[0], k * grid[1]), generator=noise) for k in (4, 2, 1)}
        return {**maps, "text": torch.randn((1, text_tokens, width), generator=noise)}

    return Graph("detector", network, draw, Detection._fields)


def memory_attention(tracker: Tracker) -> Graph:
    """The frame conditioned on the memories and the tokens of the object pointers of each animal."""
    config = tracker.config
    cells, slots = config.layout.cells, config.layout.slots
    narrow, tokens = config.memory_width, config.layout.pointers * config.tokens_per_pointer

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        noise = _generator(seed)
        empty = torch.rand((batch, 1, slots + tokens), generator=noise) < 0.2
        empty[..., 0] = False  # an animal without any memory does not come here
        spread = torch.tensor([cells] * slots + [1] * tokens)
        return {
            "t1": _map(config, 1, noise),
            "mem": torch.randn((batch, slots * cells, narrow), generator=noise),
            "mempos": torch.randn((slots, narrow), generator=noise),
            "ptr": torch.randn((batch, tokens, narrow), generator=noise),
            "ptrpos": torch.randn((batch, tokens, narrow), generator=noise),
            "bias": (empty * MASKED).repeat_interleave(spread, dim=2),
        }

    return Graph(
        "memory_attention",
        MemoryAttention(tracker),
        draw,
        ("pix",),
        ("mem", "ptr", "ptrpos", "bias"),
        judged_batch=3 if cells < _MANY_CELLS else 1,
        reorders_weights=True,
    )


def mask_decoder(tracker: Tracker) -> Graph:
    """Mask, object pointer and scores of each animal."""
    config = tracker.config

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        noise = _generator(seed)
        pix = torch.randn((batch, config.width, *config.grid), generator=noise)
        return {"pix": pix, "t4": _map(config, 4, noise), "t2": _map(config, 2, noise)}

    return Graph("mask_decoder", MaskDecoder(tracker), draw, Segmented._fields, ("pix",))


def memory_encoder(tracker: Tracker) -> Graph:
    """The memory of each animal's mask."""

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        noise = _generator(seed)
        return {
            "t1": _map(tracker.config, 1, noise),
            "mask": _masks(tracker.config, batch, noise),
            "obj": torch.randn((batch, 1), generator=noise),
        }

    return Graph("memory_encoder", MemoryEncoder(tracker), draw, ("mem",), ("mask", "obj"))


def prompt_decoder(tracker: Tracker) -> Graph:
    """The first object pointer of each new animal."""

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        noise = _generator(seed)
        return {"t1": _map(tracker.config, 1, noise), "mask": _masks(tracker.config, batch, noise)}

    return Graph("prompt_decoder", PromptDecoder(tracker), draw, ("ptr",), ("mask",))


def embedder(network: nn.Module) -> Graph:
    """The appearance of each crop."""

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        return {"crops": torch.randn((batch, 3, CROP_SIZE, CROP_SIZE), generator=_generator(seed))}

    return Graph("embedder", network, draw, ("cls", "patch_mean"), ("crops",))


def behavior(network: BehaviorClassifier) -> Graph:
    """What each animal does, by its window of embeddings."""
    config = network.config

    def draw(seed: int, batch: int) -> Mapping[str, Tensor]:
        return {"window": torch.randn((batch, config.window, config.features), generator=_generator(seed))}

    return Graph("behavior", network, draw, ("logits",), ("window",))


def tracker_graphs(tracker: Tracker) -> tuple[Graph, ...]:
    """The four engines of the memory tracker, in the order in which they run."""
    return memory_attention(tracker), mask_decoder(tracker), memory_encoder(tracker), prompt_decoder(tracker)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _map(config: TrackerConfig, scale: int, noise: torch.Generator) -> Tensor:
    """A map `t1`, `t2` or `t4` of noise."""
    channels, (height, width) = {1: config.width, 2: config.width // 4, 4: config.width // 8}[scale], config.grid
    return torch.randn((1, channels, scale * height, scale * width), generator=noise)


def _masks(config: TrackerConfig, batch: int, noise: torch.Generator) -> Tensor:
    """Logits of one ellipse an animal, somewhere in the picture."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in config.mask_size)
    x, y = torch.rand((2, batch, 1, 1, 1), generator=noise)
    width, height = 0.05 + 0.2 * torch.rand((2, batch, 1, 1, 1), generator=noise)
    outside: Tensor = ((columns - x) / width) ** 2 + ((rows[:, None] - y) / height) ** 2
    return 10 * (1 - outside)
