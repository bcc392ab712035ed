"""The simulated barn's pictures: the same from the same seed, exact in their truth, and split by family."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_export.datasets import simulated
from barnsight_export.datasets.simulated import Pictures, write_pictures
from barnsight_export.errors import DataError
from barnsight_export.simbarn.animals import Pose, animal_of, body_of, spine_points
from barnsight_export.simbarn.arrangement import HALF_WIDTH, arrange, pressed
from barnsight_export.simbarn.camera import aim
from barnsight_export.simbarn.ethogram import Herd
from barnsight_export.simbarn.fittings import LAYOUT_FAMILIES, LAYOUTS
from barnsight_export.simbarn.render import Renderer, render
from barnsight_export.simbarn.scene import SPLITS, Scene, sample_scene
from barnsight_export.simbarn.textures import FLOOR_FAMILIES, FLOORS


def small_scene(seed: int = 3, *, animals: int = 2, species: str = "pig", **more: object) -> Scene:
    return sample_scene(
        seed, species=species, animals=animals, split="test", width=192, height=108, view="overhead", **more
    )


def test_the_same_seed_gives_the_same_picture_and_truth() -> None:
    shots = []
    for _ in range(2):
        scene = small_scene()
        shots.append(render(scene, arrange(scene, np.random.default_rng(5))))
    assert np.array_equal(shots[0].image, shots[1].image)
    assert np.array_equal(shots[0].ids, shots[1].ids)


def test_another_seed_gives_another_pen() -> None:
    assert small_scene(3).camera != small_scene(4).camera


def test_the_upper_of_two_animals_hides_the_lower_and_the_fractions_say_so() -> None:
    scene = small_scene()
    below, above = Pose(0, 0, 0.0, upright=0.0), Pose(0, 0, np.pi / 2, upright=0.0, lift_m=0.5)
    alone = render(scene, [below, replace(above, x_m=90.0)])
    both = render(scene, [below, above])
    crossing = (alone.ids == 1) & (both.ids == 2)
    assert crossing.sum() > 20  # the upper body took pixels of the lower one
    assert not ((both.ids == 1) & (alone.ids != 1)).any()  # the lower one never gains any
    assert both.visible_fraction[0] < 0.9 < both.visible_fraction[1]


def test_an_animal_out_of_view_has_no_pixels_and_no_visible_fraction() -> None:
    shot = render(small_scene(), [Pose(90.0, 0, 0), Pose(0, 90.0, 0)])
    assert not shot.ids.any()
    assert shot.visible_fraction.tolist() == [0.0, 0.0]


def test_an_animal_cut_by_the_frame_counts_its_hidden_part() -> None:
    scene = replace(small_scene(animals=1), panels=(), pipes=(), balls=())
    ray = Renderer(scene).rays[54, -1]
    edge_m = np.asarray(scene.camera.position_m) - ray * scene.camera.position_m[2] / ray[2]
    inside = render(scene, [Pose(0, 0, 0)]).visible_fraction[0]
    across = render(scene, [Pose(float(edge_m[0]), float(edge_m[1]), 0)]).visible_fraction[0]
    assert inside == 1
    assert 0.05 < across < 0.75


def overlaps(scene: Scene, poses: Sequence[Pose]) -> NDArray[np.float64]:
    """How deep each pair of lying animals lies in one another, in widths of the smallest body; below 0 is apart."""
    bodies = [(a, spine_points(a, p)) for a, p in zip(scene.herd, poses, strict=True) if p.upright == 0.0]
    depths_m = [
        HALF_WIDTH["pig"] * (a.length_m + b.length_m) - np.hypot(*(one[:, None] - two).transpose(2, 0, 1)).min()
        for (a, one), (b, two) in itertools.combinations(bodies, 2)
    ]
    return np.array(depths_m) / (2 * HALF_WIDTH["pig"] * min(animal.length_m for animal in scene.herd))


def test_pressed_bodies_touch_instead_of_passing_through_each_other() -> None:
    scene = small_scene(animals=12, crowding="huddle")
    fallen = arrange(scene, np.random.default_rng(4))
    pushed = pressed(scene, fallen)
    assert (overlaps(scene, fallen) > 0.5).sum() >= 3
    assert 0 < overlaps(scene, pushed).max() < 0.25
    assert [p for p in pushed if p.upright] == [p for p in fallen if p.upright]
    places = np.array([(p.x_m, p.y_m) for p in pushed])
    assert (np.abs(places) < np.array(scene.pen_m) / 2).all()


def test_a_clip_begins_without_animals_that_lie_in_each_other() -> None:
    scene = small_scene(animals=12, crowding="huddle")
    poses = [state.pose for state in next(iter(Herd(scene, 1).states(1, 6.0)))]
    assert 0 < overlaps(scene, poses).max() < 0.25


def test_poses_must_match_the_herd() -> None:
    with pytest.raises(ValueError, match="expected 2 poses"):
        render(small_scene(), [])


def test_the_projection_is_the_inverse_of_the_rays_for_every_lens() -> None:
    see = np.array([(-2, -1, 0), (2, 1, 0)], np.float32)
    for lens_k in (1.0, 0.5, 0.1):
        camera = aim((0.3, 0, 3), (0, 0, 0), 0.2, see, width_px=64, height_px=48, lens_k=lens_k, fill=0.9)
        points = np.asarray(camera.position_m) + 2.5 * camera.rays()[[0, 20, 47], [0, 40, 63]]
        pixels, ahead = camera.project(points)
        assert np.allclose(pixels, [(0.5, 0.5), (40.5, 20.5), (63.5, 47.5)], atol=0.01)
        assert (ahead > 0).all()


def test_a_camera_at_a_barns_end_looks_along_it_and_sees_the_nearer_animal_larger() -> None:
    scenes = [
        sample_scene(
            seed, species="cow", animals=12, split="train", width=96, height=54, view="aisle", herd_seed=herd_seed
        )
        for seed in range(3)
        for herd_seed in (None, 5)
    ]
    for scene in scenes:
        camera, (w, d) = scene.camera, scene.pen_m
        forward = np.asarray(camera.rotation)[2]
        assert 2 < camera.position_m[2] < 6  # under a barn's roof
        assert abs(forward[0]) > abs(forward[2])  # more along than down
        end = np.sign(camera.position_m[0])
        row = np.array([(end * near * w, 0.05 * d * k, 0.5) for near in (0.1, -0.4) for k in (-1, 1)], np.float32)
        pixels, ahead = camera.project(row)
        assert (ahead > 0).all()
        assert np.linalg.norm(pixels[1] - pixels[0]) > np.linalg.norm(pixels[3] - pixels[2])


@pytest.mark.parametrize("species", ["pig", "cow"])
def test_a_camera_close_above_sees_few_animals_large(species: str) -> None:
    for seed in range(12):
        scene = sample_scene(seed, species=species, animals=12, split="train", width=96, height=54, view="close")
        camera, length = scene.camera, np.mean([animal.length_m for animal in scene.herd])
        position, forward = np.asarray(camera.position_m), np.asarray(camera.rotation)[2]
        assert 1 < position[2] / length < 3
        assert forward[2] < -0.7  # more down than along
        below = position - forward * position[2] / forward[2]
        assert (np.abs(below[:2]) < np.asarray(scene.pen_m) / 2).all()
        (nose, tail), ahead = camera.project([below, below + np.array([length, 0, 0])])
        assert (ahead > 0).all()
        assert np.linalg.norm(nose - tail) > 0.3 * 54  # of the frame's height


def test_cattle_in_two_rows_lie_head_to_head() -> None:
    scenes = [
        sample_scene(seed, species="cow", animals=12, split="train", width=64, height=36, view="aisle")
        for seed in range(24)
    ]
    two_rows = [s for s in scenes if s.layout == "head_to_head" and len({y for _, y, _ in s.stalls}) == 2]
    assert two_rows
    for scene in two_rows:
        for _, y, heading in scene.stalls:
            assert np.sign(np.sin(heading)) == -np.sign(y)  # toward the middle
            assert abs(y) < scene.pen_m[1] / 2


def test_splits_share_no_floor_and_no_layout() -> None:
    for families, known in ((FLOOR_FAMILIES, FLOORS), (LAYOUT_FAMILIES, LAYOUTS)):
        names = [name for split in SPLITS for name in families[split]]
        assert len(names) == len(set(names))
        assert set(names) == set(known)


def test_a_scene_is_built_from_its_own_split() -> None:
    for split in SPLITS:
        for seed in range(2):
            scene = sample_scene(seed, species="cow", animals=1, split=split, width=64, height=64)
            assert scene.floor_family in FLOOR_FAMILIES[split]
            assert scene.layout in LAYOUT_FAMILIES[split]


def test_bad_requests_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="got 'goat'"):
        sample_scene(1, species="goat", animals=1, split="train", width=64, height=64)
    with pytest.raises(ValueError, match="got -1"):
        sample_scene(1, species="pig", animals=-1, split="train", width=64, height=64)


def test_an_animal_keeps_its_coat_and_gains_weight_over_days() -> None:
    young, old, other = animal_of(9, 4, "pig"), animal_of(9, 4, "pig", day=30), animal_of(9, 5, "pig")
    assert np.array_equal(young.coat, old.coat)
    assert old.weight_kg > young.weight_kg + 10
    assert old.length_m > young.length_m
    assert not np.array_equal(young.coat, other.coat)


@pytest.mark.parametrize("species", ["pig", "cow"])
def test_a_lying_body_is_low_and_no_part_is_under_the_floor(species: str) -> None:
    animal = animal_of(1, 1, species)
    for roll in (0.0, 0.7, 1.5, -1.5):
        lying = body_of(animal, Pose(0, 0, 0.3, upright=0.0, roll_rad=roll)).center_m[:, 2]
        standing = body_of(animal, Pose(0, 0, 0.3)).center_m[:, 2]
        assert lying[:14].max() < standing[:14].max()
        assert lying.min() > -0.02


def test_shards_resume_and_read_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "SHARD", 2)
    for shard in range(2):
        simulated._write_shard(simulated._Shard(tmp_path, "val", 1, shard, 2, 64, 0, {"pig": 1.0}))
    pictures = Pictures(tmp_path)
    before = [pictures[k] for k in range(len(pictures))]
    stamp = (tmp_path / "truth-00000.npz").stat().st_mtime_ns
    write_pictures(tmp_path, "val", 4, 1, 1, size=64, species_mix={"pig": 1.0})  # all shards exist: nothing to do
    assert (tmp_path / "truth-00000.npz").stat().st_mtime_ns == stamp
    assert len(before) == 4
    again = list(simulated.pictures("val", 1, 1, 2, 64, {"pig": 1.0}))
    for (image, ids, species, fraction), (image_, ids_, species_, fraction_) in zip(before[2:], again, strict=True):
        assert np.array_equal(image, image_)
        assert np.array_equal(ids, ids_)
        assert species == species_ == 0
        assert np.array_equal(fraction, fraction_)
        assert set(np.unique(ids)) - {0} <= set(np.flatnonzero(fraction > 0) + 1)


def test_a_folder_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        """A pool of processes that is this one."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        map = staticmethod(map)

    monkeypatch.setattr(simulated, "SHARD", 2)
    monkeypatch.setattr(simulated, "ProcessPoolExecutor", Here)
    write_pictures(tmp_path, "val", 1, 1, 1, size=48, species_mix={"pig": 1.0})
    write_pictures(tmp_path, "val", 2, 1, 1, size=48, species_mix={"pig": 1.0})
    assert len(Pictures(tmp_path)) == 2  # the short shard was rendered again
    with pytest.raises(DataError, match=r"made\.json: these were made with seed 1, now it is 2; give the same"):
        write_pictures(tmp_path, "val", 4, 2, 1, size=48, species_mix={"pig": 1.0})
    (tmp_path / "made.json").unlink()
    assert len(Pictures(tmp_path)) == 2


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no truth-"):
        Pictures(tmp_path)


def test_a_sequence_shows_one_herd_that_lives(tmp_path: Path) -> None:
    simulated._write_shard(simulated._Shard(tmp_path, "train", 4, 0, 2, 64, 5, {"pig": 1.0}))
    sequences = Pictures(tmp_path)
    assert len(sequences) == 2
    images, ids, species, fractions = sequences[0]
    assert (images.shape, ids.shape, species, fractions.shape) == ((5, 64, 64, 3), (5, 64, 64), 0, (5, 30))
    animals = {frozenset(np.flatnonzero(fraction > 0)) for fraction in fractions}
    assert frozenset.union(*animals)
    assert ids.any()
    assert any((ids[k] != ids[0]).any() for k in range(1, 5))  # something moved
    again = next(simulated.sequences("train", 4, 0, 2, 64, 5, {"pig": 1.0}))
    assert np.array_equal(images, again[0])
