"""Public checkpoints: files of the public layout load by key, and whatever does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file
from transformers import CLIPTextConfig
from transformers.models.sam3.configuration_sam3 import (
    Sam3Config,
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3GeometryEncoderConfig,
    Sam3MaskDecoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
)
from transformers.models.sam3.modeling_sam3 import Sam3Model, Sam3VisionModel, Sam3VisionNeck
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoModel

from barnsight_export import checkpoints
from barnsight_export.assemble import assemble_behavior, assemble_detection, assemble_embedder, assemble_tracker
from barnsight_export.checkpoints import TextEncoder, embed_concepts, load_dinov3, load_sam3, load_tiny_vit, read
from barnsight_export.cli import main
from barnsight_export.errors import DataError, DataMissingError
from barnsight_export.networks.behavior import BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.dinov3 import Embedder, EmbedderConfig
from barnsight_export.networks.sam3 import Detector, DetectorConfig, NeckedTrunk
from barnsight_export.networks.student import TrunkStudent, TrunkStudentConfig
from barnsight_export.networks.tinyvit import TinyViT, TinyViTConfig
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.presets import Preset

Weights = dict[str, torch.Tensor]

TRUNK = TinyViTConfig(widths=(8, 16, 16, 32), heads=(2, 2, 4), windows=(2, 2, 2), depths=(1, 1, 1, 1))
STUDENT = TrunkStudentConfig(TRUNK, lateral=16, width=32, neck=32, grid=4)
DETECTOR = DetectorConfig(
    width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=1, queries=5, upsampling_stages=2, top_k=2
)
TRACKER = TrackerConfig(
    grid=(4, 4), width=32, memory_width=8, attention_layers=1, feed_forward=64, decoder_heads=2, memories=3
)
EMBEDDER = EmbedderConfig(width=24, layers=2, heads=2)
SMALL = Preset("small", 32, 4, ("pig", "sow"), STUDENT, DETECTOR, prompt_tokens=3)


def sam3_config() -> Sam3Config:
    """SAM 3 with the smallest parts that fit together."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    vit = Sam3ViTConfig(**sizes, num_hidden_layers=1, image_size=56, pretrain_image_size=56, window_size=2)
    return Sam3Config(
        vision_config=Sam3VisionConfig(backbone_config=vit, fpn_hidden_size=32),
        text_config=CLIPTextConfig(
            **sizes, vocab_size=20, num_hidden_layers=2, projection_dim=16, max_position_embeddings=8, eos_token_id=1
        ),
        geometry_encoder_config=Sam3GeometryEncoderConfig(**sizes, num_layers=1),
        detr_encoder_config=Sam3DETREncoderConfig(**sizes, num_layers=1),
        detr_decoder_config=Sam3DETRDecoderConfig(**sizes, num_layers=1, num_queries=5),
        mask_decoder_config=Sam3MaskDecoderConfig(hidden_size=32, num_attention_heads=2, num_upsampling_stages=2),
    )


def sam3_weights() -> Weights:
    """Random weights under the public names of facebook/sam3."""
    torch.manual_seed(0)
    config = sam3_config()
    parts = {
        "detector_model": Sam3Model(config),
        "tracker_neck": Sam3VisionNeck(config.vision_config),
        "tracker_model": Tracker(TRACKER),
    }
    names = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return {key: torch.rand_like(value) for key, value in names.items()}


def tiny_vit_weights(config: TinyViTConfig = TRUNK) -> Weights:
    """Random weights as timm writes them: BatchNorm, a classifier, and the indices that older files hold."""
    torch.manual_seed(0)
    trunk = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in TinyViT(config).state_dict().items()
    }
    return {
        **trunk,
        "stages.1.blocks.0.attn.attention_bias_idxs": torch.zeros(4, 4, dtype=torch.int64),
        "head.norm.weight": torch.ones(32),
        "head.norm.bias": torch.zeros(32),
        "head.fc.weight": torch.rand(10, 32),
        "head.fc.bias": torch.rand(10),
    }


def write(path: Path, weights: Weights) -> Path:
    """Write a checkpoint of the kind that its name says."""
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_tiny_vit_of_timm_becomes_the_trunk_of_a_student(tmp_path: Path, name: str) -> None:
    weights = tiny_vit_weights()
    write(tmp_path / name, weights)
    student = TrunkStudent(STUDENT)
    load_tiny_vit(tmp_path, student)

    expected = TinyViT(TRUNK)
    expected.load_state_dict({k: v for k, v in weights.items() if k in expected.state_dict()})
    reference = TrunkStudent(STUDENT)
    reference.adopt(expected)
    found = student.trunk.state_dict()
    assert found.keys() == reference.trunk.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in reference.trunk.state_dict().items())
    assert torch.equal(found["patch_embed.conv2.bn.weight"], weights["patch_embed.conv2.bn.weight"])
    assert not any("running_mean" in key for key in found)


