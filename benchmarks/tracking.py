"""Tracking on simulated test clips that nothing was trained or tuned on: MOTA, IDF1 and HOTA, clip by clip.

    python benchmarks/tracking.py --out docs/results/tracking.md
    python benchmarks/tracking.py --quick --json

Each clip is rendered by `barnsight-export simulate --split test`, followed by `barnsight replay` with the shipped model
set, and judged by `barnsight-export evaluate tracking`. Clips that are there are used again unless the simulated
barn has changed since; so are, with `--resume`, the tracks of a run that was stopped. Every figure is of the simulated
barn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from machine import describe_machine

from barnsight_engines.manifest import sha256_of

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
SECONDS, FPS = 20, 6
FIGURES = ("MOTA", "IDF1", "HOTA", "DetA", "AssA", "FP", "FN", "IDSW")


@dataclass(frozen=True, slots=True)
class Clip:
    """One simulated test clip."""

    seed: int
    species: str
    animals: int
    light: str
    crowding: str | None = None
    view: str | None = None
    day: int = 0

    @property
    def name(self) -> str:
        """What the clip is called in files and tables."""
        others = [name for name in (self.crowding, self.view, self.day and f"{self.day}d") if name]
        return "-".join([self.species, f"{self.animals:02d}", self.light, *others, str(self.seed)])


GROUPS = {
    "Pigs, 4 to 12 in the pen": (
        Clip(55001, "pig", 4, "day"),
        Clip(55002, "pig", 5, "night"),
        Clip(55003, "pig", 6, "day"),
        Clip(55004, "pig", 7, "night"),
        Clip(55005, "pig", 8, "day"),
        Clip(55006, "pig", 9, "night"),
        Clip(55007, "pig", 10, "day"),
        Clip(55008, "pig", 12, "night"),
    ),
    "Pigs, 4 to 12 in eight other pens": (
        Clip(55501, "pig", 4, "night"),
        Clip(55502, "pig", 5, "day"),
        Clip(55503, "pig", 6, "night"),
        Clip(55504, "pig", 7, "day"),
        Clip(55505, "pig", 8, "night"),
        Clip(55506, "pig", 9, "day"),
        Clip(55507, "pig", 10, "night"),
        Clip(55508, "pig", 12, "day"),
    ),
    "Crowded pens, 15 to 25 pigs, huddles": (
        Clip(55101, "pig", 15, "day"),
        Clip(55102, "pig", 18, "night", "huddle"),
        Clip(55103, "pig", 20, "day", "huddle"),
        Clip(55104, "pig", 25, "day"),
    ),
    "Pigs two months on, 75 to 110 kg, in the same pens": (
        Clip(55401, "pig", 6, "day", day=60),
        Clip(55402, "pig", 8, "night", day=60),
        Clip(55403, "pig", 10, "day", day=60),
        Clip(55404, "pig", 12, "night", day=60),
    ),
    "Cattle": (
        Clip(55201, "cow", 4, "day"),
        Clip(55202, "cow", 6, "night"),
        Clip(55203, "cow", 8, "day"),
        Clip(55204, "cow", 12, "day"),
    ),
    "Cattle, seen down the barn from its end": (
        Clip(55301, "cow", 5, "day", view="aisle"),
        Clip(55302, "cow", 7, "night", view="aisle"),
        Clip(55303, "cow", 9, "day", view="aisle"),
        Clip(55304, "cow", 12, "night", view="aisle"),
    ),
}


def main() -> int:
    """Run the groups and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "engines" / "nano")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tracking", help="clips and tracks")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--quick", action="store_true", help="two clips of the first group only")
    parser.add_argument("--resume", action="store_true", help="keep the tracks of a run that was stopped")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    groups = {name: clips[:2] for name, clips in list(GROUPS.items())[:1]} if args.quick else GROUPS
    clips, tracks = args.work / "clips", args.work / "tracks"
    if not args.resume:
        shutil.rmtree(tracks, ignore_errors=True)
    results = {name: [judge(clip, args.models, clips, tracks) for clip in group] for name, group in groups.items()}
    table = to_markdown(groups, results, args.models)
    print(table)
    if args.out:
        args.out.write_text(table)
    if args.json:
        summary = {name: mean_of(rows) for name, rows in results.items()}
        print(json.dumps({"simulated": True, "machine": describe_machine(), "groups": summary}))
    return 0


