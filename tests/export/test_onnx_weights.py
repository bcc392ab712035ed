"""Weights that come back from a model set: training goes on where no checkpoint is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from barnsight_export.errors import DataError
from barnsight_export.networks.tracker import TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import export_model_set, session_constants
from barnsight_export.onnx.random_weights import random_tracker
from barnsight_export.onnx.weights import read_tracker, read_weights
from barnsight_export.presets import NANO
from barnsight_export.train.detector import DetectorRecipe, DetectorTrainer
from barnsight_export.train.tracker import NeckedTracker, load_tracker
from barnsight_export.train.trainer import CHECKPOINT, average_checkpoints, read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PyTorch's exporter warns of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# As wide as nano, and with cells enough: the exporter folds smaller networks further.
TRACKER = TrackerConfig(grid=(12, 16), patch=16, width=96, memory_width=24, attention_layers=1)
SMALL = replace(NANO, image_size=(192, 256), grid=(12, 16), tracker=TRACKER)

Shipped = tuple[Path, torch.nn.Module, NeckedTracker]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A model set and the networks that it was made of."""
    folder = tmp_path_factory.mktemp("set")
    torch.manual_seed(3)
    network = SMALL.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # as after training: norms are no longer all ones
            parameter.add_(0.05 * torch.randn_like(parameter))
    trained = NeckedTracker(SMALL).eval()
    trained.tracker = random_tracker(TRACKER)
    more = roles.tracker_graphs(trained.tracker)
    export_model_set(network, SMALL, folder, trained_on="a test", more=more, tracker=trained.tracker, neck=trained.neck)
    return folder, network, trained


def test_a_network_comes_back_from_its_model_set(shipped: Shipped) -> None:
    folder, network, _ = shipped
    again = SMALL.build().eval()
    again.load_state_dict(read_weights(folder, SMALL))
    image, concept = torch.rand(1, 3, 192, 256), torch.tensor([1])
    with torch.no_grad():
        for expected, found in zip(network(image, concept), again(image, concept), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_model_set_stands_for_a_run_in_a_mean(shipped: Shipped, tmp_path: Path) -> None:
    folder, network, _ = shipped
    run = DetectorTrainer(SMALL, DetectorRecipe(), tmp_path)
    run.save()
    average_checkpoints([folder, tmp_path / CHECKPOINT], tmp_path / "mean.pt", SMALL)
    mean = read_checkpoint(tmp_path / "mean.pt")
    for name in ("concepts", "detector.detr_decoder.presence_token.weight"):
        expected = (network.state_dict()[name] + run.average.state_dict()[name]) / 2
        torch.testing.assert_close(mean["average"][name], expected, atol=1e-5, rtol=1e-5)
    assert mean["aids"].keys() == run.aids.state_dict().keys()
    with pytest.raises(DataError, match="name the checkpoint of a run among them"):
        average_checkpoints([folder], tmp_path / "sets.pt", SMALL)


def test_a_tracker_comes_back_with_its_neck_and_its_session(shipped: Shipped) -> None:
    folder, _, trained = shipped
    torch.manual_seed(8)
    again = load_tracker(folder, SMALL)
    graphs = (roles.tracker_graphs(model.tracker) for model in (trained, again))
    for expected, found in zip(*graphs, strict=True):
        inputs = expected.draw(1, 2)
        for name, values in expected.run(inputs).items():
            np.testing.assert_allclose(found.run(inputs)[name], values, atol=1e-4, rtol=1e-4)
    for name, values in session_constants(trained.tracker).items():
        np.testing.assert_array_equal(session_constants(again.tracker)[name], values)
    for name, weight in trained.neck.state_dict().items():
        torch.testing.assert_close(again.neck.state_dict()[name], weight)


def test_a_set_without_a_tracker_gives_none(shipped: Shipped) -> None:
    with pytest.raises(DataError, match="has no tracker to start from"):
        read_tracker(shipped[0], replace(SMALL, tracker=None))


def test_the_set_of_another_preset_is_refused(shipped: Shipped) -> None:
    wider = replace(SMALL, student=replace(SMALL.student, stem=32))
    with pytest.raises(DataError, match="encoder is not one that this version exports for preset 'nano'"):
        read_weights(shipped[0], wider)
