"""Which elements a pipeline is made of, on a Jetson and elsewhere."""

from __future__ import annotations

import pytest

from barnsightd.ingest.pipelines import (
    CODECS,
    Decoder,
    choose_decoder,
    decode_branch,
    file_pipeline,
    rtsp_source,
)

JETSON = {"nvv4l2decoder", "nvvidconv", "avdec_h264"}
DESKTOP = {"avdec_h264", "avdec_h265"}


def elements(description: str) -> list[str]:
    return [part.split()[0] for part in description.split(" ! ")]


def test_the_hardware_is_taken_where_it_is_installed() -> None:
    assert choose_decoder("auto", JETSON.__contains__) == "jetson"
    assert choose_decoder("auto", DESKTOP.__contains__) == "software"


def test_the_configuration_has_the_last_word() -> None:
    assert choose_decoder("software", JETSON.__contains__) == "software"


def test_a_jetson_decodes_in_hardware_and_copies_to_the_host_once() -> None:
    assert elements(decode_branch("H265", "jetson")) == [
        "rtph265depay", "h265parse", "nvv4l2decoder", "nvvidconv", "video/x-raw,format=RGBA", "appsink"
    ]  # fmt: skip


def test_any_other_machine_decodes_on_one_thread_and_shows_no_damaged_frames() -> None:
    branch = decode_branch("H264", "software")

    assert elements(branch) == [
        "rtph264depay", "h264parse", "avdec_h264", "videoconvert", "video/x-raw,format=RGB", "appsink"
    ]  # fmt: skip
    assert "max-threads=1 output-corrupt=false" in branch


@pytest.mark.parametrize("decoder", ["software", "jetson"])
@pytest.mark.parametrize("codec", CODECS)
def test_live_frames_are_dropped_after_the_decoder_only(codec: str, decoder: Decoder) -> None:
    *before, sink = decode_branch(codec, decoder).split(" ! ")

    assert sink.startswith("appsink name=sink")
    assert "max-buffers=1 drop=true" in sink
    assert not any("queue" in element or "drop" in element for element in before)


@pytest.mark.parametrize("decoder", ["software", "jetson"])
def test_a_file_gives_every_frame(decoder: Decoder) -> None:
    assert "drop=false" in file_pipeline(decoder)


def test_the_receiver_takes_its_transport_and_deadlines_and_nothing_secret() -> None:
    assert rtsp_source("udp", latency_ms=200, connect_s=10) == (
        "rtspsrc name=source protocols=udp latency=200 tcp-timeout=10000000"
    )
