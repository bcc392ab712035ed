"""What FP16 and INT8 cost and save: size, time and agreement of each engine, and MOTA of the whole set.

    python benchmarks/precision.py --out docs/results/precision.md
    python benchmarks/precision.py --quick --json

The sets are made by `barnsight-export quantize` from --models: FP16; INT8 in the encoder with the rest in FP32, for
ONNX Runtime; and INT8 with the rest in FP16, for TensorRT. Ranges come from simulated training pictures, sensitivity
from validation pictures, MOTA from the test clips of benchmarks/tracking.py. `cosine` is that of the engine's worst
output on the set's golden input, each engine working on the answers of the ones before it. Times are of ONNX Runtime
on this CPU, which computes FP16 in FP32; they say nothing of a GPU. Sets, clips and tracks that are there already are
used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from machine import describe_machine
from numpy.typing import NDArray
from tracking import GROUPS, command, judge

from barnsight_engines.certificate import inputs_of
from barnsight_engines.loader import check_model_set
from barnsight_engines.manifest import read_arrays
from barnsight_engines.onnx_backend import OnnxBackend
from barnsight_export.certify import certify_set

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {"train": 400, "val": 200}
SETS: Mapping[str, tuple[str, ...]] = {
    "fp16": ("--precision", "fp16"),
    "int8": ("--precision", "int8", "--rest", "fp32"),
    "int8+fp16": ("--precision", "int8", "--rest", "fp16"),
}


def main() -> int:
    """Make the sets, measure them and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "engines" / "nano")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "precision", help="pictures, sets and tracks")
    parser.add_argument("--clips", type=Path, default=ROOT / "build" / "tracking" / "clips", help="test clips")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--quick", action="store_true", help="two test clips and fewer frames")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    _, name = check_model_set(args.models)
    work = args.work / (f"{name}-quick" if args.quick else name)
    sets = {"fp32": args.models} | make_sets(args.models, work, args.work / "pictures", quick=args.quick)
    engines = measure_engines(sets, runs=10 if args.quick else 60)
    clips = next(iter(GROUPS.values()))[: 2 if args.quick else None]
    mota = {}
    for precision, folder in sets.items():
        rows = [judge(clip, folder, args.clips, work / "tracks" / precision) for clip in clips]
        mota[precision] = {key: round(statistics.fmean(row[key] for row in rows), 2) for key in ("MOTA", "IDF1")}
    table = to_markdown(engines, mota, len(clips))
    print(table)
    if args.out:
        args.out.write_text(table)
    if args.json:
        result = {"benchmark": "precision", "simulated": True, "machine": describe_machine(), "engines": engines}
        print(json.dumps({**result, "mota": {precision: row["MOTA"] for precision, row in mota.items()}}))
    return 0


def make_sets(models: Path, work: Path, pictures: Path, *, quick: bool) -> dict[str, Path]:
    """The sets at lower precision, by precision."""
    for split, count in PICTURES.items():
        simulate = ["barnsight-export", "simulate", "--pictures", split, "--workers", 2, "--out", pictures / split]
        command([*simulate, "--count", count])
    calibration = ["--data", pictures, "--format", "simulated", *(["--calibrate", 40, "--measure", 4] if quick else [])]
    sets = {}
    for precision, options in SETS.items():
        sets[precision] = folder = work / precision
        if not (folder / "manifest.json").exists():
            quantize = ["barnsight-export", "quantize", models, *options, "--out", folder]
            print(command([*quantize, *(calibration if "int8" in options else [])]), file=sys.stderr)
    return sets


def measure_engines(sets: Mapping[str, Path], runs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Size, cosine and time by role and precision; the sets take turns, so that all see the same machine."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    times_ms: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as opened:
        steps = []
        for precision, folder in sets.items():
            for record in certify_set(folder).engines:
                mb = (folder / record.file).stat().st_size / 1e6
                cosine = min(output.cosine for output in record.outputs)
                row = {"mb": round(mb, 2), "cosine": round(cosine, 6)}
                figures.setdefault(record.role, {})[precision] = row
            steps += [(precision, *step) for step in open_engines(folder, opened)]
        for _ in range(runs):
            for precision, backend, inputs in steps:
                started_ns = time.perf_counter_ns()
                backend.run(inputs)
                elapsed_ms = (time.perf_counter_ns() - started_ns) / 1e6
                times_ms.setdefault((backend.spec.role, precision), []).append(elapsed_ms)
    for (role, precision), times in times_ms.items():
        figures[role][precision]["ms"] = round(statistics.median(times), 2)
    return figures


def open_engines(folder: Path, opened: ExitStack) -> Iterator[tuple[OnnxBackend, dict[str, NDArray[Any]]]]:
    """Each engine of a set with its input on the golden picture."""
    manifest, _ = check_model_set(folder)
    golden = folder / manifest.golden.file
    known = read_arrays(golden)
    for entry in manifest.engines:
        backend = opened.enter_context(closing(OnnxBackend(folder / entry.file, entry.spec)))
        inputs = inputs_of(backend, known, str(golden))
        known |= backend.run(inputs)
        yield backend, inputs


def to_markdown(engines: dict[str, Any], mota: dict[str, Any], clips: int) -> str:
    """Write the figures as tables."""
    lines = [
        "# Precision of the nano set",
        "",
        f"FP32, FP16, INT8 in the encoder, and the same with FP16 elsewhere. Simulated; {describe_machine()}.",
        "Times are ONNX Runtime's on this CPU, which computes FP16 in FP32: they say nothing of a GPU. The cosine is",
        "that of an engine's worst output on the golden picture. Made by `python benchmarks/precision.py`.",
        "",
        "| engine | precision | MB | ms | cosine |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for role, rows in engines.items():
        for precision, row in rows.items():
            lines.append(f"| {role} | {precision} | {row['mb']:.2f} | {row['ms']:.1f} | {row['cosine']:.5f} |")
    lines += [
        "",
        f"Tracking on {clips} simulated test clips of 4 to 12 pigs, the whole set at that precision:",
        "",
        "| precision | MOTA | IDF1 | MOTA lost |",
        "| --- | ---: | ---: | ---: |",
    ]
    for precision, row in mota.items():
        lost = mota["fp32"]["MOTA"] - row["MOTA"]
        lines.append(f"| {precision} | {row['MOTA']:.1f} | {row['IDF1']:.1f} | {lost:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
