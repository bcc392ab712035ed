"""The course of a training run as a picture: quality on the validation split and loss over images."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

from barnsight_export.errors import DataError, DataMissingError


def plot_log(logs: Sequence[Path], picture: Path) -> None:
    """Draw `log.csv` of a run, or of several that went on from one another; the suffix of `picture` (.png, .svg) is
    the format."""
    from matplotlib.figure import Figure

    rows = _joined([_read(log) for log in logs])
    images = [row["images"] / 1000 for row in rows]
    figure = Figure(figsize=(8, 4), layout="constrained")
    quality, loss = figure.subplots(1, 2)
    for name, label in (("ap50", "mask AP50"), ("ap75", "mask AP75"), ("recall", "recall at IoU 0.5")):
        quality.plot(images, [row[name] for row in rows], marker="o", markersize=3, label=label)
    extra = quality.twinx()
    extra.plot(images, [row["false_positives"] for row in rows], color="gray", linestyle=":", label="false positives")
    extra.set_ylabel("false positives a picture (dotted)")
    extra.set_ylim(bottom=0)
    quality.set(xlabel="views, thousands", ylim=(0, 1), title="simulated validation pictures")
    quality.legend(loc="lower right")
    loss.plot(images, [row["loss"] for row in rows], marker="o", markersize=3)
    for before, row in itertools.pairwise(rows):
        if row["size_px"] != before["size_px"]:
            loss.axvline(before["images"] / 1000, color="gray", linewidth=0.5)
            top = (before["images"] / 1000, max(r["loss"] for r in rows))
            loss.annotate(f"{row['size_px']:.0f} px", top, rotation=90, va="top", fontsize="small")
    loss.set(xlabel="views, thousands", title="training loss")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def _joined(runs: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Runs in a row: each one's views count from the end of the one before."""
    rows: list[dict[str, float]] = []
    for run in runs:
        before = rows[-1]["images"] if rows else 0.0
        rows += [{**row, "images": before + row["images"]} for row in run]
    return rows


def _read(log: Path) -> list[dict[str, float]]:
    if not log.is_file():
        raise DataMissingError(f"{log}: no such log; name log.csv of a training run")
    with log.open(newline="", encoding="utf-8") as file:
        try:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        except (TypeError, ValueError) as error:
            raise DataError(f"{log}: not a training log ({error}); name log.csv of a training run") from error
    if not rows or "ap50" not in rows[0]:
        raise DataError(f"{log}: no line with ap50 in it; name log.csv of a training run")
    return rows
