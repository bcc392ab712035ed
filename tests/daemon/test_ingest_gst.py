"""GStreamer's pictures become arrays, and what is not installed is named."""

from __future__ import annotations

import numpy as np
import pytest

from barnsightd.errors import SourceError
from barnsightd.ingest.gst import build, gstreamer, is_installed, set_state, to_image, video_decoder


@pytest.mark.parametrize("pixels", ["RGB", "RGBA"])
def test_a_picture_is_the_same_from_a_jetson_and_from_software(pixels: str) -> None:
    Gst = gstreamer()
    source = "videotestsrc num-buffers=1 pattern=solid-color foreground-color=0xff0a141e"
    pipeline = build(f"{source} ! video/x-raw,format={pixels},width=33,height=17 ! appsink name=sink")
    assert set_state(pipeline, Gst.State.PLAYING, 10)

    image = to_image(pipeline.get_by_name("sink").try_pull_sample(10 * Gst.SECOND))

    assert set_state(pipeline, Gst.State.NULL, 10)
    assert image.shape == (17, 33, 3)
    assert np.array_equal(image, np.full((17, 33, 3), [10, 20, 30], np.uint8))


def test_an_element_that_is_not_installed_is_named_with_the_packages_that_bring_it() -> None:
    assert not is_installed("nosuchdecoder")
    with pytest.raises(SourceError, match=r"nosuchdecoder.* install gstreamer1\.0-plugins"):
        build("videotestsrc ! nosuchdecoder ! fakesink")


def test_a_pipeline_without_a_decoder_names_none() -> None:
    assert video_decoder(build("videotestsrc ! fakesink")) == ("", "")
