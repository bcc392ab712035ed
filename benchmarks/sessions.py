"""Memory sessions: do they see what SAM 3's own session sees, what do they cost, and do they grow?

    python benchmarks/sessions.py --out docs/results/sessions.md --plot docs/images/session-memory.svg
    python benchmarks/sessions.py --quick --json

Four parts. *Lossless*: the stock session of `transformers`, which keeps every frame, and ours with fixed slots, on
the same weights by lot and the same made-up maps: largest difference, and what each keeps. *Throughput*: the same two
at ten animals, theirs in PyTorch as it comes, ours on ONNX Runtime as the service runs it, in turns of one run; ours
once as it follows all animals by memory, as theirs does, and once as the service does, lazily, where detections
explain all animals but one. *Bounded*: resident memory over many frames with animals that come and go, its slope with
a confidence interval; once with scripted engines, once with the shipped model set. *Modes*: simulated test clips at
several intervals of detection.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from machine import describe_machine
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from slope import fit_slope
from tracking import FPS, Clip, render

from barnsight_engines.detector import Detections
from barnsight_engines.encoder import Features
from barnsight_engines.loader import ModelSet, load_model_set
from barnsight_engines.masks import tight_boxes
from barnsight_engines.onnx_backend import OnnxBackend
from barnsight_engines.propagator import MemoryLayout, MemoryTracker, TemporalPositions, certain, largest_batch
from barnsight_engines.scripted_backend import painted, scripted_tracker
from barnsight_engines.spec import EngineSpec
from barnsight_export.datasets.mot import Mark, read_boxes
from barnsight_export.evaluate.stock_session import (
    TorchEngine,
    first_masks,
    follow,
    maps_of,
    stock_tracker,
    tracker_like,
)
from barnsight_export.evaluate.tracking import evaluate, summarize
from barnsight_export.networks.tracker import TrackerConfig
from barnsight_export.onnx import roles
from barnsight_export.onnx.export import session_constants
from barnsight_export.onnx.graph import tensor_specs, write_graph
from barnsight_export.presets import ORIN, ORIN_B
from barnsightd.ingest.files import read_frames
from barnsightd.replay import half_the_cores, make_pipeline
from barnsightd.tracking.lifecycle import Target, TrackingSettings
from barnsightd.tracking.memory import Impressions, MemoryBank
from barnsightd.tracking.propagation import MemoryPropagator
from barnsightd.tracking.session import Session

ROOT = Path(__file__).resolve().parent.parent
PAPER_GB = 6.49  # peak GPU memory that the paper reports (arXiv:2604.27128)
LOSSLESS = TrackerConfig(grid=(8, 8), patch=16, width=128, attention_layers=2, feed_forward=256, decoder_heads=4)
FAST = TrackerConfig(grid=(20, 20), patch=16, width=128, attention_layers=2, feed_forward=384, decoder_heads=4)
MB = 1e6
# Pens with crossings and animals that hide one another, of seeds that nothing was trained or tuned on.
CLIPS = (
    Clip(55401, "pig", 8, "day", "feeding"),
    Clip(55402, "pig", 12, "night", "feeding"),
    Clip(55403, "pig", 10, "day", "pile"),
    Clip(55404, "pig", 15, "day", "feeding"),
)

mpl.use("agg")


def main() -> int:
    """Run the parts and print, or write, what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "engines" / "nano")
    parser.add_argument(
        "--clips", type=Path, default=ROOT / "build" / "tracking" / "clips", help="simulated test clips"
    )
    parser.add_argument("--quick", action="store_true", help="fewer frames, one clip")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--plot", type=Path, help="draw both sessions' memory into this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    lossless = compare_with_stock(frames=20 if args.quick else 100)
    print(f"lossless: mask IoU at least {lossless.least_iou:.4f}, logits within {lossless.difference:.1e}", flush=True)
    throughput = measure_throughput(frames=3 if args.quick else 12)
    print(
        f"throughput: {throughput.full_ratio:.1f} times the stock session's at 10 animals, lazy {throughput.ratio:.1f}",
        flush=True,
    )
    scripted = grow(scripted_run(1_000 if args.quick else 50_000))
    print(f"bounded, scripted: {scripted}", flush=True)
    nano = grow(shipped_run(args.models, args.clips, 100 if args.quick else 2_000))
    print(f"bounded, shipped set: {nano}", flush=True)
    sizes = session_sizes()
    modes = compare_modes(args.models, args.clips, quick=args.quick)
    if args.plot:
        draw_memory(lossless, args.plot)
    report = to_markdown(lossless, throughput, scripted, nano, sizes, modes)
    print(report)
    if args.out:
        args.out.write_text(report)
    if args.json:
        summary = {
            "benchmark": "sessions",
            "machine": describe_machine(),
            "slope_mb_per_1000_frames": round(scripted.slope, 4),
            "slope_ci": [round(edge, 4) for edge in scripted.interval],
            "session_bytes": scripted.session_bytes,
            "shipped_slope_mb_per_1000_frames": round(nano.slope, 4),
            "shipped_slope_ci": [round(edge, 4) for edge in nano.interval],
            "throughput_ratio_to_hf": round(throughput.ratio, 2),
            "throughput_ratio_to_hf_full": round(throughput.full_ratio, 2),
            "mask_iou_to_hf_min": lossless.least_iou,
            "logit_difference_to_hf_max": lossless.difference,
            "sizes_mb": sizes,
            "modes": modes,
        }
        print(json.dumps(summary))
    return os.EX_OK


