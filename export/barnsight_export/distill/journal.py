"""The journal of a run: one row an epoch, as log.csv, and on TensorBoard where that is installed.

Rows live in the checkpoint and the file is written anew each time, so a resumed run leaves no row twice.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from barnsight_export.files import write_whole

LOG = "log.csv"

Row = dict[str, float]


def write_log(folder: Path, rows: Sequence[Row]) -> None:
    """Write all rows as CSV; a column is there if any row has it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    data = text.getvalue().encode()
    write_whole(folder / LOG, lambda file: file.write(data), "free some space, then go on with --resume")


class Board:
    """TensorBoard's event files in a folder; does nothing where `tensorboard` is not installed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run wrote beyond its checkpoint is hidden.
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()
