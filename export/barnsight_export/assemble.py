"""The networks of a full-size preset, put together from public checkpoints and a distilled student."""

from __future__ import annotations

from pathlib import Path

from barnsight_export.checkpoints import embed_concepts, load, load_dinov3, load_sam3, read
from barnsight_export.errors import DataError
from barnsight_export.networks.behavior import BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.dinov3 import Embedder, EmbedderConfig
from barnsight_export.networks.sam3 import NeckedTrunk, Sam3
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.presets import Preset


def assemble_detection(preset: Preset, student: Path, sam3: Path) -> Sam3:
    """A distilled student (`student.safetensors`) under the heads of SAM 3, prompted with the preset's concepts.

    `sam3` is the folder of the public repository: weights, `config.json`, tokenizer. Raises DataMissingError where a
    file is not there, DataError for one that is damaged or does not fit, or for a concept of another length.
    """
    model = preset.build()
    load_student(student, model)
    if isinstance(model.encoder, NeckedTrunk):
        load_sam3(sam3, "necks", model.encoder)
    load_sam3(sam3, "detector", model.detector)
    try:
        model.adopt_prompts(embed_concepts(sam3, model.concept_names))
    except ValueError as error:
        raise DataError(f"{sam3}: {error}") from error
    return model.eval()


def assemble_tracker(sam3: Path, config: TrackerConfig) -> Tracker:
    """SAM 3's memory tracker; raises as `checkpoints.load_sam3` does."""
    tracker = Tracker(config)
    load_sam3(sam3, "tracker", tracker)
    return tracker.eval()


def assemble_embedder(dinov3: Path, config: EmbedderConfig | None = None) -> Embedder:
    """DINOv3 as the embedder; raises as `checkpoints.load_dinov3` does."""
    embedder = Embedder(config or EmbedderConfig())
    load_dinov3(dinov3, embedder)
    return embedder.eval()


def assemble_behavior(weights: Path, config: BehaviorConfig | None = None) -> BehaviorClassifier:
    """A trained behavior classifier, by the keys of `BehaviorClassifier`; raises as `checkpoints.load` does."""
    classifier = BehaviorClassifier(config or BehaviorConfig())
    load(weights, classifier, read(weights))
    return classifier.eval()


def load_student(path: Path, model: Sam3) -> None:
    """Put a distilled student (`student.safetensors`) in the encoder's place.

    Raises DataMissingError where there is none, DataError where it is damaged or made for another encoder.
    """
    encoder = model.encoder
    load(path, encoder.trunk if isinstance(encoder, NeckedTrunk) else encoder, read(path))
