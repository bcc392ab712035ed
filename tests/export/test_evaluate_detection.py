"""Figures of detection against counts made by hand, and the shipped networks on pictures; bad files, clear errors."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from barnsight_export.commands.evaluate import add_parser, run
from barnsight_export.datasets.coco import read_labels
from barnsight_export.datasets.simulated import pictures
from barnsight_export.errors import DataError, DataMissingError
from barnsight_export.evaluate.detection import Judged, evaluate

NANO = Path(__file__).parents[2] / "engines" / "nano"
SIZE = 120, 160
LEFT, RIGHT, FAR = [10.0, 20.0, 40.0, 30.0], [90.0, 20.0, 40.0, 30.0], [10.0, 80.0, 20.0, 20.0]


def judged(truth: list[Any], found: list[Any], scores: list[float], ignored: tuple[int, ...] = ()) -> Judged:
    marks = np.isin(np.arange(len(truth)), ignored)
    return Judged(SIZE, truth, marks, found, np.array(scores))


def command(*arguments: str | Path) -> int:
    """What `barnsight-export evaluate detection --models engines/nano ARGUMENTS` does and returns."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["evaluate", "detection", "--models", str(NANO), *map(str, arguments)]))


def write_labels(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def write_picture(folder: Path, image: NDArray[np.uint8] | None = None) -> dict[str, Any]:
    """A gray picture, or `image` (H, W, 3) RGB, as pen.png, and its entry."""
    shown = np.full((*SIZE, 3), 90, np.uint8) if image is None else image
    cv2.imwrite(str(folder / "pen.png"), shown[..., ::-1])
    return {"id": 7, "file_name": "pen.png", "height": shown.shape[0], "width": shown.shape[1]}


def test_what_is_there_is_found_perfectly() -> None:
    scores = evaluate([judged([LEFT, RIGHT], [LEFT, RIGHT], [0.9, 0.8])], 0.5)
    assert (scores.ap, scores.ap50, scores.ap75, scores.recall, scores.precision) == (100, 100, 100, 100, 100)
    assert (scores.false_positives, scores.animals, scores.pictures) == (0, 2, 1)


def test_misses_false_alarms_and_doubles_are_counted() -> None:
    missed = judged([LEFT, RIGHT], [LEFT, FAR, LEFT], [0.9, 0.8, 0.7])
    empty = judged([], [FAR, LEFT], [0.6, 0.3])
    scores = evaluate([missed, empty], 0.5)
    assert (scores.recall, scores.precision, scores.false_positives) == (50, 25, 3)
    assert scores.ap50 == pytest.approx(100 * 51 / 101)  # recall up to .5 at precision 1: 51 of COCO's 101 points


def test_what_is_ignored_counts_neither_way() -> None:
    scores = evaluate([judged([LEFT, RIGHT], [LEFT, RIGHT], [0.9, 0.8], ignored=(1,))], 0.5)
    assert (scores.recall, scores.precision, scores.false_positives, scores.animals) == (100, 100, 0, 1)


def test_a_loose_box_is_found_and_costs_precise_ap() -> None:
    wide = [10.0, 20.0, 40.0, 49.0]  # IoU 0.61
    scores = evaluate([judged([LEFT], [wide], [0.9])], 0.5)
    assert (scores.ap50, scores.ap75, scores.recall) == pytest.approx((100, 0, 100))
    assert scores.ap == pytest.approx(30)  # .50, .55 and .60 of ten


def test_polygons_and_run_lengths_are_one_mask(tmp_path: Path) -> None:
    square = np.zeros(SIZE, np.uint8)
    square[20:50, 10:50] = 1
    packed = coco.encode(np.asfortranarray(square))
    polygon = {"image_id": 7, "segmentation": [[10, 20, 50, 20, 50, 50, 10, 50]], "iscrowd": 0}
    runs = {"image_id": 7, "segmentation": {"size": list(SIZE), "counts": packed["counts"].decode()}, "iscrowd": 1}
    labels = write_labels(tmp_path, [write_picture(tmp_path)], [polygon, runs])
    (picture,) = read_labels(labels, tmp_path, masks=True)
    assert [int(coco.area(shape)) for shape in picture.shapes] == [1200, 1200]
    assert picture.ignored == [False, True]


@pytest.mark.parametrize("counts", ["0", [100, 9500]])
def test_a_mask_for_a_picture_of_another_size_is_refused(tmp_path: Path, counts: str | list[int]) -> None:
    outline = {"size": [80, 120], "counts": counts}
    labels = write_labels(tmp_path, [write_picture(tmp_path)], [{"image_id": 7, "segmentation": outline}])
    with pytest.raises(
        DataError, match=r"annotation 0: its mask is for \[80, 120\] pixels .* its picture has \[120, 160\]"
    ):
        read_labels(labels, tmp_path, masks=True)


@pytest.mark.parametrize("masks", [False, True])
def test_the_shipped_networks_find_a_simulated_herd(
    tmp_path: Path, masks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its truth is the renderer's; half of it is well below what the networks reach, and far above chance."""
    image, ids, _, visible = next(pictures("val", 1, 3, 1, 384, {"pig": 1.0}))
    animals = []
    for number in np.unique(ids[ids > 0]):
        packed = coco.encode(np.asfortranarray((ids == number).astype(np.uint8)))
        outline = {"size": packed["size"], "counts": packed["counts"].decode()}
        hidden = bool(visible[number - 1] < 0.25)
        box = coco.toBbox(packed).tolist()
        animals.append({"image_id": 7, "segmentation": outline, "bbox": box, "ignore": hidden})
    labels = write_labels(tmp_path, [write_picture(tmp_path, image)], animals)
    assert command("--pictures", tmp_path, "--truth", labels, "--json", *(["--masks"] if masks else [])) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["animals"] >= 3
    assert figures["shapes"] == ("masks" if masks else "boxes")
    assert figures["recall"] >= 50
    assert figures["ap50"] >= 50


def test_a_table_says_at_which_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labels(tmp_path, [write_picture(tmp_path)], [{"image_id": 7, "bbox": LEFT}])
    assert command("--pictures", tmp_path, "--truth", labels) == 0
    table = capsys.readouterr().out
    assert "ap50" in table
    assert "score of 0." in table


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        "abc",
        [],
        [[1, 2, 5, 6]],
        [1, 2, 5, 6, 7, 8],
        {"size": [120, 160], "counts": "damaged"},
    ],
    ids=["null", "text", "empty", "two points", "flat", "damaged code"],
)
def test_a_mask_that_is_none_is_refused(tmp_path: Path, segmentation: object) -> None:
    labels = write_labels(tmp_path, [write_picture(tmp_path)], [{"image_id": 7, "segmentation": segmentation}])
    with pytest.raises(DataError, match=r"labels\.json: annotation 0"):
        read_labels(labels, tmp_path, masks=True)