# Lossless


@dataclass(frozen=True, slots=True)
class Lossless:
    """How near fixed slots come to the stock session, and what each keeps after every frame, in bytes of FP32."""

    least_iou: float
    difference: float
    stock_bytes: list[int]
    our_bytes: list[int]


def compare_with_stock(frames: int, animals: int = 3) -> Lossless:
    """Both sessions on the same frames; the stock one without the rounding to bfloat16 of what it keeps."""
    rounding, torch.bfloat16 = torch.bfloat16, torch.float32
    try:
        stock = stock_tracker(LOSSLESS, animals)
        theirs = list(follow(stock, LOSSLESS, animals, frames))
    finally:
        torch.bfloat16 = rounding
    tracker = tracker_like(stock, LOSSLESS)
    positions = TemporalPositions.from_arrays(session_constants(tracker))
    engines = MemoryTracker(*map(TorchEngine, roles.tracker_graphs(tracker)), positions=positions)
    bank = MemoryBank(animals, positions, engines.layout, batch=animals, dtype=np.float32)
    ious, differences, ours = [1.0], [0.0], []
    for frame, (masks, presence) in enumerate(pruned(engines, bank, LOSSLESS, animals, frames)):
        ours.append(bank.size_bytes)
        if frame:
            want = theirs[frame]
            inside, either = (masks > 0) & (want.masks > 0), (masks > 0) | (want.masks > 0)
            shared, joined = inside.sum(axis=(1, 2)), either.sum(axis=(1, 2))  # (A,)
            ious += np.where(joined > 0, shared / np.maximum(joined, 1), 1.0).tolist()  # two empty masks are alike
            differences.append(float(max(np.abs(masks - want.masks).max(), np.abs(presence - want.presence).max())))
    return Lossless(min(ious), max(differences), [4 * step.kept for step in theirs], ours)


