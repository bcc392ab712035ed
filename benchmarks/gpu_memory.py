"""Memory of the full-size pipeline on a GPU: its peak, and whether it grows, with our session and with the paper's.

    python benchmarks/gpu_memory.py --together --out docs/results/gpu-memory.md --log build/gpu-memory.csv
    python benchmarks/gpu_memory.py --preset orin --mode paper --json
    python benchmarks/gpu_memory.py --quick --json                        # a tiny pipeline, also without a GPU

Weights and pictures are by lot, in bfloat16, on a CPU in float32. Every frame goes through student, necks, detector and
tracker, and eight animals, there from the first frame on, are looked for and remembered on each. The modes differ in
the tracker alone:

    ours           fixed slots on the host, and as many animals at once as fit, as in the service
    ours-at-once   the same, all animals through an engine at once, whatever it takes
    paper          the stock session of `transformers`, streaming, pruned as Yang and Hostens do (arXiv:2604.27128)
    stock          the same, not pruned

Each runs in a process of its own. A peak is PyTorch's and counts everything of the process on the GPU but the CUDA
context. Slopes are least squares over the frames after the first hundred, or after the first third where that is less.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil
import torch
from machine import describe_machine
from numpy.typing import NDArray
from slope import fit_slope
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam3_tracker_video import modeling_sam3_tracker_video as stock

from barnsight_engines.propagator import MemoryTracker, TemporalPositions, certain
from barnsight_export.evaluate.stock_session import TorchEngine, first_masks
from barnsight_export.networks.sam3 import DetectorConfig, normalize
from barnsight_export.networks.student import EncoderMaps, TrunkStudentConfig
from barnsight_export.networks.tinyvit import TinyViTConfig
from barnsight_export.networks.tracker import Tracker, TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import session_constants
from barnsight_export.onnx.graph import Graph
from barnsight_export.presets import ORIN, ORIN_B, Preset
from barnsightd.tracking.memory import Impressions, MemoryBank

TINY = Preset(
    name="tiny",
    image_size=(128, 128),
    grid=(8, 8),
    concepts=("pig",),
    student=TrunkStudentConfig(
        TinyViTConfig((32, 64, 96, 128), (2, 3, 4), windows=(2, 4, 2), depths=(1, 1, 1, 1)),
        lateral=64,
        width=128,
        neck=128,
        grid=8,
    ),
    detector=DetectorConfig(
        width=128, heads=4, feed_forward=128, encoder_layers=1, decoder_layers=1, queries=16, top_k=8
    ),
    tracker=TrackerConfig(grid=(8, 8), width=128, attention_layers=2, feed_forward=128, decoder_heads=4),
)
PRESETS = {preset.name: preset for preset in (TINY, ORIN, ORIN_B)}
MODES = ("ours", "ours-at-once", "paper", "stock")
ANIMALS = 8
PRUNED_EVERY, KEPT = 25, 8  # frames, in the paper's public notebooks
WARM = 100  # frames in which memories and pools fill
STOCK_SHARE = 0.6  # of a mode's seconds: what grows has shown it by then
PAPER_GB = 6.49  # peak GPU memory that the paper reports
MB = 1e6


def main() -> int:
    """Run one mode, or each in a process of its own, and print, or write, what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, action="append", help="default: orin and orin-b; tiny on a CPU")
    parser.add_argument("--mode", choices=MODES, action="append", help="a single one runs in this process")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=100, help="end a mode then (stock: at 60 %% of it)")
    parser.add_argument("--every", type=int, default=PRUNED_EVERY, help="paper: frames from one pruning to the next")
    parser.add_argument("--keep", type=int, default=KEPT, help="paper: frames that a pruning keeps of each animal")
    parser.add_argument("--together", action="store_true", help="all modes at once: sooner, but times tell nothing")
    parser.add_argument("--quick", action="store_true", help="the tiny pipeline, few frames")
    parser.add_argument("--log", type=Path, help="append every frame to this CSV file as it comes")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.quick:
        args.preset, args.frames = ["tiny"], 30
    presets = args.preset or (["orin", "orin-b"] if torch.cuda.is_available() else ["tiny"])
    runs = list(itertools.product(presets, args.mode or MODES))
    if len(runs) == 1:
        (preset, mode), failed = runs[0], False
        rows = [asdict(measure(PRESETS[preset], mode, args))]
    else:
        rows = run_apart(runs, args)
        failed = len(rows) < len(runs)
    report = to_markdown(rows)
    print(report, flush=True)
    if args.out:
        args.out.write_text(report)
    if args.json:
        print(json.dumps({"benchmark": "gpu_memory", "machine": describe_machine(), "runs": rows}), flush=True)
    return os.EX_SOFTWARE if failed else os.EX_OK