def test_two_pictures_of_one_id_are_refused(tmp_path: Path) -> None:
    picture = write_picture(tmp_path)
    with pytest.raises(DataError, match="image 1: its id 7 is that of another image"):
        read_labels(write_labels(tmp_path, [picture, picture], []), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda labels: labels.unlink(), DataMissingError, "labels.json"),
        (lambda labels: labels.write_text("[1, 2]"), DataError, "'images' and 'annotations'"),
        (lambda labels: labels.with_name("pen.png").unlink(), DataMissingError, "pen.png"),
        (lambda labels: labels.with_name("pen.png").write_bytes(b"no picture"), DataError, "can be read"),
        (lambda labels: edit(labels, "annotations", bbox=[0, 0, 0, 5]), DataError, "annotation 0: a box must be wider"),
        (lambda labels: edit(labels, "annotations", bbox=[math.nan, 0, 5, 5]), DataError, "and finite, got"),
        (lambda labels: edit(labels, "annotations", image_id=99), DataError, "annotation 0: 99 is missing"),
        (lambda labels: edit(labels, "annotations", iscrowd=1), DataError, "names no animal"),
        (lambda labels: edit(labels, "images", width=99), DataError, "is 160x120, its labels say 99x120"),
    ],
)
def test_bad_labels_get_a_clear_error(
    tmp_path: Path, spoil: Callable[[Path], Any], error: type[Exception], words: str
) -> None:
    labels = write_labels(tmp_path, [write_picture(tmp_path)], [{"image_id": 7, "bbox": LEFT, "iscrowd": 0}])
    spoil(labels)
    with pytest.raises(error, match=words):
        command("--pictures", tmp_path, "--truth", labels)


def edit(labels: Path, kind: str, **values: Any) -> None:
    """Overwrite fields of the first entry of `kind`."""
    content = json.loads(labels.read_text())
    content[kind][0].update(values)
    labels.write_text(json.dumps(content))
