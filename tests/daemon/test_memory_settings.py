"""What a camera's file may ask of memory, given the model set: each refusal names file, value and next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from barnsight_engines.detector import Detections
from barnsight_engines.propagator import MemoryTracker
from barnsight_engines.scripted_backend import scripted_model_set, scripted_tracker
from barnsightd.app import camera_settings
from barnsightd.config import Config, load_config
from barnsightd.errors import ConfigError
from barnsightd.pipeline import CameraSettings

EMPTY = Detections.empty((720, 1280), (80, 80))


def config_with(folder: Path, tracking: str) -> Config:
    (folder / "cameras.d").mkdir()
    camera = f"version: 1\nname: pen\nsource: {folder}/pen.mp4\nspecies: pig\ntracking: {tracking}\n"
    (folder / "cameras.d/pen.yaml").write_text(camera)
    site = f"version: 1\nmodels: {{path: {folder}}}\nstorage: {{path: {folder}/store}}\n"
    (folder / "barnsight.yaml").write_text(site)
    return load_config(folder / "barnsight.yaml")


def settings(folder: Path, tracking: str, tracker: MemoryTracker | None) -> CameraSettings:
    models = scripted_model_set([EMPTY], tracker=tracker)
    return camera_settings(config_with(folder, tracking), models)["pen"]


def test_memory_is_lazy_where_there_is_a_tracker_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    assert settings(tmp_path, "{}", scripted_tracker()).tracking.lazy


def test_a_set_without_a_tracker_is_enough_for_auto(tmp_path: Path) -> None:
    assert settings(tmp_path, "{}", None).remembers  # it would, were there a tracker


def test_what_was_asked_for_is_what_is_set(tmp_path: Path) -> None:
    given = settings(tmp_path, "{memory: full, detect_every: 5, memory_slots: 4}", scripted_tracker())
    assert given.remembers
    assert (given.tracking.lazy, given.tracking.detect_every, given.tracking.memory_slots) == (False, 5, 4)


def test_memory_can_be_switched_off(tmp_path: Path) -> None:
    assert not settings(tmp_path, "{memory: 'off', memory_mb: 1}", scripted_tracker()).remembers


@pytest.mark.parametrize(
    ("tracking", "has_tracker", "message"),
    [
        ("{memory: full}", False, r"pen\.yaml: tracking\.memory: model set 'scripted' has no tracker, got 'full'; set"),
        ("{memory_slots: 9}", True, r"pen\.yaml: tracking\.memory_slots: memory slots must be 2 to 7, got 9"),
        (
            "{memory_mb: 1, max_objects: 200}",
            True,
            r"pen\.yaml: tracking\.memory_mb: the memory of 200 animals takes \d+ MB, more than 1; raise it, or lower",
        ),
    ],
)
def test_a_memory_that_the_model_set_cannot_give(
    tmp_path: Path, tracking: str, has_tracker: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        settings(tmp_path, tracking, scripted_tracker() if has_tracker else None)
    assert refused.value.exit_code == 78
