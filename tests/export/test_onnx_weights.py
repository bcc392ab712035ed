"""Weights that come back from a model set: training goes on where no checkpoint is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_export.errors import DataError
from barnsight_export.networks.tracker import TrackerConfig, TrackerNeck
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import export_model_set
from barnsight_export.onnx.random_weights import random_tracker
from barnsight_export.onnx.weights import read_weights
from barnsight_export.presets import NANO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PyTorch's exporter warns of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# As wide as nano: the exporter folds narrower networks further.
SMALL = replace(NANO, image_size=(128, 160), grid=(8, 10))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A model set and the network that it was made of."""
    folder = tmp_path_factory.mktemp("set")
    torch.manual_seed(3)
    network = SMALL.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # as after training: norms are no longer all ones
            parameter.add_(0.05 * torch.randn_like(parameter))
    tracker = random_tracker(TrackerConfig(grid=(8, 10), patch=16, width=96, memory_width=24, attention_layers=1))
    more, neck = roles.tracker_graphs(tracker), TrackerNeck(96)
    export_model_set(network, SMALL, folder, trained_on="a test", more=more, tracker=tracker, neck=neck)
    return folder, network


def test_a_network_comes_back_from_its_model_set(shipped: tuple[Path, torch.nn.Module]) -> None:
    folder, network = shipped
    again = SMALL.build().eval()
    again.load_state_dict(read_weights(folder, SMALL))
    image, concept = torch.rand(1, 3, 128, 160), torch.tensor([1])
    with torch.no_grad():
        for expected, found in zip(network(image, concept), again(image, concept), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_set_of_another_preset_is_refused(shipped: tuple[Path, torch.nn.Module]) -> None:
    wider = replace(SMALL, student=replace(SMALL.student, stem=32))
    with pytest.raises(DataError, match="encoder is not one that this version exports for preset 'nano'"):
        read_weights(shipped[0], wider)
