"""How large the networks are: the parameters of a preset and of its teacher, part by part.

Everything is counted on networks without storage (PyTorch's meta device). SAM 3's own parts are the stock modules of
`transformers` at stock size. The sums follow Yang and Hostens (2026, arXiv:2604.27128), whose figures stand beside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import Sam3TrackerVideoConfig
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from barnsight_export.networks.behavior import BehaviorClassifier, BehaviorConfig
from barnsight_export.networks.dinov3 import Embedder, EmbedderConfig
from barnsight_export.networks.sam3 import Detector, DetectorConfig
from barnsight_export.networks.student import NeckStudent, NeckStudentConfig, TrunkStudent, TrunkStudentConfig

# What the paper and its notebooks print, in parameters; its teacher is the whole of Sam3TrackerVideoModel.
PAPER: dict[str, float] = {
    "trunk": 40.66e6,
    "neck": 7.80e6,
    "mask_decoder": 4.22e6,
    "memory_attention": 5.92e6,
    "memory_encoder": 1.38e6,
    "system": 59.98e6,
    "teacher_trunk": 446.2e6,
    "teacher_system": 465.78e6,
    "ratio": 7.77,
    "embedder": 21.6e6,
    "behavior": 0.56e6,
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts of parameters. `system` is the student's tracker as the paper adds it up.

    The paper's sum leaves out what is `uncounted` here, the prompt encoder, the object pointers and a few embeddings:
    they stay in use, and the teacher's sum has them.
    """

    trunk: int
    neck: int
    mask_decoder: int
    memory_attention: int
    memory_encoder: int
    uncounted: int
    teacher_trunk: int
    teacher_system: int
    detector: int
    embedder: int
    behavior: int

    @property
    def system(self) -> int:
        """Trunk, neck, mask decoder, memory attention and memory encoder."""
        return self.trunk + self.neck + self.mask_decoder + self.memory_attention + self.memory_encoder

    @property
    def ratio(self) -> float:
        """How many times larger the teacher's system is."""
        return self.teacher_system / self.system

    def as_dict(self) -> dict[str, float]:
        """Every figure by name."""
        return {**asdict(self), "system": self.system, "ratio": self.ratio}


def count(module: nn.Module) -> int:
    """Parameters of a network, shared ones once, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_parameters(student: TrunkStudentConfig | NeckStudentConfig, detector: DetectorConfig) -> Parameters:
    """The parameters of a student under SAM 3's stock heads, and those of its teacher.

    At point A the necks are SAM 3's; of its two equal ones the tracker's is counted, as in the paper. At point B
    `trunk` is the TinyViT alone and `neck` the rest of the student, which serves detector and tracker.
    """
    with torch.device("meta"):
        teacher = Sam3TrackerVideoModel(Sam3TrackerVideoConfig())
        if isinstance(student, TrunkStudentConfig):
            trunk, neck = count(TrunkStudent(student)), count(teacher.vision_encoder.neck)
        else:
            network = NeckStudent(student)
            trunk = count(network.trunk)
            neck = count(network) - trunk
        heads = {name: count(getattr(teacher, name)) for name in ("mask_decoder", "memory_attention", "memory_encoder")}
        return Parameters(
            trunk=trunk,
            neck=neck,
            **heads,
            uncounted=count(teacher) - count(teacher.vision_encoder) - sum(heads.values()),
            teacher_trunk=count(teacher.vision_encoder.backbone),
            teacher_system=count(teacher),
            detector=count(Detector(detector)),
            embedder=count(Embedder(EmbedderConfig())),
            behavior=count(BehaviorClassifier(BehaviorConfig())),
        )
