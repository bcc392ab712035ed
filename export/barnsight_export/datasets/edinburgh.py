"""The Edinburgh Pig Behavior Video Dataset (Bergamini et al. 2021): eight pigs in one pen, twelve labeled clips.

A clip is a folder with `color.mp4`, `times.txt` (a time for each video frame) and `output.json`:

    {"objects": [{"id": 1, "frames": [{"frameNumber": 0, "bbox": {"x": 3, "y": 4, "width": 90, "height": 40},
                                       "isGroundTruth": true, "visible": true, "behaviour": "lying"}, …]}, …]}

An entry stands only where something changes and holds until the next one. Every third video frame is labeled: label
frame f is video frame 3f. Clips are named by day and number, `2019_11_05_000002`, one folder or two nested ones; the
number alone will do. The data is to be had from the University of Edinburgh; nothing of it is shipped here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barnsight_export.datasets.videos import Video, VideoFrames
from barnsight_export.errors import DataError, DataMissingError, OutputError

VIDEO, TIMES, LABELS = "color.mp4", "times.txt", "output.json"
LABEL_EVERY = 3  # video frames from one label frame to the next

# The authors' split of the clips (Yang and Hostens 2026, arXiv:2604.27128).
SPLIT = {
    "train": ("2019_11_05_000002", "2019_11_11_000028", "2019_11_11_000036", "2019_11_22_000010"),
    "val": ("2019_11_28_000113",),
    "test": ("2019_12_02_000005", "2019_12_02_000208", "2019_12_10_000060", "2019_12_10_000078"),
}

BEHAVIORS = ("standing", "lying", "eat", "drink", "sitting", "sleep", "run", "playwithtoy", "nose-to-nose")
# Raw labels by their letters alone: case, hyphens, underscores and spaces differ from clip to clip.
_BEHAVIOR_OF: dict[str, str | None] = {
    **{"".join(filter(str.isalpha, name)): name for name in BEHAVIORS},
    **dict.fromkeys(
        ("chase", "fight", "investigating", "jumpontopof", "mount", "nosepokeelsewhere", "tailbiting", "walk")
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A clip's folder, its name, and the time of each of its video frames, (V,) seconds."""

    folder: Path
    name: str
    times_s: NDArray[np.float64]

    @property
    def label_frames(self) -> int:
        """How many label frames the clip has."""
        return -(-len(self.times_s) // LABEL_EVERY)

    def time_s(self, label_frame: int) -> float:
        """When a label frame was taken."""
        return float(self.times_s[LABEL_EVERY * label_frame])


@dataclass(frozen=True, slots=True)
class Label:
    """One animal on one label frame; `drawn` tells a box that a person drew from one that was filled in."""

    frame: int
    animal: int
    box_px: tuple[float, float, float, float]  # left, top, width, height, from 0
    visible: bool
    drawn: bool
    behavior: str | None  # one of BEHAVIORS; None for what the paper does not classify


def find_clips(folder: Path, names: Sequence[str]) -> list[Clip]:
    """The clips of these names under a folder, in their order; raises DataMissingError for one that is not there."""
    if not folder.is_dir():
        raise DataMissingError(f"{folder}: no such folder; name the one that holds the Edinburgh clips")
    folders = {"_".join(p.parent.relative_to(folder).parts): p.parent for p in sorted(folder.rglob(LABELS))}
    if not folders:
        raise DataMissingError(f"{folder}: no clip in it; a clip is a folder with {VIDEO}, {TIMES} and {LABELS}")
    clips = []
    for name in names:
        number = name.rsplit("_", 1)[1]
        place = next((path for found, path in folders.items() if found.endswith(name) or found == number), None)
        if place is None:
            raise DataMissingError(f"{folder}: clip {name} is not there, only {', '.join(folders)}")
        for part in (VIDEO, TIMES):
            if not (place / part).is_file():
                raise DataMissingError(f"{place / part}: is missing; unpack clip {name} again")
        clips.append(Clip(place, name, _read_times(place / TIMES)))
    return clips


def labeled_frames(clips: Sequence[Clip], frames_each: int) -> VideoFrames:
    """Up to `frames_each` evenly spaced labeled frames of each clip, as pictures."""
    videos = []
    for clip in clips:
        count = min(frames_each, clip.label_frames)
        chosen = [(2 * k + 1) * clip.label_frames // (2 * count) for k in range(count)]
        videos.append(Video(clip.folder / VIDEO, tuple(LABEL_EVERY * frame for frame in chosen)))
    return VideoFrames(videos)


def read_labels(clip: Clip) -> list[Label]:
    """What is known of each animal on each label frame from its first entry on, ordered by frame and animal.

    Raises DataError that names the file, the object and the entry that is wrong.
    """
    path = clip.folder / LABELS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        objects = content["objects"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no label file of this data set: {error!r}; unpack the clip again") from None
    labels = [label for number, item in enumerate(objects) for label in _labels_of(item, number, clip, path)]
    return sorted(labels, key=lambda label: (label.frame, label.animal))


def write_truth(clip: Clip, path: Path) -> int:
    """Write the visible boxes of a clip as MOT text for `barnsight-export evaluate tracking`; returns the lines.

    Frames are label frames counted from 1, so a tracker is to be run on every third video frame.
    """
    lines = [
        f"{label.frame + 1},{label.animal},{left + 1:g},{top + 1:g},{width:g},{height:g},1,1,1\n"
        for label in read_labels(clip)
        if label.visible
        for left, top, width, height in (label.box_px,)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="ascii")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; name a file that can be written") from None
    return len(lines)


def behavior_of(raw: str) -> str | None:
    """The paper's class of a raw label, None for those outside its nine; raises ValueError for an unknown label."""
    letters = "".join(filter(str.isalpha, raw.lower()))
    if letters not in _BEHAVIOR_OF:
        raise ValueError(f"unknown behavior {raw!r}")
    return _BEHAVIOR_OF[letters]


def _labels_of(item: Any, number: int, clip: Clip, path: Path) -> Iterator[Label]:
    """One object's labels: each entry's fields hold until another entry changes them."""
    try:
        animal = int(item["id"])
        entries = {int(entry["frameNumber"]): entry for entry in item["frames"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: objects[{number}]: {error!r}; unpack the clip again") from None
    beyond = [frame for frame in entries if not 0 <= frame < clip.label_frames]
    if beyond:
        raise DataError(
            f"{path}: object {animal} has frame {beyond[0]}, but {TIMES} has {len(clip.times_s)} lines,"
            f" which makes {clip.label_frames} label frames"
        )
    known: dict[str, Any] = {}
    for frame in range(min(entries, default=0), clip.label_frames if entries else 0):
        known = known | entries.get(frame, {})
        try:
            yield _label(known, frame, animal)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: object {animal}, frame {frame}: {error!r}; correct the entry") from None


def _label(known: dict[str, Any], frame: int, animal: int) -> Label:
    left, top, width, height = (float(known["bbox"][side]) for side in ("x", "y", "width", "height"))
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise ValueError(f"a box must be wider and higher than 0, got {width:g} x {height:g}")
    behavior = known.get("behaviour")
    return Label(
        frame=frame,
        animal=animal,
        box_px=(left, top, width, height),
        visible=bool(known.get("visible", True)),
        drawn=bool(known.get("isGroundTruth", False)),
        behavior=behavior_of(behavior) if behavior else None,
    )


def _read_times(path: Path) -> NDArray[np.float64]:
    """The first column of a file of times: seconds, or dates as ISO 8601."""
    times = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            try:
                times.append(_seconds(line.strip()))
            except ValueError:
                raise DataError(f"{path}:{number}: expected seconds or a date, got {line.strip()[:40]!r}") from None
    if not times:
        raise DataError(f"{path}: is empty; unpack the clip again")
    return np.asarray(times, np.float64)


def _seconds(text: str) -> float:
    try:
        return float(text.split()[0].rstrip(","))
    except ValueError:
        six_digits = re.sub(r"\.(\d+)", lambda found: f".{found[1][:6]:0<6}", text)  # Python 3.10 reads no others
        return datetime.fromisoformat(six_digits).timestamp()
