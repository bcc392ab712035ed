"""Public checkpoints into our networks, by their public key names; files that the user fetched, nothing is downloaded.

    timm/tiny_vit_*           a student's trunk; BatchNorm becomes GroupNorm, ImageNet's normalization is folded in
    facebook/sam3             vision encoder, necks, detector, tracker and text encoder, each for itself
    facebook/dinov3-vits16    the embedder (in full: facebook/dinov3-vits16-pretrain-lvd1689m)

A file is safetensors or PyTorch's own format, read with `weights_only`; a folder stands for the `model.safetensors` or
`pytorch_model.bin` in it. Whatever does not fit is refused with the keys that are missing, unexpected, misshapen or not
finite, before a network is touched. `docs/checkpoints.md` says where the files come from and under which licenses.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, CLIPTextModelWithProjection, CLIPTokenizer

from barnsight_export.errors import DataError, DataMissingError
from barnsight_export.networks.dinov3 import Embedder
from barnsight_export.networks.student import NeckStudent, TrunkStudent
from barnsight_export.networks.tinyvit import TinyViT

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")

Sam3Part = Literal["vision_encoder", "necks", "detector", "tracker", "text"]

# Public prefix -> prefix in our module. `detector_model.` is left out: a file of `Sam3Model` alone does not have it.
_SAM3_PARTS: dict[Sam3Part, dict[str, str]] = {
    "vision_encoder": {"vision_encoder.": ""},
    "necks": {
        "vision_encoder.neck.": "neck.",
        "tracker_neck.": "tracker_neck.",
        "tracker_model.mask_decoder.conv_s0.": "conv_s0.",
        "tracker_model.mask_decoder.conv_s1.": "conv_s1.",
    },
    "detector": {name: name for name in ("detr_encoder.", "detr_decoder.", "mask_decoder.", "dot_product_scoring.")},
    "tracker": {"tracker_model.": ""},
    "text": {"text_encoder.": "text_encoder.", "text_projection.": "text_projection."},
}
_SAM3_ROOTS = (
    "vision_encoder.",
    "text_encoder.",
    "text_projection.",
    "geometry_encoder.",
    "detr_encoder.",
    "detr_decoder.",
    "mask_decoder.",
    "dot_product_scoring.",
    "tracker_model.",
    "tracker_neck.",
)
# What some files hold and every network computes for itself.
_CONSTANTS = re.compile(r"\.(attention_bias_idxs|position_ids|rotary_emb\..*)$")
_NAMED_KEYS = 10


def load_tiny_vit(path: Path, student: TrunkStudent | NeckStudent) -> None:
    """Give a student the trunk of timm's TinyViT at `path`.

    The classifier and BatchNorm's statistics fall away. Raises DataMissingError where there is no file, DataError for
    another network or variant, a damaged file, or weights that are not finite.
    """
    trunk = TinyViT(student.trunk.config)
    load(path, trunk, {key: tensor for key, tensor in read(path).items() if not key.startswith("head.")})
    student.adopt(trunk)


def load_sam3(path: Path, part: Sam3Part, module: nn.Module) -> None:
    """Give `module` one part of facebook/sam3 at `path`, in the layout of `Sam3VideoModel` or of `Sam3Model`.

    | part             | module                                            |
    | ---------------- | ------------------------------------------------- |
    | `vision_encoder` | `transformers`' `Sam3VisionModel`, the teacher    |
    | `necks`          | `NeckedTrunk`, whose student's own weights stay   |
    | `detector`       | `Detector`                                        |
    | `tracker`        | `Tracker`; a file of `Sam3Model` does not have it |
    | `text`           | `TextEncoder`                                     |

    Raises DataMissingError where there is no file, DataError for a file that is not SAM 3, a module of other sizes, a
    damaged file, or weights that are not finite.
    """
    public = {key.removeprefix("detector_model."): tensor for key, tensor in read(path).items()}
    prefixes = _SAM3_PARTS[part]
    weights: dict[str, Tensor] = {}
    for key, tensor in public.items():
        for theirs, ours in prefixes.items():
            if key.startswith(theirs):
                weights[ours + key.removeprefix(theirs)] = tensor
        if not key.startswith(_SAM3_ROOTS):
            weights[key] = tensor  # no key of SAM 3: unexpected whatever the part
    load(path, module, weights, only=tuple(prefixes.values()))


def load_dinov3(path: Path, embedder: Embedder) -> None:
    """Give the embedder the weights of facebook/dinov3-vits16 at `path`; raises as `load_tiny_vit` does."""
    expected = embedder.backbone.state_dict()
    # The public file says `layer.0`, newer versions of transformers `model.layer.0`.
    renamed = {f"model.{key}" if f"model.{key}" in expected else key: value for key, value in read(path).items()}
    load(path, embedder.backbone, renamed)


class TextEncoder(nn.Module):
    """SAM 3's text encoder and its projection to the detector's width; runs offline, once per concept."""

    def __init__(self, text_config: Any, width: int = 256) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModelWithProjection(text_config)
        self.text_projection = nn.Linear(text_config.hidden_size, width)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Tokens (1, T) to the prompt that the detector reads, (1, T, C)."""
        prompt: Tensor = self.text_projection(self.text_encoder(input_ids=token_ids).last_hidden_state)
        return prompt


