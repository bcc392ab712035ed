"""Pictures of the simulated barn for training, still or in sequences: written as shards, read through memory maps.

A shard is three files: ``images-00000.npy`` (n, S, S, 3) uint8 RGB, ``ids-00000.npy`` (n, S, S) uint8 with 0 for
background and k for animal k, and ``truth-00000.npz`` with ``species`` (n,) as index into ``SPECIES`` and
``visible_fraction`` (n, 30). Of sequences, each of T frames, all but the species have one more axis: (n, T, ...). The
truth file is written last: a shard without it is rendered again, so that a stopped run resumes. ``made.json`` says what
a folder's shards were made with; folders written before it are read all the same. Pictures are rendered at a camera's
aspect and then resized plainly to a square, as the engines do. The visible fraction of an animal that the frame cuts is
an estimate.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from barnsight_export.errors import DataError
from barnsight_export.files import write_whole
from barnsight_export.simbarn.arrangement import arrange, pressed
from barnsight_export.simbarn.ethogram import Herd
from barnsight_export.simbarn.render import Rendered, Renderer
from barnsight_export.simbarn.scene import SPLITS, Scene, Split, View, sample_light, sample_scene, sample_sensor

SPECIES = ("pig", "cow")
MADE = "made.json"
MAX_ANIMALS = 30
SHARD = 200
POSES_PER_SCENE = 3  # the same pen is pictured again with the herd rearranged, at another hour, by another camera
ASPECTS = ((1.36, 0.77), (1.18, 0.89), (1.0, 1.0), (0.89, 1.18))  # width, height over the square's side
ASPECT_SHARE = (0.5, 0.28, 0.14, 0.08)
OVERHEAD_SHARE = 0.35  # of pens seen whole from above, as research pens are; what no share names has any mount
CLOSE_SHARE = 0.15  # of pens of which the camera sees a part, from close above
AISLE_SHARE = 0.4  # of cattle pens seen down the barn from one end, as its own cameras do
PRESSED_SHARE = 0.6  # of pictures in which lying bodies only touch; in the rest some lie on each other
SPECIES_MIX: Mapping[str, float] = {"pig": 0.70, "cow": 0.25, "empty": 0.05}
SEQUENCE_SHARD = 25
SEQUENCE_MIX: Mapping[str, float] = {"pig": 0.75, "cow": 0.25}
SEQUENCE_FPS = (1.0, 2.0, 3.0, 6.0)  # the slower, the more happens between two frames
_ADVICE = "free some space and start again: complete shards are kept"
LONGEST_LEAD_S = 30.0  # a herd has lived so long at most when its sequence begins

Picture = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int, npt.NDArray[np.float32]]


def pictures(
    split: Split, seed: int, shard: int, count: int, size: int, species_mix: Mapping[str, float] = SPECIES_MIX
) -> Iterator[Picture]:
    """Pictures of one shard: image (S, S, 3), ids (S, S), index into SPECIES, visible fraction (30,)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), shard])
    made = 0
    while made < count:
        scene, species, animals = _pen(rng, split, size, species_mix)
        renderer = Renderer(scene)
        for frame in range(min(POSES_PER_SCENE, count - made)):
            if frame:
                light = sample_light(rng, scene.spec, scene.pen_m)
                renderer.relight(light, sample_sensor(rng, light))
            poses = arrange(scene, rng)
            if rng.random() < PRESSED_SHARE:
                poses = pressed(scene, poses)
            yield _squared(renderer.render(poses, frame=frame), size, species, animals)
            made += 1


def sequences(
    split: Split, seed: int, shard: int, count: int, size: int, frames: int, species_mix: Mapping[str, float]
) -> Iterator[Picture]:
    """Sequences of one shard, as `pictures` with a leading axis of `frames`: a herd that lives, seen now and then."""
    rng = np.random.default_rng([seed, SPLITS.index(split), shard, frames])
    for _ in range(count):
        scene, species, animals = _pen(rng, split, size, species_mix)
        fps = float(rng.choice(SEQUENCE_FPS))
        lead = int(rng.integers(0, round(LONGEST_LEAD_S * fps)))
        life = Herd(scene, int(rng.integers(1 << 31))).states(lead + frames, fps)
        renderer = Renderer(scene)
        shots = [
            _squared(renderer.render([state.pose for state in states], frame=frame), size, species, animals)
            for frame, states in enumerate(itertools.islice(life, lead, None))
        ]
        images, ids, _, fractions = zip(*shots, strict=True)
        yield np.stack(images), np.stack(ids), SPECIES.index(species), np.stack(fractions)