def run_apart(runs: Sequence[tuple[str, str]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each preset and mode in a process of its own; what fails says why on standard error and has no row."""
    started = []
    for preset, mode in runs:
        command = [sys.executable, __file__, "--json", "--preset", preset, "--mode", mode]
        for name in ("frames", "seconds", "every", "keep"):
            command += [f"--{name}", str(getattr(args, name))]
        if args.log:
            command += ["--log", str(args.log)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        if not args.together:
            started[-1].wait()
    answers = [process.communicate()[0] for process in started]
    return [
        json.loads(answer.splitlines()[-1])["runs"][0]
        for process, answer in zip(started, answers, strict=True)
        if process.returncode == os.EX_OK
    ]


# What runs


class Tracking(Protocol):
    """What becomes of a frame's maps, in one of the modes; `place` says where the session lies."""

    place: str

    @property
    def size_bytes(self) -> int:
        """What the session holds."""
        ...

    def step(self, frame: int, pixels: Tensor, maps: EncoderMaps) -> None:
        """Look for every animal on frame number `frame`, and remember it."""
        ...


class Eyes:
    """Student, necks and detector, on the device."""

    def __init__(self, preset: Preset, device: torch.device) -> None:
        self._device, self._dtype = device, dtype_on(device)
        self._model = preset.build().eval().to(device, self._dtype)

    def see(self, image: NDArray[np.uint8]) -> tuple[Tensor, EncoderMaps]:
        """Pixels (1, 3, S, S) and maps of a picture (S, S, 3); what is detected goes to the host, and no further."""
        pixels = normalize(torch.from_numpy(image).to(self._device)[None]).to(self._dtype)
        maps = EncoderMaps(*self._model.encoder(pixels))
        for value in self._model.detector(maps.d4, maps.d2, maps.d1, self._model.concepts[:1]):
            value.cpu()
        return pixels, maps


class DeviceEngine(TorchEngine):
    """A network on the device in the place of an engine; what it is given and what it answers lie on the host."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        super().__init__(graph)
        self._device, self._dtype = device, dtype_on(device)
        graph.network.eval().to(device, self._dtype)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Backend.run`."""
        arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in self.spec.inputs]
        answer = self.graph.network(*(torch.from_numpy(array).to(self._device).to(self._dtype) for array in arrays))
        values = (answer,) if isinstance(answer, Tensor) else answer
        return {name: to_host(value) for name, value in zip(self.graph.outputs, values, strict=True)}


class OurTracking:
    """The memory session as the service has it: a frame is kept as it was seen, and encoded before the next search."""

    place = "host"

    def __init__(self, config: TrackerConfig, device: torch.device, largest_batch: int | None) -> None:
        tracker = Tracker(config)
        all_present(tracker)
        positions = TemporalPositions.from_arrays(session_constants(tracker))
        engines = [DeviceEngine(graph, device) for graph in roles.tracker_graphs(tracker)]
        self._tracker = MemoryTracker(*engines, positions=positions, largest_batch=largest_batch)
        self._first_masks = certain(first_masks(config, ANIMALS))
        self._batch = min(self._tracker.largest_batch, ANIMALS)
        self._bank = MemoryBank(ANIMALS, positions, config.layout, batch=self._batch)
        self._impressions = Impressions(ANIMALS, self._bank.recent, width=config.width, grid=config.layout.grid)
        self._bank.reserve()
        self._impressions.reserve()

    @property
    def size_bytes(self) -> int:
        return self._bank.size_bytes + self._impressions.size_bytes

    def step(self, frame: int, pixels: Tensor, maps: EncoderMaps) -> None:  # noqa: ARG002 - no picture is kept
        everyone = range(ANIMALS)
        features = {name: to_host(getattr(maps, name)) for name in roles.TRACKER_MAPS}
        if frame == 0:
            masks, presence = self._first_masks, np.ones(ANIMALS, np.float32)
            memories = self._tracker.memorize(features, masks, presence)
            self._bank.condition(everyone, frame, memories, self._tracker.point_at(features, masks))
            return
        for kept in self._impressions.take(everyone):
            memories = self._tracker.memorize({"t1": kept.t1}, kept.mask_logits, kept.presence)
            self._bank.remember(kept.animals.tolist(), kept.frame, memories)
        for first in range(0, ANIMALS, self._batch):
            animals = everyone[first : first + self._batch]
            seen = self._tracker.segment(features, self._bank.recall(animals, frame))
            assert (seen.presence > 0).all()
            self._impressions.keep(frame, features["t1"], animals, seen.mask_logits, seen.presence)
            self._bank.point(animals, frame, seen.pointers)


class StockTracking:
    """The stock session, streaming; every `every` frames all but the last `keep` of each animal are dropped.

    As in the paper's notebooks the conditioning frame stays, and so does `processed_frames`, every picture at the size
    that SAM 3 takes. The student takes another size, so the picture is resized for the session. Attention is fused, as
    `transformers` has it unless told otherwise.
    """

    def __init__(self, config: TrackerConfig, device: torch.device, *, every: int = 0, keep: int = 0) -> None:
        self.place = device.type
        self._every, self._keep = every, keep
        self._image_size = config.image_size
        stock_config = config.stock()
        stock_config._attn_implementation = "sdpa"
        model = stock.Sam3TrackerVideoModel(stock_config, remove_vision_encoder=True).eval()
        all_present(model)
        dtype = dtype_on(device)
        self._model = model.to(device, dtype)
        self._session = stock.Sam3TrackerVideoInferenceSession(
            inference_device=device, inference_state_device=device, video_storage_device=device, dtype=dtype
        )
        for animal, mask in enumerate(first_masks(config, ANIMALS)):
            drawn = torch.from_numpy(mask > 0)[None, None]
            self._session.add_mask_inputs(self._session.obj_id_to_idx(animal), 0, drawn)
            self._session.obj_with_new_inputs.append(animal)
        sine = stock.Sam3TrackerVideoPositionEmbeddingSine(num_position_features=config.width // 2, normalize=True)
        side = config.grid[0]
        self._places = [rows(sine(torch.Size((1, config.width, n * side, n * side)), device, dtype)) for n in (4, 2, 1)]

    @property
    def size_bytes(self) -> int:
        held = tensors([vars(self._session), vars(self._session.cache)])
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
        return sum(storage.nbytes() for storage in storages.values())

    def step(self, frame: int, pixels: Tensor, maps: EncoderMaps) -> None:
        picture = F.interpolate(pixels, size=self._image_size, mode="bilinear")
        features = {"vision_feats": [rows(m) for m in (maps.t4, maps.t2, maps.t1)], "vision_pos_embeds": self._places}
        self._session.cache.cache_vision_features(frame, features)
        seen = self._model(self._session, frame=picture)
        assert seen.frame_idx == frame
        assert bool((seen.object_score_logits > 0).all())
        seen.pred_masks.cpu()
        if self._every and frame % self._every == 0:
            for outputs in self._session.output_dict_per_obj.values():
                kept = outputs["non_cond_frame_outputs"]
                for old in [number for number in kept if number <= frame - self._keep]:
                    del kept[old]


def dtype_on(device: torch.device) -> torch.dtype:
    """What the paper ran in; a CPU is slow in it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@torch.no_grad()
def all_present(tracker: Any) -> None:
    """Let the tracker find every animal on every frame, whatever its weights."""
    tracker.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100)


def to_host(value: Tensor) -> NDArray[np.float32]:
    """A tensor as the engines answer it."""
    array: NDArray[np.float32] = value.float().cpu().numpy()
    return array


def rows(maps: Tensor) -> Tensor:
    """Maps (1, C, h, w) as the stock session caches them, (hw, 1, C)."""
    return maps.flatten(2).permute(2, 0, 1)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from tensors(branch)


# Measuring


class Sample(NamedTuple):
    """What a frame took, and what the process holds after it, in 10^6 bytes; without a GPU nothing is on it."""

    frame: int
    ms: float
    allocated_mb: float
    peak_allocated_mb: float
    peak_reserved_mb: float
    rss_mb: float


class Slope(NamedTuple):
    """Growth in 10^6 bytes a frame, and the edges of its 95 % confidence interval."""

    mb_per_frame: float
    low: float
    high: float

    @classmethod
    def of(cls, frames: Sequence[int], held_mb: Sequence[float]) -> Slope:
        """Least squares."""
        slope, error = fit_slope(np.array(frames, np.float64), np.array(held_mb))
        return cls(slope, slope - 1.96 * error, slope + 1.96 * error)


@dataclass(frozen=True, slots=True)
class Measured:
    """One mode of one preset; memory in 10^6 bytes, `ended` says whether frames, time or memory ran out."""

    preset: str
    mode: str
    device: str
    frames: int
    ended: str
    ms_per_frame: float
    weights_mb: float
    peak_allocated_mb: float
    peak_reserved_mb: float
    slope: Slope
    rss_mb: float
    rss_slope: Slope
    session_mb: float
    session_on: str


def measure(preset: Preset, mode: str, args: argparse.Namespace) -> Measured:
    """Run one mode in this process, for as many frames as there is time and memory for."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    eyes, tracking = Eyes(preset, device), make_tracking(preset, mode, device, args)
    weights_mb = allocated_mb(device)
    samples: list[Sample] = []
    seconds = args.seconds * (STOCK_SHARE if mode == "stock" else 1)
    ended, finish_s = "frames", time.monotonic() + seconds
    try:
        for sample in follow(preset, eyes, tracking, device, args.frames):
            samples.append(sample)
            write_log(args.log, preset, mode, sample)
            if sample.frame % 50 == 0:
                print(f"{preset.name} {mode}: {sample}", file=sys.stderr, flush=True)
            if time.monotonic() > finish_s:
                ended = "time"
                break
    except torch.cuda.OutOfMemoryError:
        ended = "memory"
    counted = samples[min(WARM, len(samples) // 3) :]
    if len(counted) < 4:
        raise SystemExit(f"{preset.name} {mode}: {len(samples)} frames are too few for a slope; raise --seconds")
    at = [sample.frame for sample in counted]
    return Measured(
        preset=preset.name,
        mode=mode,
        device=name,
        frames=len(samples),
        ended=ended,
        ms_per_frame=statistics.median(sample.ms for sample in counted),
        weights_mb=weights_mb,
        peak_allocated_mb=samples[-1].peak_allocated_mb,
        peak_reserved_mb=samples[-1].peak_reserved_mb,
        slope=Slope.of(at, [sample.allocated_mb for sample in counted]),
        rss_mb=samples[-1].rss_mb,
        rss_slope=Slope.of(at, [sample.rss_mb for sample in counted]),
        session_mb=tracking.size_bytes / MB,
        session_on=tracking.place,
    )


def make_tracking(preset: Preset, mode: str, device: torch.device, args: argparse.Namespace) -> Tracking:
    """The tracker of a mode, with its session."""
    config = preset.tracker
    assert config is not None
    if mode == "paper":
        return StockTracking(config, device, every=args.every, keep=args.keep)
    if mode == "stock":
        return StockTracking(config, device)
    return OurTracking(config, device, largest_batch=ANIMALS if mode == "ours-at-once" else None)


def follow(preset: Preset, eyes: Eyes, tracking: Tracking, device: torch.device, frames: int) -> Iterator[Sample]:
    """Run through frames of noise and sample after each."""
    noise, process = np.random.default_rng(0), psutil.Process()
    for frame in range(frames):
        image = noise.integers(0, 256, (*preset.image_size, 3), np.uint8)
        started_s = time.perf_counter()
        with torch.inference_mode():
            tracking.step(frame, *eyes.see(image))
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(device)
        yield Sample(
            frame=frame,
            ms=1e3 * (time.perf_counter() - started_s),
            allocated_mb=allocated_mb(device),
            peak_allocated_mb=torch.cuda.max_memory_allocated(device) / MB if on_gpu else 0.0,
            peak_reserved_mb=torch.cuda.max_memory_reserved(device) / MB if on_gpu else 0.0,
            rss_mb=process.memory_info().rss / MB,
        )


def allocated_mb(device: torch.device) -> float:
    """What PyTorch holds on the GPU."""
    return torch.cuda.memory_allocated(device) / MB if device.type == "cuda" else 0.0


def write_log(path: Path | None, preset: Preset, mode: str, sample: Sample) -> None:
    """Append a line, so that what was measured outlives a process that is killed."""
    if path is None:
        return
    with path.open("a", newline="") as file:
        lines = csv.writer(file)
        if file.tell() == 0:
            lines.writerow(("preset", "mode", *Sample._fields))
        lines.writerow((preset.name, mode, *(round(value, 3) for value in sample)))


# Report


def to_markdown(measured: Sequence[Mapping[str, Any]]) -> str:
    """Everything as a table."""
    lines = [
        "# Memory on a GPU",
        "",
        f"Machine: {describe_machine()}; {', '.join(sorted({row['device'] for row in measured}))}. "
        "Made by `python benchmarks/gpu_memory.py`.",
        "",
        f"{ANIMALS} animals, weights and pictures by lot, bfloat16 on a GPU, memory in 10^6 bytes; the paper reports a "
        f"peak of {PAPER_GB} GB. A slope stands with its 95 % confidence interval.",
        "",
        "| preset | mode | frames | peak allocated | peak reserved | of it weights | growth a frame on the GPU "
        "| growth a frame on the host | session at the end | ms a frame |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        frames = f"{row['frames']}" + ("" if row["ended"] == "frames" else f", then no {row['ended']} left")
        figures = " | ".join(f"{row[name]:.0f}" for name in ("peak_allocated_mb", "peak_reserved_mb", "weights_mb"))
        slopes = " | ".join("{:+.4f} ({:+.4f} to {:+.4f})".format(*row[name]) for name in ("slope", "rss_slope"))
        session = f"{row['session_mb']:.1f}, {row['session_on']}"
        lines.append(
            f"| {row['preset']} | {row['mode']} | {frames} | {figures} | {slopes} | {session} "
            f"| {row['ms_per_frame']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