@pytest.mark.parametrize("name", ["model.safetensors", "sam3.pt"])
def test_each_part_of_sam3_loads_by_its_public_names(tmp_path: Path, name: str) -> None:
    weights = sam3_weights()
    path = write(tmp_path / name, weights)
    detector, encoder, tracker = Detector(DETECTOR), NeckedTrunk(STUDENT), Tracker(TRACKER)
    teacher, text = Sam3VisionModel(sam3_config().vision_config), TextEncoder(sam3_config().text_config, 32)
    own = encoder.trunk.laterals[0][0].weight.clone()
    load_sam3(path, "detector", detector)
    load_sam3(path, "necks", encoder)
    load_sam3(path, "tracker", tracker)
    load_sam3(path, "vision_encoder", teacher)
    load_sam3(path, "text", text)

    loaded = {
        "detector_model.detr_decoder.presence_token.weight": detector.detr_decoder.presence_token.weight,
        "detector_model.dot_product_scoring.text_proj.bias": detector.dot_product_scoring.text_proj.bias,
        "detector_model.vision_encoder.neck.fpn_layers.0.scale_layers.2.weight": encoder.neck.fpn_layers[0]
        .scale_layers[2]
        .weight,
        "tracker_neck.fpn_layers.2.proj2.bias": encoder.tracker_neck.fpn_layers[2].proj2.bias,
        "tracker_model.mask_decoder.conv_s1.weight": encoder.conv_s1.weight,
        "tracker_model.memory_temporal_positional_encoding": tracker.memory_temporal_positional_encoding,
        "detector_model.vision_encoder.backbone.embeddings.position_embeddings": (
            teacher.backbone.embeddings.position_embeddings
        ),
        "detector_model.text_projection.weight": text.text_projection.weight,
    }
    for key, value in loaded.items():
        assert torch.equal(weights[key], value), key
    assert torch.equal(encoder.trunk.laterals[0][0].weight, own)


def test_a_file_of_the_detector_alone_loads_too_but_has_no_tracker(tmp_path: Path) -> None:
    weights = {
        key.removeprefix("detector_model."): value for key, value in sam3_weights().items() if "tracker" not in key
    }
    path = write(tmp_path / "model.safetensors", weights)
    detector = Detector(DETECTOR)
    load_sam3(path, "detector", detector)
    assert torch.equal(detector.detr_decoder.query_embed.weight, weights["detr_decoder.query_embed.weight"])
    with pytest.raises(DataError, match=r"does not fit Tracker: \d+ missing: no_memory_embedding, "):
        load_sam3(path, "tracker", Tracker(TRACKER))


def test_at_full_size_every_part_takes_exactly_the_stock_models_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        public = Sam3VideoModel(Sam3VideoConfig()).state_dict()
        modules = {
            "detector": Detector(DetectorConfig()),
            "necks": NeckedTrunk(TrunkStudentConfig()),
            "tracker": Tracker(TrackerConfig()),
            "vision_encoder": Sam3VisionModel(Sam3Config().vision_config),
            "text": TextEncoder(Sam3Config().text_config),
        }
    monkeypatch.setattr(checkpoints, "read", lambda path: public)
    monkeypatch.setattr(checkpoints, "_finite", lambda tensor: True)  # nothing to look at on the meta device
    for part, module in modules.items():
        load_sam3(Path("sam3"), part, module)


