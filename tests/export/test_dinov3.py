"""The embedder: DINOv3's size, and what it takes from the stock network's tokens."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_export.networks.dinov3 import Embedder, EmbedderConfig

SMALL = EmbedderConfig(width=48, layers=2, heads=3, registers=4, image_size=64)


def small() -> Embedder:
    torch.manual_seed(0)
    return Embedder(SMALL).eval()


def test_at_full_size_it_has_21_6_million_parameters_and_384_dimensions() -> None:
    with torch.device("meta"):
        embedder = Embedder(EmbedderConfig())
        found = embedder(torch.zeros(2, 3, 224, 224))
    assert sum(p.numel() for p in embedder.parameters()) == pytest.approx(21.6e6, abs=0.05e6)
    assert found.cls.shape == found.patch_mean.shape == (2, 384)


@torch.no_grad()
def test_embeddings_are_the_class_token_and_the_mean_of_patches_without_registers() -> None:
    embedder, crops = small(), torch.randn(2, 3, 64, 64)
    found = embedder(crops)
    stock = embedder.backbone(crops)
    assert stock.last_hidden_state.shape == (2, 1 + 4 + 16, 48)
    torch.testing.assert_close(found.cls, stock.pooler_output)
    torch.testing.assert_close(found.patch_mean, stock.last_hidden_state[:, -16:].mean(dim=1))


@torch.no_grad()
def test_an_embedding_depends_on_its_own_crop_alone_and_not_on_the_mode() -> None:
    embedder, crops = small(), torch.randn(3, 3, 64, 64)
    together, alone = embedder(crops), embedder(crops[1:2])
    torch.testing.assert_close(together.cls[1:2], alone.cls)
    assert torch.equal(embedder.train()(crops).patch_mean, together.patch_mean)
