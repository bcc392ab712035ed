"""Recordings give every frame in order, with times of their own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from barnsightd.errors import SourceAccessError, SourceDataError, SourceMissingError
from barnsightd.ingest.files import Timeline, read_frames
from barnsightd.ingest.gst import gstreamer

NS_PER_S = 1_000_000_000
NONE = 2**64 - 1
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def record(path: Path, description: str) -> Path:
    Gst = gstreamer()
    pipeline = Gst.parse_launch(f"{description} ! filesink location={path}")
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(30 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    pipeline.set_state(Gst.State.NULL)
    assert message is not None
    assert message.type == Gst.MessageType.EOS
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of red, 12 frames a second."""
    picture = "videotestsrc num-buffers=24 pattern=red ! video/x-raw,width=322,height=242,framerate=12/1"
    return record(tmp_path_factory.mktemp("clips") / "clip.mp4", f"{picture} ! x264enc tune=zerolatency ! mp4mux")


def test_every_frame_of_a_video_comes_with_its_time(clip: Path) -> None:
    frames = list(read_frames(clip, camera="pen-1", start_ns=5 * NS_PER_S))

    assert [f.index for f in frames] == list(range(24))
    assert [f.monotonic_ns for f in frames] == pytest.approx([i * NS_PER_S / 12 for i in range(24)], abs=1e6)
    assert [f.captured_ns - f.monotonic_ns for f in frames] == [5 * NS_PER_S] * 24
    assert frames[0].camera == "pen-1"


def test_a_picture_is_rgb_without_the_padding_of_its_rows(clip: Path) -> None:
    image = next(read_frames(clip, camera="pen-1")).image

    assert image.shape == (242, 322, 3)
    assert image.flags.c_contiguous
    assert image.reshape(-1, 3).mean(0) == pytest.approx([255, 0, 0], abs=6)


def test_the_same_file_gives_the_same_frames_twice(clip: Path) -> None:
    first, second = (list(read_frames(clip, camera="pen-1")) for _ in range(2))

    assert [f.captured_ns for f in first] == [f.captured_ns for f in second]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


def test_a_video_is_thinned_to_the_rate_that_is_asked_for(clip: Path) -> None:
    assert len(list(read_frames(clip, camera="pen-1", fps=6))) == 12


def test_a_reader_may_stop_in_the_middle(clip: Path) -> None:
    frames = read_frames(clip, camera="pen-1")
    next(frames)
    frames.close()

    assert next(frames, None) is None


def test_pictures_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, gray in (("b.png", 20), ("a.jpg", 10), ("c.PNG", 30)):
        cv2.imwrite(str(tmp_path / name.lower()), np.full((8, 8, 3), gray, np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")

    frames = list(read_frames(tmp_path, camera="pen-1", fps=2, start_ns=0))

    assert [int(f.image[0, 0, 0]) for f in frames] == [10, 20, 30]
    assert [f.captured_ns for f in frames] == [0, NS_PER_S // 2, NS_PER_S]


def test_a_gif_plays_at_the_pace_of_its_frames() -> None:
    gif = SHARED / "cow_freestall_night" / "NightClip2.gif"
    if not gif.exists():
        pytest.skip("the shared data is not beside the repository")
    frames = list(read_frames(gif, camera="pen-1", start_ns=0))

    assert [f.captured_ns for f in frames] == [i * 140_000_000 for i in range(70)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match=r"no-such-clip\.mp4 does not exist"):
        next(read_frames(tmp_path / "no-such-clip.mp4", camera="pen-1"))


def test_a_file_that_may_not_be_read_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", forbidden)  # the tests may run as root, who may read everything
    with pytest.raises(SourceAccessError, match=r"clip\.mp4 may not be read; give") as refused:
        next(read_frames(clip, camera="pen-1"))
    assert refused.value.exit_code == 77


@pytest.mark.parametrize("content", [b"", b"not a video\n" * 100, bytes(range(256)) * 64])
def test_what_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceDataError, match=r"clip\.mp4 is not a video that can be read .* H\.264 in MP4"):
        list(read_frames(path, camera="pen-1"))


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = record(tmp_path / "sound.wav", "audiotestsrc num-buffers=20 ! wavenc")
    with pytest.raises(SourceDataError, match=r"sound\.wav"):
        list(read_frames(path, camera="pen-1"))


def test_a_truncated_recording_is_refused(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(SourceDataError, match=r"cut\.mp4 .* cut off before its index"):
        list(read_frames(path, camera="pen-1"))


def test_a_folder_without_pictures_and_a_damaged_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceDataError, match="holds no"):
        next(read_frames(tmp_path, camera="pen-1"))
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(SourceDataError, match=r"a\.jpg is not a picture"):
        next(read_frames(tmp_path, camera="pen-1"))


def test_times_begin_at_zero_and_always_increase() -> None:
    stamps = [(66, 33), (99, 33), (99, 33), (NONE, 33), (198, NONE), (231, 33)]
    timeline = Timeline()
    assert [timeline.place(*stamp) for stamp in stamps] == [0, 33, 66, 99, 132, 165]