@pytest.mark.parametrize("prefix", ["", "model."], ids=["public", "as newer transformers name it"])
def test_the_embedder_loads_dinov3(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    ours = Embedder(EMBEDDER).backbone.state_dict()
    weights = {
        key.replace("model.layer.", "layer.").replace("layer.", f"{prefix}layer."): torch.rand_like(value)
        for key, value in ours.items()
    }
    assert f"{prefix}layer.0.attention.k_proj.weight" in weights
    embedder = Embedder(EMBEDDER)
    load_dinov3(write(tmp_path / "model.safetensors", weights), embedder)
    assert torch.equal(embedder.backbone.embeddings.register_tokens, weights["embeddings.register_tokens"])
    found = list(embedder.backbone.state_dict().values())
    assert all(any(torch.equal(value, f) for f in found if f.shape == value.shape) for value in weights.values())


def test_another_networks_file_is_refused_with_a_bounded_list(tmp_path: Path) -> None:
    path = write(tmp_path / "dinov3.safetensors", Embedder(EMBEDDER).backbone.state_dict())
    student = TrunkStudent(STUDENT)
    with pytest.raises(DataError) as refused:
        load_tiny_vit(path, student)
    message = str(refused.value)
    assert message.startswith(f"{path} does not fit TinyViT: ")
    assert "missing: patch_embed.conv1.conv.weight, " in message
    assert "unexpected: embeddings.cls_token, " in message
    missing, unexpected = message.removesuffix(". Check that it is the file named").split("; ")
    assert missing.count(", ") == unexpected.count(", ") == 9  # ten keys each
    assert missing.endswith(" more")


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    weights = tiny_vit_weights()
    del weights["patch_embed.conv1.bn.bias"]
    weights["stages.4.extra"] = torch.zeros(1)
    weights["stages.3.blocks.0.attn.attention_biases"] = torch.zeros(4, 49)
    student = TrunkStudent(STUDENT)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(DataError) as refused:
        load_tiny_vit(write(tmp_path / "other.safetensors", weights), student)
    assert str(refused.value).endswith(
        "1 missing: patch_embed.conv1.bn.bias; 1 unexpected: stages.4.extra; "
        "1 misshapen: stages.3.blocks.0.attn.attention_biases (4, 49) for (4, 4). Check that it is the file named"
    )
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_a_file_that_is_not_sam3_says_what_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", tiny_vit_weights())
    with pytest.raises(DataError, match=r"missing: detr_encoder\..* unexpected: patch_embed\."):
        load_sam3(path, "detector", Detector(DETECTOR))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = tiny_vit_weights()
    weights["stages.2.blocks.0.mlp.fc1.weight"][3, 1] = value
    path = write(tmp_path / "model.safetensors", weights)
    with pytest.raises(DataError, match=r"1 with NaN or infinite weights: stages\.2\.blocks\.0\.mlp\.fc1\.weight\."):
        load_tiny_vit(path, TrunkStudent(STUDENT))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path / name, tiny_vit_weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=f"{name}: .*fetch it again"):
        read(tmp_path)


