"""A clip of the simulated barn: picture and exact truth, frame by frame, as a camera's H.264 would be.

Frames are rendered by a pool of processes and encoded in order by GStreamer's x264 (constant rate, one key frame a
second, no B-frames), so that a stream made of the clip can be joined within a second.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from barnsight_export.errors import OutputError, RequirementMissingError
from barnsight_export.simbarn.animals import Pose
from barnsight_export.simbarn.ethogram import Herd
from barnsight_export.simbarn.labels import Seen, TruthWriter, describe, seen_animals
from barnsight_export.simbarn.render import Renderer
from barnsight_export.simbarn.scene import Crowding, LightKind, Scene, Split, View, sample_scene
from barnsight_export.simbarn.textures import Bytes

ENCODER_DEADLINE_S = 60.0


def clip_scene(
    seed: int,
    *,
    species: str,
    animals: int,
    split: Split,
    width: int,
    height: int,
    light: LightKind | None = None,
    crowding: Crowding | None = None,
    view: View = "overhead",
    herd_seed: int | None = None,
    day: int = 0,
) -> Scene:
    """A scene for a clip: the whole pen, or a barn from its end, without motion blur and stills' compression."""
    scene = sample_scene(
        seed, species=species, animals=animals, split=split, width=width, height=height, light=light,
        crowding=crowding, view=view, herd_seed=seed if herd_seed is None else herd_seed, day=day,
    )  # fmt: skip
    exposure = min(scene.sensor.exposure, 1.15)
    return replace(scene, sensor=replace(scene.sensor, exposure=exposure, jpeg_quality=100, motion_px=0.0))


def write_clip(scene: Scene, out_dir: Path, *, seconds: float, fps: int, seed: int, workers: int = 1) -> int:
    """Write clip.mp4, gt.txt, masks.jsonl, truth.parquet and scene.json into ``out_dir``; returns the frames.

    Raises OutputError when the folder cannot be written or the encoder fails, RequirementMissingError without
    GStreamer.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "scene.json").unlink(missing_ok=True)  # it is written last, and vouches for the rest
    except OSError as error:
        raise OutputError(f"{out_dir}: {error.strerror}; name a folder that can be written") from None
    frames = max(round(seconds * fps), 1)
    life = list(Herd(scene, seed).states(frames, fps))
    with (
        TruthWriter(out_dir, scene) as truth,
        Encoder(out_dir / "clip.mp4", scene.spec.width, scene.spec.height, fps) as encoder,
    ):
        shots = _shots(scene, [[state.pose for state in states] for states in life], workers)
        for frame, (states, (image, seen)) in enumerate(zip(life, shots, strict=True), start=1):
            encoder.write(image)
            truth.write(frame, states, seen)
    text = json.dumps(describe(scene, frames=frames, fps=fps), indent=1)
    (out_dir / "scene.json").write_text(text + "\n", encoding="utf-8")
    return frames


# -- rendering --------------------------------------------------------------------------------------------------------

Shot = tuple[Bytes, list[Seen]]
_renderer: Renderer | None = None  # one per worker process


def _open_renderer(scene: Scene) -> None:
    global _renderer
    cv2.setNumThreads(1)
    _renderer = Renderer(scene)


def _shoot(frame: int, poses: list[Pose]) -> Shot:
    assert _renderer is not None, "the pool's initializer opens the renderer"
    shot = _renderer.render(poses, frame=frame)
    return shot.image, seen_animals(shot)


def _shots(scene: Scene, poses: list[list[Pose]], workers: int) -> Iterator[Shot]:
    """Rendered frames in order; a pool is never more than two frames per worker ahead."""
    if workers == 1:
        renderer = Renderer(scene)
        for frame, herd in enumerate(poses):
            shot = renderer.render(herd, frame=frame)
            yield shot.image, seen_animals(shot)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_open_renderer, initargs=(scene,)) as pool:
        ahead: deque[Future[Shot]] = deque()
        for frame, herd in enumerate(poses):
            ahead.append(pool.submit(_shoot, frame, herd))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class Encoder:
    """Raw RGB frames to an H.264 mp4 through ``gst-launch-1.0``; use as a context manager."""

    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            raise RequirementMissingError("gst-launch-1.0 is not installed; run: apt install gstreamer1.0-tools")
        if width % 2 or height % 2:
            raise OutputError(f"{path}: H.264 needs an even width and height, got {width}x{height}")
        self.path = path
        pipeline = (
            f"fdsrc fd=0 ! rawvideoparse format=rgb width={width} height={height} framerate={fps}/1 ! videoconvert ! "
            f"video/x-raw,format=I420 ! x264enc pass=qual quantizer=21 speed-preset=veryfast bframes=0 threads=1 "
            f"key-int-max={fps} ! video/x-h264,profile=main ! h264parse ! mp4mux faststart=true ! filesink"
        )
        command = [launch, "-q", *pipeline.split(), f"location={path}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        try:
            _, stderr = self._process.communicate(timeout=ENCODER_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise OutputError(f"{self.path}: the encoder did not finish within {ENCODER_DEADLINE_S:g} s") from None
        if error is None and self._process.returncode:
            raise OutputError(f"{self.path}: encoding failed: {stderr.decode(errors='replace').strip()}")

    def write(self, image: Bytes) -> None:
        """Append one frame (H, W, 3) uint8 RGB."""
        assert self._process.stdin is not None, "the process was started with a pipe"
        try:
            self._process.stdin.write(np.ascontiguousarray(image).tobytes())
        except BrokenPipeError:
            raise OutputError(f"{self.path}: the encoder stopped early; is x264enc installed?") from None


def contact_sheet(images: Iterable[Bytes], columns: int) -> Bytes:
    """Pictures of one size side by side, row by row; a last row that is not full is left out."""
    tiles = list(images)
    rows = [np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles) - columns + 1, columns)]
    return np.asarray(np.vstack(rows), np.uint8)
