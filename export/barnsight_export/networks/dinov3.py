"""The embedder: DINOv3 ViT-S/16 (Siméoni et al. 2025, arXiv:2508.10104), used as released.

It turns the crop of an animal into what identity and behavior work on. The network is the stock one of `transformers`,
so that the public checkpoint loads by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """Sizes of the network; the defaults are those of DINOv3 ViT-S/16."""

    width: int = 384
    layers: int = 12
    heads: int = 6
    registers: int = 4
    patch: int = 16
    image_size: int = 224


class Embedding(NamedTuple):
    """What a crop looks like as a whole, and what its patches look like on average."""

    cls: Tensor  # (B, width)
    patch_mean: Tensor  # (B, width)


class Embedder(nn.Module):
    """Crops (B, 3, 224, 224) to two embeddings (B, 384) each; crops are normalized with ImageNet's mean and deviation.

    Nothing in it is random, in training either: the stock jitter of positions is off.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config
        stock = DINOv3ViTConfig(
            patch_size=config.patch,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_register_tokens=config.registers,
            image_size=config.image_size,
            pos_embed_rescale=None,
        )
        stock._attn_implementation = "eager"  # what exports
        self.backbone = DINOv3ViTModel(stock)

    def forward(self, crops: Tensor) -> Embedding:
        tokens = self.backbone(crops).last_hidden_state  # (B, 1 + registers + patches, width)
        return Embedding(tokens[:, 0], tokens[:, 1 + self.config.registers :].mean(dim=1))