@torch.no_grad()
def embed_concepts(folder: Path, concepts: Sequence[str]) -> dict[str, Tensor]:
    """Run SAM 3's text encoder once for each concept: its prompt (T, C) by name, start and end token included.

    `folder` holds the public repository's weights, `config.json` and tokenizer files. The encoder is causal, so a
    prompt without padding equals the stock one cut to its valid tokens. Raises DataMissingError where a file is not
    there, DataError for one that is damaged or for a concept of more tokens than the encoder has places.
    """
    config = _detector_config(folder)
    tokenizer = _tokenizer(folder)
    encoder = TextEncoder(config.text_config, config.detr_encoder_config.hidden_size).eval()
    load_sam3(folder, "text", encoder)
    prompts = {}
    for concept in concepts:
        ids = tokenizer(concept)["input_ids"]
        if len(ids) > config.text_config.max_position_embeddings:
            raise DataError(
                f"the concept '{concept}' has {len(ids)} tokens, the text encoder takes at most "
                f"{config.text_config.max_position_embeddings}: choose a shorter name"
            )
        prompts[concept] = encoder(torch.tensor([ids]))[0]
    return prompts


def read(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by key; raises DataMissingError where there is none, DataError for anything else.

    Large files are mapped into memory, and only what is used of them is read.
    """
    file = _file(path)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise DataError(f"{file}: no plain weights, or damaged; fetch it again, or save a state dict") from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"{file}: cannot be read ({_first_line(error)}); it may be cut short: fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DataError(f"{file}: holds no weights by name; save the network's state dict alone")
    return dict(state)


def load(path: Path, module: nn.Module, weights: Mapping[str, Tensor], only: tuple[str, ...] = ("",)) -> None:
    """Copy `weights`, which came from `path`, into `module`; keys of the module that start otherwise than `only` stay.

    Raises DataError that lists what is missing, unexpected, misshapen or not finite; `module` is then untouched.
    """
    expected = {key: tensor for key, tensor in module.state_dict().items() if key.startswith(only)}
    given = {key: tensor for key, tensor in weights.items() if key in expected or not _CONSTANTS.search(key)}
    shared = [key for key in expected if key in given]
    misshapen = [key for key in shared if given[key].shape != expected[key].shape]
    faults = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "misshapen": [f"{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}" for key in misshapen],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
        raise DataError(f"{path} does not fit {type(module).__name__}: {listed}. Check that it is the file named")
    broken = [key for key in shared if not _finite(given[key])]
    if broken:
        raise DataError(f"{path}: {len(broken)} with NaN or infinite weights: {_some(broken)}. Fetch it again")
    module.load_state_dict({key: given[key] for key in shared}, strict=False)


def _file(path: Path) -> Path:
    candidates = [path / name for name in FILE_NAMES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    what = f"holds none of {', '.join(FILE_NAMES)}" if path.is_dir() else "does not exist"
    raise DataMissingError(f"{path} {what}; docs/checkpoints.md says where to get it")


def _detector_config(folder: Path) -> Any:
    """The configuration of SAM 3's detector beside the weights."""
    config = _beside(folder, ("config.json",), lambda: AutoConfig.from_pretrained(folder, local_files_only=True))
    config = getattr(config, "detector_config", config)
    if config.model_type != "sam3":
        raise DataError(f"{folder / 'config.json'}: describes '{config.model_type}', not SAM 3")
    return config


def _tokenizer(folder: Path) -> Any:
    files = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
    return _beside(folder, files, lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True))


def _beside(folder: Path, names: Iterable[str], read_it: Callable[[], Any]) -> Any:
    """What `read_it` makes of files that lie beside the weights."""
    for name in names:
        if not (folder / name).is_file():
            raise DataMissingError(
                f"{folder / name} does not exist; copy the whole public repository, not weights alone"
            )
    try:
        return read_it()
    except Exception as error:  # a library's parser may raise anything on a damaged file
        raise DataError(
            f"{folder}: {', '.join(names)} cannot be read ({_first_line(error)}); fetch it again"
        ) from error


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED_KEYS
    return ", ".join(keys[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
