"""Frames of a folder of videos: evenly spaced, the right ones, and what happens where videos are broken."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from barnsight_export.datasets.videos import Video, VideoFrames, find_videos, sample_evenly, split_videos
from barnsight_export.errors import DataError, DataMissingError


def write_video(path: Path, frames: int = 20, start: int = 0) -> Path:
    """A video whose frame k is uniformly 10·k + `start` gray in red, and dark in blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 6, (64, 48))
    for k in range(frames):
        writer.write(np.full((48, 64, 3), (20, 20, 10 * k + start), np.uint8))  # BGR
    writer.release()
    return path


def level(image: np.ndarray) -> float:
    return float(image[..., 0].mean())


def test_frames_are_spaced_evenly_and_are_the_ones_that_were_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "pen.mp4")
    found = find_videos(tmp_path, 4)
    assert found.videos == (Video(tmp_path / "pen.mp4", (2, 7, 12, 17)),)
    frames = VideoFrames(found.videos)
    assert len(frames) == 4
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].dtype == np.uint8
    # in any order, since training shuffles
    assert [level(frames[k]) for k in (3, 0, 2)] == pytest.approx([170, 20, 120], abs=6)
    assert frames[1][..., 2].mean() < 40  # RGB: blue is dark


def test_videos_of_all_folders_stand_one_after_the_other(tmp_path: Path) -> None:
    write_video(tmp_path / "b" / "clip.mp4", frames=3, start=100)
    write_video(tmp_path / "a" / "clip.MP4", frames=2)
    (tmp_path / "a" / "notes.txt").write_text("no video")
    frames = VideoFrames(find_videos(tmp_path, 5).videos)
    assert [level(frames[k]) for k in range(5)] == pytest.approx([0, 10, 100, 110, 120], abs=8)
    with pytest.raises(IndexError):
        frames[5]


def test_validation_never_sees_a_training_video(tmp_path: Path) -> None:
    videos = [Video(tmp_path / f"{k:02}.mp4", (0, 1)) for k in range(21)]
    train, validation = split_videos(videos)
    assert [video.path.stem for video in validation.videos] == ["09", "19"]
    assert len(train) == 38
    assert [video.path.stem for video in split_videos(videos[:3])[1].videos] == ["02"]


def test_a_single_video_is_cut_in_time(tmp_path: Path) -> None:
    train, validation = split_videos([Video(tmp_path / "pen.mp4", tuple(range(25)))])
    assert train.videos[0].frames == tuple(range(22))
    assert validation.videos[0].frames == (22, 23, 24)
    with pytest.raises(DataError, match="add videos"):
        split_videos([Video(tmp_path / "pen.mp4", (0,))])


def test_broken_videos_are_named_and_left_out(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mkv").write_text("not a video")
    found = find_videos(tmp_path, 2)
    assert [video.path.name for video in found.videos] == ["good.mp4"]
    assert [path.name for path in found.broken] == ["empty.mp4", "text.mkv"]


def test_a_folder_of_broken_videos_is_an_error_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(write_video(tmp_path / "pen.avi").read_bytes()[:40])
    (tmp_path / "pen.avi").unlink()
    with pytest.raises(DataError, match=r"none of its 1 videos can be decoded \(cut\.mp4\)"):
        find_videos(tmp_path, 2)


def test_a_video_that_was_cut_short_gives_the_frames_it_still_has(tmp_path: Path) -> None:
    """An AVI's header promises all frames; the file ends earlier."""
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 6, (64, 48))
    noise = np.random.default_rng(0)
    for _ in range(20):
        writer.write(noise.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    chosen = sample_evenly(path, 20)
    assert 5 <= len(chosen) <= 12
    assert VideoFrames([Video(path, chosen)])[len(chosen) - 1].shape == (48, 64, 3)


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_no_videos_is_an_error_that_names_the_folder(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissingError, match=folder):
        find_videos(tmp_path / folder, 2)


def test_a_video_that_vanishes_meanwhile_is_named(tmp_path: Path) -> None:
    frames = VideoFrames(find_videos(write_video(tmp_path / "pen.mp4").parent, 2).videos)
    (tmp_path / "pen.mp4").unlink()
    with pytest.raises(DataError, match=r"pen\.mp4: frame 5 cannot be decoded"):
        frames[0]
