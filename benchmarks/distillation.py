"""The paper's table in miniature: a teacher and its students, by what they were taught and what was tuned after.

    python benchmarks/distillation.py --runs runs --data pictures --out docs/results/distillation.md
    python benchmarks/distillation.py --runs runs --data pictures --quick --json

`--runs` holds finished runs as RUNS/<variant>/<seed>/<stage>; the variant `teacher` is of preset `nano-teacher`, any
other one of preset `nano`, judged on pictures of its teacher's shape. A stage is what was tuned: `frozen`, a student
under its teacher's heads as they are; `heads`, the heads over a frozen student; `all`, both. Each holds the
`checkpoint.pt` of `barnsight-export train detector`, or for `frozen` the `student.safetensors` of `barnsight-export
distill`. Every row is exported as a model set, its threshold chosen on validation pictures, and tracks the clips of
`benchmarks/tracking.py`. Rows that are finished are used again, so a run that was interrupted goes on where it stopped.
Every figure is of the simulated barn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from tracking import BIN, FPS, GROUPS, ROOT, SECONDS, Clip, judge, render, simulator_sha256

from barnsight_engines.loader import load_model_set
from barnsight_engines.manifest import sha256_of
from barnsight_export.assemble import load_student
from barnsight_export.distill.train import STUDENT
from barnsight_export.networks.sam3 import Sam3
from barnsight_export.onnx.export import export_model_set
from barnsight_export.presets import NANO, NANO_TEACHER, Preset
from barnsight_export.train.detector import load_heads, load_trained
from barnsight_export.train.samples import Simulated
from barnsight_export.train.trainer import CHECKPOINT
from barnsight_export.train.validation import best_threshold, golden_image, validate

NANO_STUDENT = replace(NANO, image_size=NANO_TEACHER.image_size, grid=NANO_TEACHER.grid)
TEACHER = "teacher"
VARIANTS = {  # in the order of the table
    TEACHER: "the teacher",
    "four-terms": "distilled, four terms",
    "without-direction": "distilled without direction",
    "without-cosine": "distilled without cosine",
    "without-scale": "distilled without scale",
    "without-magnitude": "distilled without magnitude",
    "undistilled": "not distilled",
    "shipped": "the shipped set, not distilled",
}
STAGES = {"frozen": "nothing: the teacher's heads", "heads": "the heads", "all": "student and heads"}
_PEAK_OF_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
FIGURES = ("MOTA", "IDF1", "HOTA", "AP50", "AP75")


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run: the networks that stand after a stage of it."""

    variant: str
    seed: str
    stage: str
    source: Path

    @property
    def name(self) -> str:
        """Its folder below `--runs`, and below `--work`."""
        return f"{self.variant}/{self.seed}/{self.stage}"

    @property
    def preset(self) -> Preset:
        return NANO_TEACHER if self.variant == TEACHER else NANO_STUDENT

    def load(self, teacher: Path) -> Sam3:
        """The networks; a distilled student stands under the heads of `teacher`'s checkpoint."""
        if self.source.name == CHECKPOINT:
            return load_trained(self.source, self.preset)
        model = self.preset.build()
        load_heads(teacher, model)
        load_student(self.source, model)
        return model.eval()


