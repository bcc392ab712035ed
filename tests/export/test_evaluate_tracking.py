"""Figures of tracking against published ones and against counts made by hand; bad files against clear errors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from barnsight_engines.masks import decode_rle, encode_rle
from barnsight_export.commands.evaluate import add_parser, run
from barnsight_export.datasets.mot import Mark, read_boxes, read_masks
from barnsight_export.errors import ExportError
from barnsight_export.evaluate.tracking import evaluate, summarize

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TUD = DATA / "motmetrics_tud"
MASKLETS = DATA / "sav_masklets" / "sav_000001_manual.json"


def box(frame: int, track: int, left: float, *, ignored: bool = False) -> Mark:
    return Mark(frame, track, [left, 10.0, 100.0, 50.0], ignored)


def walk(frames: range, track: int, left: float) -> list[Mark]:
    return [box(frame, track, left + frame) for frame in frames]


def command(*arguments: str | Path) -> int:
    """What `barnsight-export evaluate tracking ARGUMENTS` does and returns."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["evaluate", "tracking", *map(str, arguments)]))


@pytest.mark.skipif(not TUD.exists(), reason="the TUD pairs are not at hand")
@pytest.mark.parametrize(
    ("sequence", "rates", "counts"),
    [
        ("TUD-Campus", (52.6, 55.8, 39.13974378, 41.80470301, 36.91206812, 72.3, 58.2, 94.1), (13, 150, 7)),
        ("TUD-Stadtmitte", (56.4, 64.5, 39.7849017, 39.22675724, 40.88407518, 65.4, 60.9, 94.0), (45, 452, 7)),
    ],
)
def test_published_figures_of_py_motmetrics(
    sequence: str,
    rates: tuple[float, ...],
    counts: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = TUD / sequence
    code = command("--truth", folder / "gt.txt", "--tracks", folder / "test.txt", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert code == 0
    for name, published in zip(
        ("MOTA", "IDF1", "HOTA", "DetA", "AssA", "MOTP", "recall", "precision"), rates, strict=True
    ):
        tolerance = 1e-7 if name in {"HOTA", "DetA", "AssA"} else 0.05
        assert figures[name] == pytest.approx(published, abs=tolerance), name
    assert (figures["FP"], figures["FN"], figures["IDSW"]) == counts


def test_the_truth_against_itself_is_perfect() -> None:
    truth = walk(range(1, 11), 1, 0) + walk(range(1, 11), 2, 300)
    scores = evaluate(truth, truth)
    assert (scores.mota, scores.idf1, scores.hota, scores.motp) == (100, 100, 100, 100)
    assert (scores.fp, scores.fn, scores.idsw, scores.objects) == (0, 0, 0, 20)


def test_misses_false_alarms_and_a_switch_are_counted() -> None:
    truth = walk(range(1, 11), 1, 0) + walk(range(1, 11), 2, 300)
    renamed = walk(range(1, 6), 7, 0) + walk(range(6, 11), 8, 0)
    partly = walk(range(1, 9), 9, 300)
    scores = evaluate(truth, [*renamed, *partly, box(3, 5, 900)])
    assert (scores.fn, scores.fp, scores.idsw) == (2, 1, 1)
    assert scores.mota == pytest.approx(100 * (1 - 4 / 20))
    # identities keep 5 of 10 frames of one animal and 8 of 10 of the other: 2 IDTP / (objects + predictions)
    assert scores.idf1 == pytest.approx(100 * 2 * 13 / (20 + 19))


def test_an_ignored_animal_may_be_followed_or_not() -> None:
    truth = walk(range(1, 11), 1, 0) + [box(frame, 2, 300, ignored=True) for frame in range(1, 11)]
    followed = walk(range(1, 11), 1, 0) + [box(frame, 6, 305) for frame in range(1, 11)]
    for tracks in (walk(range(1, 11), 1, 0), followed):
        scores = evaluate(truth, tracks)
        assert (scores.mota, scores.fp, scores.fn, scores.objects, scores.predictions) == (100, 0, 0, 10, 10)


def test_a_second_track_on_an_ignored_animal_is_a_false_alarm() -> None:
    truth = [box(1, 1, 0), box(1, 2, 300, ignored=True)]
    assert evaluate(truth, [box(1, 1, 0), box(1, 6, 305), box(1, 7, 310)]).fp == 1


def test_a_tracker_that_found_nothing_misses_everything() -> None:
    scores = evaluate(walk(range(1, 11), 1, 0), [])
    assert (scores.mota, scores.idf1, scores.hota, scores.fn) == (0, 0, 0, 10)


def test_several_sequences_average_rates_and_add_counts(tmp_path: Path) -> None:
    truth = walk(range(1, 11), 1, 0)
    mean = summarize([evaluate(truth, truth), evaluate(truth, truth[:5])])
    assert (mean.mota, mean.fn, mean.objects) == (75, 5, 20)


def write_masks(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def masklets(frames: int) -> list[dict[str, Any]]:
    """People's masks of real video, as rows of masks.jsonl; empty ones left out."""
    if not MASKLETS.exists():
        pytest.skip("the masklets are not at hand")
    return [
        {"frame": frame, "track": track, **rle}
        for frame, row in enumerate(json.loads(MASKLETS.read_text())["masklet"][:frames], start=1)
        for track, rle in enumerate(row, start=1)
        if coco.area(rle) > 0
    ]


def shifted(row: dict[str, Any], right_px: int) -> dict[str, Any]:
    mask = np.roll(decode_rle(row["counts"].encode(), row["size"]), right_px, axis=1)
    return {**row, "counts": encode_rle(mask).decode()}


def test_real_masks_against_themselves_are_perfect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = masklets(20)
    truth = write_masks(tmp_path / "masks.jsonl", rows)
    code = command("--masks", "--truth", truth, "--tracks", truth, "--json")
    figures = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (figures["MOTA"], figures["IDF1"], figures["HOTA"]) == (100, 100, 100)
    assert figures["objects"] == len(rows)


def test_a_dropped_and_a_displaced_mask_track_cost_their_frames(tmp_path: Path) -> None:
    rows = masklets(20)
    count = {track: sum(row["track"] == track for row in rows) for track in range(1, 6)}
    kept = [shifted(row, 240) if row["track"] == 2 else row for row in rows if row["track"] != 1]
    truth = read_masks(write_masks(tmp_path / "truth.jsonl", rows))
    scores = evaluate(truth, read_masks(write_masks(tmp_path / "tracks.jsonl", kept)))
    assert count[1] > 0
    assert count[2] > 0
    assert (scores.fn, scores.fp, scores.idsw) == (count[1] + count[2], count[2], 0)
    assert scores.mota == pytest.approx(100 * (1 - (count[1] + 2 * count[2]) / len(rows)))


def test_mask_overlap_is_of_masks_and_not_of_boxes(tmp_path: Path) -> None:
    upper, lower = np.zeros((2, 40, 40), np.bool_)
    upper[np.triu_indices(40)] = 1
    lower[np.tril_indices(40, -1)] = 1
    triangles = [
        write_masks(
            tmp_path / f"{name}.jsonl",
            [
                {
                    "frame": 1,
                    "track": 1,
                    "size": [40, 40],
                    "counts": encode_rle(m).decode(),
                }
            ],
        )
        for name, m in (("upper", upper), ("lower", lower))
    ]
    scores = evaluate(*(read_masks(path) for path in triangles))
    assert (scores.fn, scores.fp) == (1, 1)


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "gt.txt"
    path.write_text("2,1,10,10,5,5,1\n1,1,9,10,5,5,1,-1,-1,-1\n\n1,2,50,10,5,5,0\n")
    marks = read_boxes(path)
    assert [(mark.frame, mark.track, mark.ignored) for mark in marks] == [(1, 1, False), (1, 2, True), (2, 1, False)]


ROW = {"frame": 1, "track": 1, "size": [4, 4], "counts": "`0"}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_boxes, "1,1,10,10\n", "bad.txt:1: expected 6 to 10 columns .*, got 4"),
        (read_boxes, "1,1,10,10,5,5\n1 2 3\n", "bad.txt:2: expected 6 to 10 columns .*, got 1"),
        (read_boxes, "1,1,10,ten,5,5\n", "bad.txt:1: expected numbers .*, got 'ten'"),
        (read_boxes, "1,1,10,nan,5,5\n", "bad.txt:1: expected finite numbers, got 'nan'"),
        (read_boxes, "0,1,10,10,5,5\n", "bad.txt:1: frame must be 1 or more, got 0"),
        (read_boxes, "1.5,1,10,10,5,5\n", "bad.txt:1: frame must be a whole number, got 1.5"),
        (read_boxes, "1,-1,10,10,5,5\n", "bad.txt:1: track must be 0 or more, got -1"),
        (read_boxes, "1,1,10,10,0,5\n", "bad.txt:1: a box must be wider and higher than 0, got 0 x 5"),
        (read_boxes, "1,1,9,9,5,5\n1,1,8,8,5,5\n", "bad.txt:2: track 1 is on frame 1 already, in line 1"),
        (read_boxes, json.dumps(ROW), "bad.txt:1: this is a mask; add --masks"),
        (read_masks, "1,1,10,10,5,5\n", "bad.txt:1: is not JSON: .*; without --masks boxes are read"),
        (read_masks, "[1]\n", 'bad.txt:1: expected an object with "frame", "track", "size" and "counts"'),
        (read_masks, json.dumps({**ROW, "track": "a"}), "bad.txt:1: \"track\" must be a whole number, got 'a'"),
        (read_masks, json.dumps({**ROW, "size": [4]}), r'bad.txt:1: "size" must be .*, got \[4\]'),
        (read_masks, json.dumps({**ROW, "counts": "04"}), 'bad.txt:1: "counts" is not a COCO run-length string'),
        (read_masks, json.dumps({**ROW, "counts": 7}), 'bad.txt:1: "counts" is not a COCO run-length string'),
        (
            read_masks,
            json.dumps(ROW) + "\n" + json.dumps({**ROW, "frame": 2, "size": [2, 8]}),
            "bad.txt: masks of several sizes",
        ),
    ],
)
def test_a_bad_line_is_named(read: Callable[[Path], list[Mark]], text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ExportError, match=message) as caught:
        read(path)
    assert caught.value.exit_code == 65


