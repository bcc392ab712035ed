"""The Edinburgh pig data set, read from a fixture of its format: carried labels, times, spelling, split, MOT truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from barnsight_export.datasets.edinburgh import (
    BEHAVIORS,
    SPLIT,
    Clip,
    behavior_of,
    find_clips,
    labeled_frames,
    read_labels,
    write_truth,
)
from barnsight_export.datasets.mot import read_boxes
from barnsight_export.errors import DataError, DataMissingError

NAME = "2019_11_05_000002"


def entry(frame: int, left: float = 10, **changes: Any) -> dict[str, Any]:
    box = {"x": left, "y": 20, "width": 30, "height": 12}
    return {"frameNumber": frame, "bbox": box, "isGroundTruth": True, "visible": True, "behaviour": "lying"} | changes


def write_clip(folder: Path, objects: list[dict[str, Any]], video_frames: int = 12) -> Path:
    """A clip whose video frame k is 20·k gray and was taken at 100 + k/6 s."""
    folder.mkdir(parents=True)
    writer = cv2.VideoWriter(str(folder / "color.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 6, (64, 48))
    for k in range(video_frames):
        writer.write(np.full((48, 64, 3), 20 * k, np.uint8))
    writer.release()
    (folder / "times.txt").write_text("".join(f"{100 + k / 6:.3f}\n" for k in range(video_frames)))
    (folder / "output.json").write_text(json.dumps({"objects": objects}))
    return folder


def clip_of(folder: Path, objects: list[dict[str, Any]]) -> Clip:
    write_clip(folder / NAME, objects)
    return find_clips(folder, [NAME])[0]


# Labels


def test_an_entry_holds_until_the_next_one(tmp_path: Path) -> None:
    pig = {"id": 3, "frames": [entry(0), entry(2, 14, isGroundTruth=False, behaviour="Standing")]}
    labels = read_labels(clip_of(tmp_path, [pig]))
    assert [(label.frame, label.box_px[0], label.drawn, label.behavior) for label in labels] == [
        (0, 10, True, "lying"),
        (1, 10, True, "lying"),
        (2, 14, False, "standing"),
        (3, 14, False, "standing"),
    ]


def test_an_entry_changes_only_the_fields_it_has(tmp_path: Path) -> None:
    pig = {"id": 1, "frames": [entry(0), {"frameNumber": 1, "visible": False}]}
    first, second = read_labels(clip_of(tmp_path, [pig]))[:2]
    assert (first.visible, second.visible) == (True, False)
    assert second.box_px == first.box_px
    assert second.behavior == "lying"


def test_an_animal_begins_with_its_first_entry_and_frames_are_in_order(tmp_path: Path) -> None:
    late, early = {"id": 2, "frames": [entry(3)]}, {"id": 1, "frames": [entry(2)]}
    labels = read_labels(clip_of(tmp_path, [late, early, {"id": 5, "frames": []}]))
    assert [(label.frame, label.animal) for label in labels] == [(2, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("play-with-toy", "playwithtoy"),
        ("Play With Toy", "playwithtoy"),
        ("nose_to_nose", "nose-to-nose"),
        ("NOSE-TO-NOSE", "nose-to-nose"),
        ("tail-biting", None),
        ("nose-poke-elsewhere", None),
        ("jump-on-top-of", None),
        ("walk ", None),
    ],
)
def test_spellings_become_the_papers_nine_classes_or_none(raw: str, name: str | None) -> None:
    assert behavior_of(raw) == name


def test_seventeen_raw_labels_are_known() -> None:
    raw = [
        "chase", "drink", "eat", "fight", "investigating", "jump-on-top-of", "lying", "mount", "nose-to-nose",
        "nose-poke-elsewhere", "play-with-toy", "run", "sitting", "sleep", "standing", "tail-biting", "walk",
    ]  # fmt: skip
    assert len(raw) == 17
    assert {behavior_of(label) for label in raw} == {*BEHAVIORS, None}


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"id": 1, "frames": [entry(0, behaviour="flying")]}], "object 1, frame 0.*unknown behavior 'flying'"),
        ([{"id": 1, "frames": [entry(7)]}], r"object 1 has frame 7, but times\.txt has 12 lines.* 4 label frames"),
        ([{"id": 1, "frames": [entry(0, bbox={"x": 1})]}], "object 1, frame 0.*'y'"),
        ([{"id": 1, "frames": [entry(0, bbox={"x": 1, "y": 1, "width": 0, "height": 4})]}], "wider and higher"),
        ([{"frames": []}], r"objects\[0\].*'id'"),
    ],
    ids=["label", "frame", "box", "flat", "nameless"],
)
def test_a_wrong_entry_is_named(tmp_path: Path, objects: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(clip_of(tmp_path, objects))


@pytest.mark.parametrize("text", ["", "[]", '{"things": []}'], ids=["empty", "list", "other"])
def test_another_json_file_is_refused(tmp_path: Path, text: str) -> None:
    clip = clip_of(tmp_path, [])
    (clip.folder / "output.json").write_text(text)
    with pytest.raises(DataError, match=r"output\.json: is no label file"):
        read_labels(clip)


# Clips


def test_times_come_from_the_file_and_every_third_video_frame_is_labeled(tmp_path: Path) -> None:
    clip = clip_of(tmp_path, [])
    assert clip.label_frames == 4
    assert clip.time_s(2) == pytest.approx(101)
    frames = labeled_frames([clip], 600)
    assert [float(frames[k].mean()) for k in range(4)] == pytest.approx([0, 60, 120, 180], abs=6)
    assert labeled_frames([clip], 2).videos[0].frames == (3, 9)


def test_times_may_be_dates(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / NAME, [])
    (folder / "times.txt").write_text("2019-11-05T07:00:00\n2019-11-05 07:00:00.5\n")
    times_s = find_clips(tmp_path, [NAME])[0].times_s
    assert times_s[1] - times_s[0] == pytest.approx(0.5)
    (folder / "times.txt").write_text("100.0\nsoon\n")
    with pytest.raises(DataError, match=r"times\.txt:2: expected seconds or a date, got 'soon'"):
        find_clips(tmp_path, [NAME])


@pytest.mark.parametrize("place", [NAME, "2019_11_05/000002", "annotated/2019_11_05/000002", "000002"])
def test_a_clip_is_found_in_one_folder_or_nested_ones(tmp_path: Path, place: str) -> None:
    write_clip(tmp_path / place, [])
    (clip,) = find_clips(tmp_path, [NAME])
    assert (clip.name, clip.folder) == (NAME, tmp_path / place)


def test_the_authors_split_is_by_clip() -> None:
    assert [len(SPLIT[split]) for split in ("train", "val", "test")] == [4, 1, 4]
    assert len({name for names in SPLIT.values() for name in names}) == 9


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="no such folder"):
        find_clips(tmp_path / "nowhere", [NAME])
    with pytest.raises(DataMissingError, match="no clip in it"):
        find_clips(tmp_path, [NAME])
    folder = write_clip(tmp_path / NAME, [])
    with pytest.raises(DataMissingError, match=r"clip 2019_11_28_000113 is not there, only 2019_11_05_000002"):
        find_clips(tmp_path, SPLIT["val"])
    (folder / "color.mp4").unlink()
    with pytest.raises(DataMissingError, match=r"color\.mp4: is missing"):
        find_clips(tmp_path, [NAME])


# Truth


def test_truth_is_read_back_by_evaluation(tmp_path: Path) -> None:
    pigs = [{"id": 1, "frames": [entry(0), entry(1, 12, visible=False)]}, {"id": 2, "frames": [entry(2, 40)]}]
    path = tmp_path / "truth" / "gt.txt"
    assert write_truth(clip_of(tmp_path / "data", pigs), path) == 3
    assert [(mark.frame, mark.track, mark.shape, mark.ignored) for mark in read_boxes(path)] == [
        (1, 1, [11, 21, 30, 12], False),
        (3, 2, [41, 21, 30, 12], False),
        (4, 2, [41, 21, 30, 12], False),
    ]