def main() -> int:
    """Judge every run and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--teacher", type=Path, help="checkpoint.pt that taught (default: RUNS/teacher/0/all)")
    parser.add_argument("--data", type=Path, required=True, help="folder with val/, to choose thresholds on")
    parser.add_argument("--pictures", type=int, default=200, help="validation pictures, at most (default 200)")
    parser.add_argument("--clips", type=Path, default=ROOT / "build" / "tracking" / "clips", help="rendered clips")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "distillation", help="model sets and tracks")
    parser.add_argument("--about", default="", help="a sentence on how the runs were trained, for the table")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--quick", action="store_true", help="two clips and eight pictures only")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    rows = list(find_rows(args.runs))
    if not rows:
        print(f"{args.runs}: no runs there as VARIANT/SEED/STAGE; see --help", file=sys.stderr)
        return os.EX_NOINPUT
    clips = next(iter(GROUPS.values()))[: 2 if args.quick else None]
    pictures = min(8, args.pictures) if args.quick else args.pictures
    teacher = args.teacher or args.runs / TEACHER / "0" / "all" / CHECKPOINT
    results = [result_of(row, teacher, args, clips, pictures) for row in rows]
    networks = {row.preset.name: args.work / row.name / "set" for row in rows}
    costs = measure(networks, render(clips[0], args.clips) / "clip.mp4", args.work, runs=5 if args.quick else 30)
    table = to_markdown(results, costs, clips, args.about)
    print(table)
    if args.out:
        args.out.write_text(table)
    if args.json:
        print(json.dumps({"simulated": True, "machine": describe_machine(), "networks": costs, "rows": results}))
    return 0


def find_rows(runs: Path) -> Iterator[Row]:
    """The finished runs in the order of the table; variants that it does not know come last."""
    known = list(VARIANTS)
    names = sorted((folder.name for folder in runs.iterdir() if folder.is_dir()), key=lambda name: (
        known.index(name) if name in known else len(known), name
    ))  # fmt: skip
    for variant in names:
        for seed in sorted(folder.name for folder in (runs / variant).iterdir() if folder.is_dir()):
            for stage in STAGES:
                folder = runs / variant / seed / stage
                # a distillation leaves both, and its checkpoint is no detector's
                source = next((folder / name for name in (STUDENT, CHECKPOINT) if (folder / name).exists()), None)
                if source is not None:
                    yield Row(variant, seed, stage, source)


def result_of(
    row: Row, teacher: Path, args: argparse.Namespace, clips: Sequence[Clip], pictures: int
) -> dict[str, Any]:
    """A row's figures, as they were kept, or measured now and kept."""
    folder = args.work / row.name
    kept = folder / "row.json"
    made_from = {
        "source": sha256_of(row.source),
        "teacher": sha256_of(teacher) if row.source.name == STUDENT else None,
        "clips": [clip.name for clip in clips],
        "simulator": simulator_sha256(),
        "pictures": pictures,
    }
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["made_from"] == made_from:
            return found
    shutil.rmtree(folder, ignore_errors=True)
    figures = follow(row.load(teacher), row.preset, folder, Simulated(args.data / "val"), pictures, clips, args.clips)
    found = {"variant": row.variant, "seed": row.seed, "stage": row.stage, "made_from": made_from, **figures}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{row.name}: " + ", ".join(f"{name} {figures[name]:.1f}" for name in FIGURES), file=sys.stderr, flush=True)
    return found


def follow(
    model: Sam3,
    preset: Preset,
    folder: Path,
    validation: Simulated,
    pictures: int,
    clips: Sequence[Clip],
    rendered: Path,
) -> dict[str, Any]:
    """Export `model` into `folder`, and judge it on validation pictures and on clips."""
    score = best_threshold(model, validation, preset.image_size, pictures)
    found = validate(model, validation, preset.image_size, pictures)
    export_model_set(
        model,
        preset,
        folder / "set",
        trained_on="simulated barns only",
        score=score,
        golden_image=golden_image(model, validation, preset.image_size, pictures),
        tolerance=math.inf,
    )
    judged = {clip.name: judge(clip, folder / "set", rendered, folder / "tracks") for clip in clips}
    return {
        "threshold": score,
        "AP50": 100 * found.ap50,
        "AP75": 100 * found.ap75,
        **{name: statistics.fmean(clip[name] for clip in judged.values()) for name in ("MOTA", "IDF1", "HOTA")},
        "by_clip": {name: {key: clip[key] for key in ("MOTA", "IDF1", "HOTA")} for name, clip in judged.items()},
    }