def test_a_run_length_string_from_pycocotools_is_accepted(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    masks = [rng.random((37, 53)) < share for share in (0.0, 0.02, 0.5, 1.0)]
    rows = [
        {
            "frame": 1,
            "track": track,
            "size": [37, 53],
            "counts": encode_rle(m).decode(),
        }
        for track, m in enumerate(masks)
    ]
    assert len(read_masks(write_masks(tmp_path / "masks.jsonl", rows))) == 4


@pytest.mark.parametrize(
    ("truth", "tracks", "code", "message"),
    [
        ("", "1,1,1,1,5,5\n", 65, "gt.txt: the truth names no animal"),
        (None, "1,1,1,1,5,5\n", 66, "gt.txt: No such file or directory"),
        ("1,1,1,1,5,5\n", "1,1,1\n", 65, "tracks.txt:1: expected 6 to 10 columns"),
    ],
)
def test_the_command_ends_with_one_clear_line(
    truth: str | None, tracks: str, code: int, message: str, tmp_path: Path
) -> None:
    for name, text in (("gt.txt", truth), ("tracks.txt", tracks)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=message) as caught:
        command("--truth", tmp_path / "gt.txt", "--tracks", tmp_path / "tracks.txt")
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def test_files_come_in_pairs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give them in pairs") as caught:
        command("--truth", tmp_path, "--truth", tmp_path, "--tracks", tmp_path)
    assert caught.value.exit_code == 64


def test_the_table_ends_with_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gt.txt"
    path.write_text("1,1,10,10,5,5,1\n2,1,10,10,5,5,1\n")
    half = tmp_path / "half.txt"
    half.write_text("1,1,10,10,5,5,1\n")
    pairs = ("--truth", path, "--tracks", path, "--truth", path, "--tracks", half)
    code = command(*pairs)
    header, *rows = capsys.readouterr().out.splitlines()
    assert code == 0
    assert header.split()[:3] == ["MOTA", "IDF1", "HOTA"]
    assert len(rows) == 3
    assert rows[-1].startswith("mean (counts: sum)")
    assert "75.0" in rows[-1]