def judge(clip: Clip, models: Path, clips: Path, followed: Path) -> dict[str, Any]:
    """Render a clip into the folder `clips`, follow it into `followed`; gives the figures of `evaluate tracking`.

    What this model set followed before is judged again as it is.
    """
    truth, tracks = render(clip, clips), followed / sha256_of(models / "manifest.json")[:12] / clip.name
    rendered_ns = (truth / "scene.json").stat().st_mtime_ns
    if not (tracks / "tracks.txt").exists() or (tracks / "tracks.txt").stat().st_mtime_ns < rendered_ns:
        source = ["barnsight", "replay", truth / "clip.mp4", "--out", tracks]
        command([*source, "--species", clip.species, "--models", models])
    evaluate = ["barnsight-export", "evaluate", "tracking", "--json"]
    boxes = command([*evaluate, "--truth", truth / "gt.txt", "--tracks", tracks / "tracks.txt"])
    masks = command([*evaluate, "--masks", "--truth", truth / "masks.jsonl", "--tracks", tracks / "masks.jsonl"])
    row: dict[str, Any] = json.loads(boxes)
    row["mask_HOTA"] = json.loads(masks)["HOTA"]
    return row


def render(clip: Clip, clips: Path) -> Path:
    """The folder of a clip and its truth in `clips`."""
    given = {"--crowding": clip.crowding, "--view": clip.view, "--day": clip.day}
    options = [part for option, value in given.items() if value for part in (option, value)]
    herd = ["--seed", clip.seed, "--species", clip.species, "--animals", clip.animals, "--light", clip.light]
    size = ["--seconds", SECONDS, "--fps", FPS, "--width", 1280, "--height", 720, "--workers", os.cpu_count()]
    return simulate(clips / clip.name, [*herd, *options, *size])


def simulate(out: Path, options: list[Any]) -> Path:
    """The folder `out` with a test clip of these options; rendered unless today's simulated barn has done so before."""
    made_by = out / "simulator.sha256"
    if not made_by.exists() or made_by.read_text() != simulator_sha256():
        made_by.unlink(missing_ok=True)
        command(["barnsight-export", "simulate", "--split", "test", *options, "--out", out])
        made_by.write_text(simulator_sha256())
    return out


@cache
def simulator_sha256() -> str:
    """A hash of the simulated barn's sources."""
    sources = sorted((ROOT / "export" / "barnsight_export" / "simbarn").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def command(parts: list[Any]) -> str:
    """Run one of the project's commands; gives the last line that it printed."""
    line = [str(BIN / parts[0]), *map(str, parts[1:])]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average each figure over the clips."""
    return {key: round(statistics.fmean(row[key] for row in rows), 2) for key in (*FIGURES, "mask_HOTA")}


def to_markdown(groups: dict[str, Any], results: dict[str, list[dict[str, Any]]], models: Path) -> str:
    """Write the groups as tables."""
    manifest = json.loads((models / "manifest.json").read_text())
    lines = [
        "# Tracking on the simulated barn",
        "",
        f"Simulated test clips: {SECONDS} s at {FPS} fps, 1280x720, H.264. Their seeds, floors and layouts were never",
        "used in training or tuning; feeders, drinkers and toys are of the same kinds there. They vary less than",
        "training pens do: the camera sees the whole pen from above, or down the barn, no skin is burnt out, pigs",
        "weigh 25 to 60 kg unless said, and cattle have no cubicles. Boxes are those of the visible masks, matched at",
        "IoU 0.5; HOTA over all thresholds; slivers that the truth marks with confidence 0 count neither way.",
        "",
        f"Model set `{manifest['name']}`; machine: {describe_machine()}. Made by `python benchmarks/tracking.py`.",
    ]
    for name, clips in groups.items():
        rows = results[name]
        lines += ["", f"## {name} (simulated)", ""]
        lines += [f"| clip | {' | '.join(FIGURES)} | HOTA on masks |", "| --- |" + " ---: |" * (len(FIGURES) + 1)]
        for clip, row in zip(clips, rows, strict=True):
            lines.append(f"| {clip.name} | {' | '.join(show(row[key]) for key in (*FIGURES, 'mask_HOTA'))} |")
        mean = mean_of(rows)
        lines.append(f"| **mean** | {' | '.join(f'**{mean[key]:.1f}**' for key in (*FIGURES, 'mask_HOTA'))} |")
    return "\n".join(lines) + "\n"


def show(figure: float) -> str:
    """Counts whole, percentages with one decimal."""
    return str(figure) if isinstance(figure, int) else f"{figure:.1f}"


if __name__ == "__main__":
    sys.exit(main())
