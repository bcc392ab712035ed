"""The truth of a clip: visible masks, boxes, tracks, animals and behaviors, frame by frame.

    gt.txt         MOT Challenge: frame,id,left,top,width,height,conf,class,visibility; frame and pixels count from 1;
                   the box is tight around the visible mask; class is 1 throughout, so that evaluators keep every row
    masks.jsonl    {"frame", "track", "animal", "size": [h, w], "counts", "ignore"} with COCO's run-length string
    truth.parquet  frame, track, animal, behavior, place, heading, speed, weight, condition, visible fraction, box
    scene.json     seed, split, camera, light, zones (as shares of the frame), herd

An animal of which less than ``SLIVER_FRACTION`` of the silhouette or ``SLIVER_PX`` pixels are seen is a sliver: it has
conf 0 and ``ignore``, so that a tracker is neither asked for it nor blamed for it. Unseen animals have no row in
gt.txt and masks.jsonl, and an empty box in truth.parquet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from barnsight_export.simbarn.animals import Animal
from barnsight_export.simbarn.ethogram import State
from barnsight_export.simbarn.render import Rendered
from barnsight_export.simbarn.scene import Scene

SLIVER_FRACTION = 0.15
SLIVER_PX = 60
ROWS_PER_GROUP = 20_000

TRUTH_SCHEMA = pa.schema(
    [
        ("frame", pa.int32()), ("track", pa.int32()), ("animal", pa.string()), ("behavior", pa.string()),
        ("x_m", pa.float32()), ("y_m", pa.float32()), ("heading_rad", pa.float32()), ("speed_m_s", pa.float32()),
        ("weight_kg", pa.float32()), ("condition", pa.float32()), ("visible_fraction", pa.float32()),
        ("left_px", pa.int32()), ("top_px", pa.int32()), ("width_px", pa.int32()), ("height_px", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What a frame shows of one animal. ``box_px`` is left, top, width, height, counted from 0."""

    track: int
    box_px: tuple[int, int, int, int]
    visible_fraction: float
    sliver: bool
    counts: str


def animal_name(animal: Animal) -> str:
    """The animal's name in every file, stable over days."""
    return f"{animal.species}-{animal.number:03d}"


def seen_animals(shot: Rendered) -> list[Seen]:
    """Every animal with at least one visible pixel; its track is its number."""
    seen = []
    for track in np.unique(shot.ids[shot.ids > 0]).tolist():
        mask = shot.ids == track
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
        fraction = float(np.clip(shot.visible_fraction[track - 1], 0, 1))
        sliver = fraction < SLIVER_FRACTION or int(mask.sum()) < SLIVER_PX
        counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode("ascii")
        seen.append(Seen(track, box, fraction, sliver, counts))
    return seen


class TruthWriter:
    """Writes the truth files of one clip into a folder; use as a context manager."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder, self.scene = folder, scene
        self._boxes = (folder / "gt.txt").open("w", encoding="ascii")
        self._masks = (folder / "masks.jsonl").open("w", encoding="ascii")
        self._table = pq.ParquetWriter(folder / "truth.parquet", TRUTH_SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> TruthWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._boxes.close()
        self._masks.close()
        self._flush()
        self._table.close()

    def write(self, frame: int, states: Sequence[State], seen: Sequence[Seen]) -> None:
        """Add one frame, counted from 1."""
        size = [self.scene.spec.height, self.scene.spec.width]
        for s in seen:
            left, top, width, height = s.box_px
            conf = 0 if s.sliver else 1
            self._boxes.write(
                f"{frame},{s.track},{left + 1},{top + 1},{width},{height},{conf},1,{s.visible_fraction:.3f}\n"
            )
            row = {"frame": frame, "track": s.track, "animal": animal_name(self.scene.herd[s.track - 1])}
            row |= {"size": size, "counts": s.counts, "ignore": s.sliver}
            self._masks.write(json.dumps(row) + "\n")
        by_track = {s.track: s for s in seen}
        rows = [
            self._row(frame, animal, state, by_track.get(animal.number))
            for animal, state in zip(self.scene.herd, states, strict=True)
        ]
        self._rows += rows
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, schema=TRUTH_SCHEMA))
        self._rows = []

    def _row(self, frame: int, animal: Animal, state: State, seen: Seen | None) -> dict[str, Any]:
        left, top, width, height = seen.box_px if seen else (0, 0, 0, 0)
        return {
            "frame": frame, "track": animal.number, "animal": animal_name(animal), "behavior": state.behavior.value,
            "x_m": state.pose.x_m, "y_m": state.pose.y_m, "heading_rad": state.pose.heading_rad,
            "speed_m_s": state.speed_m_s, "weight_kg": animal.weight_kg, "condition": animal.condition,
            "visible_fraction": seen.visible_fraction if seen else 0.0,
            "left_px": left, "top_px": top, "width_px": width, "height_px": height,
        }  # fmt: skip


def describe(scene: Scene, *, frames: int, fps: int) -> dict[str, Any]:
    """The scene as written to scene.json; zones are polygons in shares of the frame's width and height."""
    zones = {}
    for name, corners in scene.zones_m.items():
        pixels, _ = scene.camera.project([(x, y, 0.0) for x, y in corners])
        shares = pixels / np.array([scene.spec.width, scene.spec.height])
        zones[name] = np.clip(shares, 0, 1).round(4).tolist()
    herd = [
        {
            "animal": animal_name(a),
            "track": a.number,
            "weight_kg": round(a.weight_kg, 2),
            "length_m": round(a.length_m, 4),
        }
        for a in scene.herd
    ]
    return {
        "simulated": True,
        "spec": asdict(scene.spec),
        "frames": frames,
        "fps": fps,
        "floor": scene.floor_family,
        "layout": scene.layout,
        "pen_m": list(scene.pen_m),
        "light": scene.light.kind,
        "camera": asdict(scene.camera),
        "zones": zones,
        "sliver": {"visible_fraction": SLIVER_FRACTION, "pixels": SLIVER_PX},
        "herd": herd,
    }
