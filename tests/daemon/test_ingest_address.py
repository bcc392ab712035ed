"""Credentials leave the address before anything is built or printed from it."""

from __future__ import annotations

from barnsightd.ingest.address import StreamAddress


def test_an_address_is_taken_apart_and_its_login_decoded() -> None:
    address = StreamAddress.parse("rtsp://admin:p%40ss%3Aword@10.0.0.13:8554/stream1?channel=2")

    assert address.location == "rtsp://10.0.0.13:8554/stream1?channel=2"
    assert (address.user, address.password) == ("admin", "p@ss:word")


def test_an_address_without_login_stays_as_it_is() -> None:
    address = StreamAddress.parse("rtsp://[fe80::1]:554/stream1")

    assert address.location == "rtsp://[fe80::1]:554/stream1"
    assert (address.user, address.password) == ("", "")


def test_it_cannot_be_printed() -> None:
    address = StreamAddress.parse("rtsp://admin:hunter2@10.0.0.13/AbCdEfSecretToken")
    assert f"{address} {address!r}" == "StreamAddress(***) StreamAddress(***)"