def pruned(
    engines: MemoryTracker, bank: MemoryBank, config: TrackerConfig, animals: int, frames: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Our side: masks and presence of every frame, all animals looked for on each."""
    slots = range(animals)
    for frame in range(frames):
        maps = maps_of(config, frame)
        if frame == 0:
            masks, presence = certain(first_masks(config, animals)), np.ones(animals, np.float32)
            bank.condition(slots, 0, engines.memorize(maps, masks, presence), engines.point_at(maps, masks))
        else:
            seen = engines.segment(maps, bank.recall(slots, frame))
            masks, presence = seen.mask_logits, seen.presence
            bank.remember(slots, frame, engines.memorize(maps, masks, presence), seen.pointers)
        yield masks, presence


# Throughput


@dataclass(frozen=True, slots=True)
class Throughput:
    """Seconds a frame of the stock session, of ours that asks about all animals, and of the whole lazy one."""

    stock_s: float
    full_s: float
    lazy_s: float

    @property
    def full_ratio(self) -> float:
        """How many times faster ours is at the same work."""
        return self.stock_s / self.full_s

    @property
    def ratio(self) -> float:
        """How many times faster ours is as the service runs it."""
        return self.stock_s / self.lazy_s


def measure_throughput(frames: int, animals: int = 10, warm: int = 8) -> Throughput:
    """The sessions in turns, frame by frame, once every memory slot is filled; medians."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    stock = stock_tracker(FAST, animals)
    tracker = tracker_like(stock, FAST)
    positions = TemporalPositions.from_arrays(session_constants(tracker))
    with tempfile.TemporaryDirectory() as folder:
        engines = MemoryTracker(*onnx_engines(tracker, Path(folder)), positions=positions)
        bank = MemoryBank(animals, positions, FAST.layout, batch=animals)
        theirs = follow(stock, FAST, animals, warm + frames)
        full = pruned(engines, bank, FAST, animals, warm + frames)
        lazy = mostly_detected(engines, FAST, animals, warm + frames)
        seconds: tuple[list[float], ...] = ([], [], [])
        for _ in range(warm + frames):
            for side, spent in zip((theirs, full, lazy), seconds, strict=True):
                started_s = time.perf_counter()
                next(side)
                spent.append(time.perf_counter() - started_s)
        engines.close()
    return Throughput(*(statistics.median(spent[warm:]) for spent in seconds))


def mostly_detected(engines: MemoryTracker, config: TrackerConfig, animals: int, frames: int) -> Iterator[int]:
    """The service's session on animals at rest, of which the detector misses one on each frame, each in its turn.

    Yields how many were in sight. Weights by lot find nothing worth believing, so what memory says is not believed.
    """
    settings = replace(TrackingSettings(fps=FPS), max_objects=animals, recall_iou=2.0)
    memory = MemoryPropagator(engines, settings)
    memory.reserve()
    session, logits = Session(settings, session=1, memory=memory), first_masks(config, animals)
    boxes_px = tight_boxes(logits > 0)
    for frame in range(frames):
        seen = [animal for animal in range(animals) if frame == 0 or animal != frame % animals]
        scores = np.full(len(seen), 0.95, np.float32)
        detections = Detections(boxes_px[seen], scores, logits[seen], config.mask_size)
        yield len(session.step(detections, round(frame * 1e9 / FPS), maps_of(config, frame)))


def onnx_engines(tracker: Any, folder: Path) -> list[OnnxBackend]:
    """The tracker's engines on ONNX Runtime."""
    engines = []
    for graph in roles.tracker_graphs(tracker):
        path = folder / graph.file
        write_graph(graph, path)
        engines.append(OnnxBackend(path, EngineSpec(graph.role, *tensor_specs(path))))
    return engines


# Bounded


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident memory over a run: its slope in MB per 1,000 frames, with a 95 % confidence interval."""

    frames: int
    slope: float
    interval: tuple[float, float]
    session_bytes: int
    constant: bool

    def __str__(self) -> str:
        low, high = self.interval
        sized = "constant" if self.constant else "NOT constant"
        return (
            f"{self.slope:+.3f} MB per 1,000 frames (95 % interval {low:+.3f} to {high:+.3f}) over {self.frames} "
            f"frames; session {self.session_bytes / MB:.2f} MB, {sized}"
        )


def grow(session_bytes: Iterator[int], samples: int = 100) -> Growth:
    """Run it through and measure; the first fifth, in which pools fill, does not count."""
    sizes: set[int] = set()
    at: list[int] = []
    rss: list[float] = []
    frames = every = 1
    for frames, size in enumerate(session_bytes, start=1):
        sizes.add(size)
        if frames % every == 0:
            gc.collect()
            at.append(frames)
            rss.append(resident_bytes() / MB)
            if len(at) > 2 * samples:  # twice as seldom from now on
                at, rss, every = at[1::2], rss[1::2], 2 * every
    first = len(at) // 5
    slope, error = fit_slope(np.array(at[first:]) / 1000, np.array(rss[first:]))
    return Growth(frames, slope, (slope - 1.96 * error, slope + 1.96 * error), max(sizes), len(sizes) == 1)


def resident_bytes() -> int:
    """What the process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def scripted_run(frames: int, grid: int = 20, fps: float = 6.0) -> Iterator[int]:
    """A session with scripted engines in a pen where animals walk in, hide, are missed and walk out."""
    settings = TrackingSettings(fps=fps, lazy=False)
    memory = MemoryPropagator(scripted_tracker((grid, grid)), settings)
    memory.reserve()
    session = Session(settings, session=1, memory=memory)
    for frame in range(frames):
        colors, found = pen(frame, grid)
        session.step(found, round(frame * 1e9 / fps), painted(colors))
        session.take_tracklets()
        yield session.size_bytes


def pen(frame: int, grid: int) -> tuple[NDArray[np.float32], Detections]:
    """Eight places, each with another animal every 40 to 110 frames: here, unseen by the detector, hidden, or gone."""
    colors, masks = np.zeros((grid, grid), np.float32), []
    for place in range(8):
        visit, moment = divmod(frame + 13 * place, 40 + 10 * place)
        hidden, missed, gone = moment % 23 in (7, 8, 9), moment % 11 == 3, moment > 30 + 9 * place
        row, column = 2 + 8 * (place // 4) + moment % 3, 1 + 5 * (place % 4) + moment % 2
        if hidden or gone:
            continue
        colors[row : row + 4, column : column + 3] = 1 + (8 * visit + place) % 1000
        if not missed:
            mask = np.full((4 * grid, 4 * grid), -6, np.float32)
            mask[4 * row : 4 * (row + 4), 4 * column : 4 * (column + 3)] = 6
            masks.append(mask)
    size = (720, 1280)
    if not masks:
        return colors, Detections.empty(size, (4 * grid, 4 * grid))
    logits = np.stack(masks)
    scale = np.array([size[1], size[0]] * 2, np.float32) / (4 * grid)
    boxes_px = (tight_boxes(logits > 0) * scale).astype(np.float32)
    return colors, Detections(boxes_px, np.full(len(masks), 0.95, np.float32), logits, size)


def shipped_run(models: Path, clips: Path, frames: int) -> Iterator[int]:
    """The shipped set on a simulated clip, played over and over, in one session of the service's pipeline."""
    clip = list(read_frames(render(CLIPS[0], clips) / "clip.mp4", camera="replay"))
    with load_model_set(models, threads=half_the_cores()) as model_set:
        pipeline = make_pipeline(model_set, "pig", FPS)
        for index, frame in enumerate(itertools.islice(itertools.cycle(clip), frames)):
            at_ns = round(index * 1e9 / FPS)
            moment = replace(frame, index=index, captured_ns=at_ns, monotonic_ns=at_ns)
            result = pipeline.follow(pipeline.encode(moment))
            assert result is not None
            yield result.session_bytes


# Sizes


def session_sizes() -> list[dict[str, Any]]:
    """What the sessions of the full-size presets reserve, laid out and counted, for 8, 15 and 30 animals."""
    rows = []
    for preset in (ORIN, ORIN_B):
        config = preset.tracker
        assert config is not None
        positions = TemporalPositions(
            memory=np.zeros((config.memories, config.memory_width), np.float32),
            pointer_weight=np.zeros((config.memory_width, config.width), np.float32),
            pointer_bias=np.zeros(config.memory_width, np.float32),
            pointer_frames=config.pointer_frames,
        )
        layout = config.layout
        most = largest_batch(layout.cells, layout.cells * layout.slots)
        cameras = {str(n): reserved_bytes(n, positions, layout, batch=min(n, most)) / MB for n in (8, 15, 30)}
        one, two = (reserved_bytes(n, positions, layout, batch=1) for n in (1, 2))
        rows.append(
            {
                "preset": preset.name,
                "grid": "x".join(map(str, config.grid)),
                "animal_mb": (two - one) / MB,
                "cameras_mb": cameras,
            }
        )
    return rows


def reserved_bytes(animals: int, positions: TemporalPositions, layout: MemoryLayout, *, batch: int) -> int:
    """What a session with so many slots reserves."""
    bank = MemoryBank(animals, positions, layout, batch=batch)
    width = positions.pointer_weight.shape[1]
    return bank.size_bytes + Impressions(animals, bank.recent, width=width, grid=layout.grid).size_bytes


# Modes


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame as every mode gets it: what the encoder and the detector made of it."""

    at_ns: int
    features: Mapping[str, NDArray[np.float32]]
    detections: Detections


def compare_modes(models: Path, clips: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Detection every 1, 3, 5 and 10 frames, carried on by motion, and by memory where the set has a tracker."""
    rows = []
    chosen = CLIPS[:1] if quick else CLIPS
    with load_model_set(models) as model_set:
        seen = {clip.name: list(look(model_set, render(clip, clips) / "clip.mp4")) for clip in chosen}
        truths = {clip.name: read_boxes(render(clip, clips) / "gt.txt") for clip in chosen}
        usual = TrackingSettings(fps=FPS).for_detector(model_set.manifest.thresholds.score)
        for every, mode in itertools.product((1, 3, 5, 10), ("motion", "full", "lazy")):
            if mode != "motion" and model_set.tracker is None:
                continue
            settings = replace(usual, detect_every=every, lazy=mode == "lazy")
            tracker = model_set.tracker if mode != "motion" else None
            scores, spent_s, frames, asked = [], 0.0, 0, 0
            for name, clip_frames in seen.items():
                memory = CountingPropagator(tracker, settings) if tracker is not None else None
                started_s = time.perf_counter()
                marks = play(clip_frames, settings, memory)
                spent_s, frames = spent_s + time.perf_counter() - started_s, frames + len(clip_frames)
                asked += memory.asked if memory is not None else 0
                scores.append(evaluate(truths[name], marks))
            mean = summarize(scores)
            row = {"detect_every": every, "mode": mode, "MOTA": mean.mota, "IDF1": mean.idf1, "HOTA": mean.hota}
            rows.append({**row, "asked": asked / frames, "tracking_ms": 1e3 * spent_s / frames})
            print(" ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in rows[-1].values()))
    return rows


class CountingPropagator(MemoryPropagator):
    """Counts how often memory is asked about an animal."""

    asked = 0

    def seek(
        self, targets: Sequence[Target], everyone: Sequence[Target], features: Features, image_size: tuple[int, int]
    ) -> None:
        """See `MemoryPropagator.seek`."""
        self.asked += len(targets)
        super().seek(targets, everyone, features, image_size)


def look(models: ModelSet, clip: Path) -> Iterator[Seen]:
    """What encoder and detector make of every frame of a clip."""
    for frame in read_frames(clip, camera="replay"):
        features = models.encoder.encode(frame.image)
        least = TrackingSettings().for_detector(models.manifest.thresholds.score).min_score
        found = models.detector.detect(features, frame.image.shape[:2], "pig", min_score=least)
        yield Seen(frame.monotonic_ns, {name: features[name] for name in features if name[0] == "t"}, found)


def play(frames: Sequence[Seen], settings: TrackingSettings, memory: MemoryPropagator | None) -> list[Mark]:
    """The tracks of a clip, of which the detector looks at every n-th frame."""
    session, marks = Session(settings, session=1, memory=memory), []
    for number, seen in enumerate(frames):
        detections = seen.detections if number % settings.detect_every == 0 else None
        for track in session.step(detections, seen.at_ns, seen.features):
            x0, y0, x1, y1 = map(float, track.box_px)
            if x1 > x0 and y1 > y0:
                marks.append(Mark(number + 1, track.track, [x0 + 1, y0 + 1, x1 - x0, y1 - y0], ignored=False))
    return marks


# Reports


def draw_memory(lossless: Lossless, path: Path) -> None:
    """Both sessions' memory, frame by frame."""
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(np.array(lossless.stock_bytes) / MB, label="stock session, every frame kept")
    axes.plot(np.array(lossless.our_bytes) / MB, label="fixed slots")
    axes.set(xlabel="frame", ylabel="MB of FP32", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def to_markdown(
    lossless: Lossless,
    throughput: Throughput,
    scripted: Growth,
    shipped: Growth,
    sizes: list[dict[str, Any]],
    modes: list[dict[str, Any]],
) -> str:
    """Everything as tables."""
    lines = [
        "# Memory sessions",
        "",
        f"Machine: {describe_machine()}. Made by `python benchmarks/sessions.py`.",
        "",
        "## Against the stock session of `transformers` (weights by lot)",
        "",
        "| what | figure |",
        "| --- | ---: |",
        f"| frames compared | {len(lossless.our_bytes)} |",
        f"| least mask IoU | {lossless.least_iou:.4f} |",
        f"| largest difference of a logit | {lossless.difference:.1e} |",
        f"| kept by the stock session at the end | {lossless.stock_bytes[-1] / MB:.1f} MB, growing |",
        f"| kept by ours | {lossless.our_bytes[-1] / MB:.1f} MB, always |",
        f"| seconds a frame at 10 animals, stock (PyTorch) | {throughput.stock_s:.3f} |",
        f"| ours (ONNX Runtime), all animals asked about | {throughput.full_s:.3f} |",
        f"| ours, lazy: one animal in ten asked about | {throughput.lazy_s:.3f} |",
        f"| throughput ratio, all asked about | {throughput.full_ratio:.1f} |",
        f"| throughput ratio, lazy, as the service runs | **{throughput.ratio:.1f}** |",
        "",
        "## Resident memory",
        "",
        f"- Scripted engines, animals that come, hide, are missed and go: {scripted}.",
        f"- Shipped model set on a simulated clip: {shipped}.",
        "",
        f"## What a session reserves at full size (FP16 memories; the paper's whole system: {PAPER_GB} GB on a GPU)",
        "",
        "Of an animal: memories, masks, pointers. Of a camera: all its animals, recent maps, and what a recall fills.",
        "",
        "| preset | grid | MB an animal | MB a camera, 8 animals | 15 animals | 30 animals |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sizes:
        cameras = " | ".join(f"{size:.0f}" for size in row["cameras_mb"].values())
        lines.append(f"| {row['preset']} | {row['grid']} | {row['animal_mb']:.2f} | {cameras} |")
    names = ", ".join(clip.name for clip in CLIPS)
    lines += [
        "",
        f"## Detection every few frames (simulated test clips: {names})",
        "",
        "| detection every | carried on by | MOTA | IDF1 | HOTA | asked about, a frame | tracking, ms a frame |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in modes:
        figures = " | ".join(f"{row[name]:.1f}" for name in ("MOTA", "IDF1", "HOTA", "asked", "tracking_ms"))
        lines.append(f"| {row['detect_every']} | {row['mode']} | {figures} |")
    if all(row["mode"] == "motion" for row in modes):
        lines += ["", "The model set has no tracker, so there is nothing yet to compare motion with."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