def _pen(rng: np.random.Generator, split: Split, size: int, species_mix: Mapping[str, float]) -> tuple[Scene, str, int]:
    """A pen by lot, whose species and how many are in it."""
    kinds, shares = list(species_mix), np.array(list(species_mix.values()), np.float64)
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    species = str(rng.choice(SPECIES)) if kind == "empty" else kind
    most = {"pig": MAX_ANIMALS, "cow": 14, "empty": 0}[kind]
    animals = 0 if kind == "empty" else int(np.clip(rng.gamma(2.2, most / 6), 1, most))
    wide, tall = ASPECTS[int(rng.choice(len(ASPECTS), p=ASPECT_SHARE))]
    seed, lot = int(rng.integers(1 << 62)), rng.random()
    view: View | None = None
    if lot < OVERHEAD_SHARE + CLOSE_SHARE:
        view = "overhead" if lot < OVERHEAD_SHARE else "close"
    if species == "cow" and lot > 1 - AISLE_SHARE:
        view = "aisle"
    scene = sample_scene(
        seed,
        species=species,
        animals=animals,
        split=split,
        width=round(size * wide),
        height=round(size * tall),
        view=view,
    )
    return scene, species, animals


def _squared(shot: Rendered, size: int, species: str, animals: int) -> Picture:
    image = cv2.resize(shot.image, (size, size), interpolation=cv2.INTER_AREA)
    ids = cv2.resize(shot.ids.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    fraction = np.zeros(MAX_ANIMALS, np.float32)
    fraction[:animals] = shot.visible_fraction
    return np.asarray(image, np.uint8), np.asarray(ids, np.uint8), SPECIES.index(species), fraction


def write_pictures(
    out_dir: Path | str,
    split: Split,
    count: int,
    seed: int,
    workers: int,
    size: int = 480,
    species_mix: Mapping[str, float] = SPECIES_MIX,
) -> None:
    """Render ``count`` pictures into shards under ``out_dir``; complete shards that exist are kept.

    Raises DataError where they were made with something else, OutputError where the disk is full.
    """
    _write_shards(_Shard(Path(out_dir), split, seed, 0, SHARD, size, 0, dict(species_mix)), count, workers)


def write_sequences(
    out_dir: Path | str,
    split: Split,
    count: int,
    seed: int,
    workers: int,
    size: int = 432,
    frames: int = 8,
    species_mix: Mapping[str, float] = SEQUENCE_MIX,
) -> None:
    """Render ``count`` sequences of ``frames`` frames into shards under ``out_dir``; complete ones are kept.

    Raises as `write_pictures` does.
    """
    shard = _Shard(Path(out_dir), split, seed, 0, SEQUENCE_SHARD, size, frames, dict(species_mix))
    _write_shards(shard, count, workers)


@dataclass(frozen=True, slots=True)
class _Shard:
    """One shard to render: `count` pictures, or sequences where it has `frames`."""

    out: Path
    split: Split
    seed: int
    number: int
    count: int
    size: int
    frames: int
    mix: dict[str, float]

    def pictures(self) -> Iterator[Picture]:
        """What goes into the shard."""
        if self.frames:
            return sequences(self.split, self.seed, self.number, self.count, self.size, self.frames, self.mix)
        return pictures(self.split, self.seed, self.number, self.count, self.size, self.mix)


def _write_shards(first: _Shard, count: int, workers: int) -> None:
    """Render ``count`` pictures or sequences, ``first.count`` a shard."""
    mark(first.out, {name: getattr(first, name) for name in ("seed", "split", "size", "frames", "mix")})
    shards = (
        replace(first, number=number, count=min(first.count, count - number * first.count))
        for number in range(-(-count // first.count))
    )
    jobs = [shard for shard in shards if held(shard.out, shard.number) < shard.count]
    if not jobs:
        return
    from tqdm import tqdm

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # inherited by the workers: one core each
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in tqdm(pool.map(_write_shard, jobs), total=len(jobs), unit="shard", desc=f"{first.split} pictures"):
            pass


def mark(out: Path, made: Mapping[str, Any]) -> None:
    """Write down what the shards of a folder are made with.

    Raises DataError where those that are there were made with something else, OutputError where the disk is full.
    """
    path = out / MADE
    if not path.exists():
        text = json.dumps(made, indent=1) + "\n"
        write_whole(path, lambda file: file.write(text.encode()), _ADVICE)
        return
    try:
        was = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise DataError(f"{path}: is damaged; choose another folder") from None
    changed = next((name for name in made if was.get(name) != made[name]), None)
    if changed is not None:
        raise DataError(
            f"{path}: these were made with {changed} {was.get(changed)}, now it is {made[changed]};"
            " give the same, or choose another folder"
        )


def held(out: Path, shard: int) -> int:
    """How many pictures or sequences a complete shard holds; 0 where it is not complete."""
    path = _file(out, "truth", shard)
    return len(np.load(path)["species"]) if path.exists() else 0


def write_shard(
    out: Path,
    shard: int,
    images: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.uint8],
    species: npt.NDArray[np.int64],
    visible_fraction: npt.NDArray[np.float32],
) -> None:
    """Write one shard, shaped as the module says; the truth comes last and makes it complete.

    Raises OutputError where the disk is full.
    """
    truth = _file(out, "truth", shard)
    truth.unlink(missing_ok=True)
    write_whole(_file(out, "images", shard), lambda file: np.save(file, images), _ADVICE)
    write_whole(_file(out, "ids", shard), lambda file: np.save(file, ids), _ADVICE)
    write_whole(truth, lambda file: np.savez(file, species=species, visible_fraction=visible_fraction), _ADVICE)


def _file(out: Path, kind: str, shard: int) -> Path:
    return out / f"{kind}-{shard:05d}.{'npz' if kind == 'truth' else 'npy'}"


def _write_shard(shard: _Shard) -> None:
    cv2.setNumThreads(1)
    size = shard.size
    shape = (shard.count, shard.frames) if shard.frames else (shard.count,)
    images, ids = np.empty((*shape, size, size, 3), np.uint8), np.empty((*shape, size, size), np.uint8)
    species, fractions = np.empty(shard.count, np.int64), np.empty((*shape, MAX_ANIMALS), np.float32)
    for k, (image, marks, code, fraction) in enumerate(shard.pictures()):
        images[k], ids[k], species[k], fractions[k] = image, marks, code, fraction
    write_shard(shard.out, shard.number, images, ids, species, fractions)


class Pictures:
    """The complete shards of a folder, of pictures or sequences, as one set; opening the memory maps costs nothing.

    Raises FileNotFoundError when the folder holds no complete shard.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        names = sorted(self.folder.glob("truth-*.npz"))
        if not names:
            raise FileNotFoundError(f"{self.folder}: no truth-*.npz; write pictures there first")
        shards = [int(name.stem.split("-")[1]) for name in names]
        self._images = [np.load(_file(self.folder, "images", k), mmap_mode="r") for k in shards]
        self._ids = [np.load(_file(self.folder, "ids", k), mmap_mode="r") for k in shards]
        truths = [np.load(name) for name in names]
        self.species: npt.NDArray[np.int64] = np.concatenate([truth["species"] for truth in truths])
        self.visible_fraction: npt.NDArray[np.float32] = np.concatenate([t["visible_fraction"] for t in truths])
        self._ends = np.cumsum([len(images) for images in self._images])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def frames(self) -> int:
        """Frames of its shortest sequence; still pictures are sequences of one."""
        return min(images.shape[1] if images.ndim == 5 else 1 for images in self._images)

    def __getitem__(self, index: int) -> Picture:
        """Image (S, S, 3) uint8 RGB, ids (S, S) uint8, index into SPECIES, visible fraction of animals 1..30.

        Of a sequence, all but the species with a leading axis of its frames.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        image, ids = np.array(self._images[shard][row]), np.array(self._ids[shard][row])
        return image, ids, int(self.species[index]), self.visible_fraction[index]