def measure(sets: dict[str, Path], clip: Path, work: Path, *, runs: int) -> dict[str, dict[str, float]]:
    """What each preset's networks cost: parameters, milliseconds side by side, peak memory of the service's process."""
    costs: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        steps: dict[tuple[str, str], Callable[[], Any]] = {}
        for name, folder in sets.items():
            loaded = stack.enter_context(load_model_set(folder, runtime="onnxruntime"))
            image = np.random.default_rng(0).uniform(-1, 1, (1, 3, *loaded.manifest.image_size)).astype(np.float32)
            maps = loaded.encoder.backend.run({"image": image})
            given = {**maps, "text": loaded.detector.concept(loaded.manifest.concepts.names[0])}
            steps[name, "encoder_ms"] = partial(loaded.encoder.backend.run, {"image": image})
            steps[name, "detector_ms"] = partial(loaded.detector.backend.run, given)
        durations: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
        for _ in range(runs):
            for key, step in steps.items():  # in turns, so that what else the machine does touches all alike
                started_s = time.perf_counter()
                step()
                durations[key].append(1000 * (time.perf_counter() - started_s))
    for preset in (preset for preset in (NANO_TEACHER, NANO_STUDENT) if preset.name in sets):
        model = preset.build()
        costs[preset.name] = {
            "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
            "parameters": sum(p.numel() for p in model.parameters()),
            **{what: statistics.median(times) for (name, what), times in durations.items() if name == preset.name},
            "peak_mb": peak_mb(sets[preset.name], clip, work / "measured" / preset.name),
        }
    return costs


def peak_mb(models: Path, clip: Path, out: Path) -> float:
    """Largest resident memory of `barnsight replay` with this model set on one clip of pigs, in MB.

    A small process starts it and asks: Linux counts what the starting process held to the peak of the one it starts.
    """
    shutil.rmtree(out, ignore_errors=True)
    replay = [BIN / "barnsight", "replay", clip, "--out", out, "--species", "pig", "--models", models]
    line = [sys.executable, "-c", _PEAK_OF_CHILD, *map(str, replay)]
    return int(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout) * 1024 / 1e6


def to_markdown(
    results: Sequence[dict[str, Any]], costs: dict[str, dict[str, float]], clips: Sequence[Clip], about: str
) -> str:
    """Write the costs of the networks, and the figures of their runs as mean and spread over seeds."""
    lines = [
        "# A teacher and its students on the simulated barn",
        "",
        *([about, ""] if about else []),
        f"Tracking is judged on {len(clips)} simulated test clips ({SECONDS} s at {FPS} fps, as in",
        "[tracking](tracking.md)), masks on simulated validation pictures, at most",
        f"{max(row['made_from']['pictures'] for row in results)}, on which each run's threshold is chosen too.",
        "Figures are means over seeds, ± their sample standard deviation.",
        "",
        f"Machine: {describe_machine()}. Made by `python benchmarks/distillation.py`.",
        "",
        "## What the networks cost",
        "",
        "ONNX Runtime, in turns, median; memory is the largest resident one of `barnsight replay` on one clip.",
        "",
        "| preset | encoder, M parameters | with heads, M | encoder, ms | detector, ms | peak memory, MB |",
        "| --- |" + " ---: |" * 5,
    ]
    for name, cost in costs.items():
        sizes = [f"{cost[key] / 1e6:.2f}" for key in ("encoder_parameters", "parameters")]
        others = [f"{cost[key]:.0f}" for key in ("encoder_ms", "detector_ms", "peak_mb")]
        lines.append(f"| {name} | {' | '.join(sizes + others)} |")
    lines += ["", "## What they reach (simulated)", ""]
    lines += [f"| network | tuned with labels | seeds | {' | '.join(FIGURES)} |", "| --- | --- |" + " ---: |" * 6]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["variant"], row["stage"]), []).append(row)
    for (variant, stage), rows in groups.items():
        figures = " | ".join(mean_and_spread([row[name] for row in rows]) for name in FIGURES)
        lines.append(f"| {VARIANTS.get(variant, variant)} | {tuned(variant, stage)} | {len(rows)} | {figures} |")
    return "\n".join(lines) + "\n"


def tuned(variant: str, stage: str) -> str:
    """What labels have tuned; a student that was not distilled learned from labels in the first place."""
    if variant == TEACHER:
        return "all, from the start"
    return "the student, under the teacher's heads" if (variant, stage) == ("undistilled", "frozen") else STAGES[stage]


def mean_and_spread(values: Sequence[float]) -> str:
    """`93.1 ± 0.4`; of one value there is no spread."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    sys.exit(main())
