"""The behavior classifier: the paper's size, and a window that is read in its order."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from barnsight_export.networks.behavior import BEHAVIORS, BehaviorClassifier, BehaviorConfig
from barnsight_export.onnx.random_weights import scatter
from barnsight_export.simbarn.ethogram import Behavior


def small() -> BehaviorClassifier:
    torch.manual_seed(0)
    return scatter(BehaviorClassifier(BehaviorConfig(window=4, features=6, hidden=5)))


def test_it_has_the_papers_size_and_the_simulated_barns_names() -> None:
    classifier = BehaviorClassifier(BehaviorConfig())
    assert sum(p.numel() for p in classifier.parameters()) == 560_393
    assert classifier(torch.zeros(2, 3, 384)).shape == (2, 9)
    assert {*BEHAVIORS} == {behavior.value for behavior in Behavior} - {"walking"}  # the paper's standing


@torch.no_grad()
def test_what_came_first_matters_and_other_animals_do_not() -> None:
    classifier, windows = small(), torch.randn(3, 4, 6)
    logits = classifier(windows)
    torch.testing.assert_close(classifier(windows[1:2]), logits[1:2])
    assert not torch.allclose(classifier(windows.flip(1)), logits, atol=1e-3)


@torch.no_grad()
def test_both_ends_of_the_window_are_read() -> None:
    classifier, window = small(), torch.randn(1, 4, 6)
    for moment in (0, 3):
        other = window.clone()
        other[:, moment] += 1
        assert not torch.allclose(classifier(other), classifier(window), atol=1e-3)