def test_what_is_not_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(DataError, match="state dict alone"):
        read(tmp_path / "nested.pt")
    torch.save(DetectorConfig(), tmp_path / "object.pt")
    with pytest.raises(DataError, match="no plain weights"):
        read(tmp_path / "object.pt")
    (tmp_path / "notes.txt").write_text("weights, honestly")
    with pytest.raises(DataError, match=r"notes\.txt"):
        read(tmp_path / "notes.txt")


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"nowhere\.safetensors does not exist; docs/checkpoints\.md"):
        read(tmp_path / "nowhere.safetensors")
    with pytest.raises(DataMissingError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        read(tmp_path)


@pytest.fixture
def sam3_folder(tmp_path: Path) -> Path:
    """The public repository in small: weights, configuration and a tokenizer that knows pigs and sows."""
    write(tmp_path / "model.safetensors", sam3_weights())
    Sam3VideoConfig(detector_config=sam3_config()).save_pretrained(tmp_path)
    tokens = ["<|startoftext|>", "<|endoftext|>", *"pigsow", "pi", "so", "pig</w>", "sow</w>", "g</w>", "w</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\np i\npi g</w>\ns o\nso w</w>\n")
    return tmp_path


@torch.no_grad()
def test_a_concept_is_embedded_as_the_stock_text_encoder_does(sam3_folder: Path) -> None:
    prompts = embed_concepts(sam3_folder, ["pig", "pig sow"])
    assert {name: tuple(prompt.shape) for name, prompt in prompts.items()} == {"pig": (3, 32), "pig sow": (4, 32)}

    stock = Sam3Model(sam3_config()).eval()
    weights = {k.removeprefix("detector_model."): v for k, v in read(sam3_folder).items() if "tracker" not in k}
    stock.load_state_dict(weights)
    vocabulary = json.loads((sam3_folder / "vocab.json").read_text())
    start, end, pig, sow = (vocabulary[t] for t in ("<|startoftext|>", "<|endoftext|>", "pig</w>", "sow</w>"))
    padded = torch.tensor([[start, pig, sow, end, end, end, end, end]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    expected = stock.get_text_features(padded, mask).pooler_output[0, :4]
    torch.testing.assert_close(prompts["pig sow"], expected)


def test_a_concept_must_fit_the_text_encoder(sam3_folder: Path) -> None:
    with pytest.raises(DataError, match="'pig sow pig sow pig sow pig' has 9 tokens, the text encoder takes at most 8"):
        embed_concepts(sam3_folder, ["pig sow pig sow pig sow pig"])


def test_the_text_encoder_needs_the_whole_repository(sam3_folder: Path) -> None:
    (sam3_folder / "merges.txt").unlink()
    with pytest.raises(DataMissingError, match=r"merges\.txt does not exist; copy the whole public repository"):
        embed_concepts(sam3_folder, ["pig"])
    (sam3_folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        embed_concepts(sam3_folder, ["pig"])
    CLIPTextConfig().save_pretrained(sam3_folder)
    with pytest.raises(DataError, match="describes 'clip_text_model', not SAM 3"):
        embed_concepts(sam3_folder, ["pig"])


def test_a_distilled_student_under_public_heads_becomes_the_networks_of_a_preset(sam3_folder: Path) -> None:
    torch.manual_seed(1)
    student = TrunkStudent(STUDENT)
    path = write(sam3_folder / "student.safetensors", student.state_dict())
    model = assemble_detection(SMALL, path, sam3_folder)
    tracker = assemble_tracker(sam3_folder, TRACKER)
    public = read(sam3_folder)
    detector = model.detector.detr_decoder.presence_token.weight
    assert torch.equal(model.encoder.trunk.laterals[0][0].weight, student.laterals[0][0].weight)
    assert torch.equal(model.encoder.conv_s0.bias, public["tracker_model.mask_decoder.conv_s0.bias"])
    assert torch.equal(detector, public["detector_model.detr_decoder.presence_token.weight"])
    assert torch.equal(model.concepts[1], embed_concepts(sam3_folder, ["sow"])["sow"])
    assert torch.equal(tracker.no_memory_embedding, public["tracker_model.no_memory_embedding"])

    longer = replace(SMALL, concepts=("pig", "pig sow"))
    with pytest.raises(DataError, match=r"the prompt of 'pig sow' must be \(3, 32\) \(tokens, width\), got \(4, 32\)"):
        assemble_detection(longer, path, sam3_folder)
    with pytest.raises(DataError, match="does not fit TrunkStudent"):
        assemble_detection(SMALL, sam3_folder / "model.safetensors", sam3_folder)


def test_an_embedder_is_ready_for_export(tmp_path: Path) -> None:
    weights = Embedder(EMBEDDER).backbone.state_dict()
    embedder = assemble_embedder(write(tmp_path / "model.safetensors", weights), EMBEDDER)
    assert not embedder.training
    assert torch.equal(embedder.backbone.embeddings.cls_token, weights["embeddings.cls_token"])


def test_a_behavior_classifier_is_ready_for_export(tmp_path: Path) -> None:
    config = BehaviorConfig(features=8, hidden=4)
    weights = BehaviorClassifier(config).state_dict()
    classifier = assemble_behavior(write(tmp_path / "behavior.safetensors", weights), config)
    assert not classifier.training
    assert torch.equal(classifier.lstm.weight_hh_l0_reverse, weights["lstm.weight_hh_l0_reverse"])
    with pytest.raises(DataError, match="does not fit BehaviorClassifier"):
        assemble_behavior(tmp_path / "behavior.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "orin", "--student", "s.safetensors"), "--student needs --sam3"),
        (
            ("--preset", "orin", "--student", "s.safetensors", "--behavior", "b.safetensors"),
            "--behavior needs --dinov3",
        ),
        (
            ("--preset", "orin", "--random-weights", "--behavior", "b.safetensors"),
            "--random-weights takes the place of",
        ),
        (("--preset", "nano", "--student", "s.safetensors"), "choose --preset orin or orin-b"),
        (("--preset", "orin", "--random-weights", "--dinov3", "d"), "--random-weights takes the place of"),
        (("--preset", "nano", "--random-weights", "--tracker", "t.pt"), "--random-weights takes the place of"),
        (
            ("--preset", "orin", "--checkpoint", "c.pt", "--tracker", "t.pt", "--behavior", "b.safetensors"),
            "no --sam3, --dinov3 or --behavior",
        ),
    ],
)
def test_networks_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main(["export", *options, "--out", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
