"""Replay encodes one frame ahead: same frames, same order, and a fault arrives where it belongs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from barnsight_engines.errors import EngineError
from barnsightd.replay import encode_ahead
from barnsightd.types import Frame


class Brightness:
    """Encodes a frame as its first value; it fails on the value 9."""

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.reached = {value: threading.Event() for value in range(10)}

    def encode(self, frame: Frame) -> tuple[int, int]:
        value = int(frame.image[0, 0, 0])
        self.threads.add(threading.current_thread().name)
        self.reached[value].set()
        if value == 9:
            raise EngineError("engine 'encoder' failed")
        return frame.index, value


def make_frames(*values: int) -> list[Frame]:
    return [Frame("pen", i, i, i, np.full((2, 2, 3), value, np.uint8)) for i, value in enumerate(values)]


def test_every_frame_comes_in_its_turn_and_the_next_is_encoded_meanwhile() -> None:
    encoder, found = Brightness(), []
    for encoded in encode_ahead(encoder.encode, make_frames(3, 1, 4)):
        found.append(encoded)
        if encoded[0] == 0:
            assert encoder.reached[1].wait(10.0)  # nobody has asked for it yet
    assert found == [(0, 3), (1, 1), (2, 4)]
    assert len(encoder.threads) == 1
    assert threading.current_thread().name not in encoder.threads


def test_a_fault_of_the_encoder_is_raised_with_the_frame_it_met() -> None:
    encoded = encode_ahead(Brightness().encode, make_frames(1, 9, 2))
    assert next(encoded) == (0, 1)
    with pytest.raises(EngineError, match="encoder"):
        next(encoded)


def test_no_frame_and_one_frame_are_recordings_too() -> None:
    assert list(encode_ahead(Brightness().encode, [])) == []
    assert list(encode_ahead(Brightness().encode, make_frames(7))) == [(0, 7)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]
