"""`barnsight replay`: a recording through the service's own pipeline, as fast as it goes, into files.

Nothing arrives later than it is asked for, so the encoder works one frame ahead while the last frame is detected and
tracked; what comes out is what the service would record.

    tracks.txt             MOT Challenge 2D text, frames and pixels counted from 1
    masks.jsonl            one object per track and frame with the mask as COCO run-length code
    observations.parquet   the columns that the store keeps
    annotated/             one picture per second with what was seen (with `annotate`)

Files are written aside and renamed at the end, so that what carries a final name is whole.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO, TypeVar

import cv2
import pyarrow.parquet as pq

from barnsight_engines.loader import ModelSet, load_model_set
from barnsightd.errors import StoreAccessError, StoreError
from barnsightd.ingest.files import read_frames
from barnsightd.pipeline import CameraSettings, Pipeline
from barnsightd.publish.overlay import draw, to_jpeg
from barnsightd.store.schema import SCHEMA, to_batch
from barnsightd.tracking.lifecycle import TrackingSettings
from barnsightd.types import Frame, FrameResult, Observation

T = TypeVar("T")

CAMERA = "replay"
NS_PER_S = 1_000_000_000
ROWS_PER_BATCH = 4096


def replay(
    source: Path,
    out: Path,
    *,
    models: Path,
    species: str,
    fps: float | None = None,
    masks: bool = True,
    annotate: bool = False,
    threads: int | None = None,
) -> int:
    """Follow every animal in the file or picture folder `source` and leave the results in the folder `out`.

    `fps` overrides the source's own rate; `threads` are the cores of one engine, half of them by default, since two
    engines run at once. Raises SourceError, StoreError or EngineError.
    """
    cv2.setNumThreads(1)  # as in the service
    with load_model_set(models, threads=threads or half_the_cores()) as model_set, _writing(out):
        started_s = time.monotonic()
        with Records(out, masks=masks, annotate=annotate) as records:
            for result in follow(model_set, species, read_frames(source, camera=CAMERA, fps=fps)):
                records.add(result)
            records.finish()
    elapsed_s = time.monotonic() - started_s
    print(
        f"{records.frames} frames in {elapsed_s:.1f} s, {records.frames / elapsed_s:.1f} fps; "
        f"{len(records.rows_of_track)} tracks; written to {out}",
        file=sys.stderr,
    )
    return 0


def follow(models: ModelSet, species: str, frames: Iterator[Frame]) -> Iterator[FrameResult]:
    """What is seen on each of `frames`, in their order."""
    first = tuple(itertools.islice(frames, 2))
    pipeline = make_pipeline(models, species, rate_of(first))
    for encoded in encode_ahead(pipeline.encode, itertools.chain(first, frames)):
        result = pipeline.follow(encoded)
        assert result is not None  # the one camera is always there
        yield result


def encode_ahead(encode: Callable[[Frame], T], frames: Iterable[Frame]) -> Iterator[T]:
    """Each frame encoded, in their order; the next one is encoded on a thread of its own while the last is followed.

    Raises what `encode` raised, with the frame that it met.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="encoder") as thread:
        last: Future[T] | None = None
        for frame in frames:
            following = thread.submit(encode, frame)
            if last is not None:
                yield last.result()
            last = following
        if last is not None:
            yield last.result()


def half_the_cores() -> int:
    """What one of two engines may use, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def rate_of(first: Sequence[Frame]) -> float:
    """Frames per second, from the time between the first two; 1 for a single picture."""
    return NS_PER_S / (first[1].monotonic_ns - first[0].monotonic_ns) if len(first) == 2 else 1.0


def make_pipeline(models: ModelSet, species: str, fps: float) -> Pipeline:
    """The service's pipeline for one recording: one session, a mask on every frame."""
    settings = CameraSettings(
        species=species,
        tracking=TrackingSettings(fps=fps).for_detector(models.manifest.thresholds.score),
        session_ns=sys.maxsize,
        masks_every_s=0.0,
    )
    return Pipeline(
        models.encoder,
        models.detector,
        {CAMERA: settings},
        tracker=models.tracker,
        model_set=models.hash,
        number_session=lambda _camera, _started_ns: 1,
        session_ended=lambda _camera, _number, _ended_ns: None,
        clock_ns=time.perf_counter_ns,
    )


class Records:
    """The files of one replay, under provisional names until `finish`."""

    def __init__(self, out: Path, *, masks: bool, annotate: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._annotate = annotate
        self._next_picture_ns = 0
        self._open = contextlib.ExitStack()
        self._partial: dict[Path, Path] = {}
        self._waiting: list[Observation] = []
        self._tracks = self._text("tracks.txt")
        self._masks = self._text("masks.jsonl") if masks else None
        self._parquet = self._open.enter_context(
            pq.ParquetWriter(self._aside("observations.parquet"), SCHEMA, compression="zstd")
        )
        self.frames = 0
        self.rows_of_track: Counter[int] = Counter()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        for partial in self._partial:
            partial.unlink(missing_ok=True)

    def add(self, result: FrameResult) -> None:
        """Write what was seen on the next frame."""
        self.frames += 1
        for seen in result.observations:
            self.rows_of_track[seen.track] += 1
            self._tracks.write(to_mot(self.frames, seen))
            if self._masks:
                self._masks.write(to_mask_line(self.frames, seen))
        self._waiting.extend(result.observations)
        if len(self._waiting) >= ROWS_PER_BATCH:
            self._flush()
        if self._annotate and result.frame.captured_ns >= self._next_picture_ns:
            self._next_picture_ns = result.frame.captured_ns + NS_PER_S
            folder = self._out / "annotated"
            folder.mkdir(exist_ok=True)
            picture = to_jpeg(draw(result.frame, result.tracks))
            (folder / f"{self.frames:06d}.jpg").write_bytes(picture)

    def finish(self) -> None:
        """Complete every file and give it its name."""
        self._flush()
        self._open.close()
        for partial, final in self._partial.items():
            partial.replace(final)
        self._partial.clear()

    def _flush(self) -> None:
        if self._waiting:
            self._parquet.write_batch(to_batch(self._waiting))
            self._waiting.clear()

    def _text(self, name: str) -> TextIO:
        return self._open.enter_context(self._aside(name).open("w", encoding="utf-8"))

    def _aside(self, name: str) -> Path:
        partial = self._out / f"{name}.part"
        self._partial[partial] = self._out / name
        return partial


def to_mot(frame: int, seen: Observation) -> str:
    """One line of MOT Challenge 2D text: frame, id, left, top, width, height (pixels from 1), score."""
    x0, y0, x1, y1 = seen.box_px
    return f"{frame},{seen.track},{x0 + 1:.2f},{y0 + 1:.2f},{x1 - x0:.2f},{y1 - y0:.2f},{seen.score:.4f},-1,-1,-1\n"


def to_mask_line(frame: int, seen: Observation) -> str:
    """One line of masks.jsonl."""
    mask = {"frame": frame, "track": seen.track, "size": list(seen.mask_size), "counts": seen.mask_rle.decode()}
    return json.dumps({**mask, "score": round(seen.score, 4)}) + "\n"


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write below `out` into a clear error."""
    try:
        yield
    except PermissionError as error:
        raise StoreAccessError(f"{error.filename or out}: {error.strerror}; choose another --out") from error
    except OSError as error:
        raise StoreError(f"{error.filename or out}: {error.strerror}; free space or choose another --out") from error
