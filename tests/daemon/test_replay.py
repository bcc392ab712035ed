"""Replay encodes one frame ahead: same frames, same order, and a fault arrives where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines.errors import EngineError
from barnsightd.replay import EncoderAhead
from barnsightd.types import Frame


class Brightness:
    """An encoder whose one feature is the image's first value; it fails on the value 9."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.threads: set[str] = set()
        self.reached = {value: threading.Event() for value in range(10)}

    def encode(self, image: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        value = int(image[0, 0, 0])
        self.seen.append(value)
        self.threads.add(threading.current_thread().name)
        self.reached[value].set()
        if value == 9:
            raise EngineError("engine 'encoder' failed")
        return {"d1": np.full((1, 1, 1, 1), value, np.float32)}


def make_frames(*values: int) -> list[Frame]:
    return [Frame("pen", i, i, i, np.full((2, 2, 3), value, np.uint8)) for i, value in enumerate(values)]


def test_every_frame_comes_with_its_own_features_and_the_next_is_encoded_meanwhile() -> None:
    encoder = Brightness()
    found: list[tuple[int, float]] = []
    with EncoderAhead(encoder) as ahead:
        for frame in ahead.look_ahead(make_frames(3, 1, 4)):
            found.append((frame.index, float(ahead.encode(frame.image)["d1"].item())))
            if frame.index == 0:
                assert encoder.reached[1].wait(10.0)  # nobody has asked for it yet
    assert found == [(0, 3.0), (1, 1.0), (2, 4.0)]
    assert encoder.seen == [3, 1, 4]
    assert len(encoder.threads) == 1
    assert threading.current_thread().name not in encoder.threads


def test_a_fault_of_the_encoder_is_raised_with_the_frame_it_met() -> None:
    with EncoderAhead(Brightness()) as ahead:
        frames = ahead.look_ahead(make_frames(1, 9, 2))
        assert ahead.encode(next(frames).image)["d1"].item() == 1.0
        second = next(frames)
        with pytest.raises(EngineError, match="encoder"):
            ahead.encode(second.image)


def test_no_frame_and_one_frame_are_recordings_too() -> None:
    with EncoderAhead(Brightness()) as ahead:
        assert list(ahead.look_ahead([])) == []
        assert [ahead.encode(frame.image)["d1"].item() for frame in ahead.look_ahead(make_frames(7))] == [7.0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]
