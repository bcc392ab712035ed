"""The service manager hears the right words, and hears of life only while there is progress."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barnsightd.runtime.watchdog import Notifier, Progress, Watchdog, watchdog_interval_s

NS_PER_S = 1_000_000_000


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands for systemd: a datagram socket that hears what is said."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(5.0)
        yield ear


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def silent(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    return False


def test_each_state_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    assert notifier.connected
    notifier.ready("2 cameras")
    assert heard(manager) == ["READY=1", "STATUS=2 cameras"]
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    state, clock = heard(manager)
    assert state == "RELOADING=1"
    assert before_us <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]


def test_a_status_cannot_smuggle_in_a_second_state(manager: socket.socket) -> None:
    Notifier(manager.getsockname()).status("camera failed:\nREADY=1")
    assert heard(manager) == ["STATUS=camera failed: READY=1"]


def test_the_abstract_namespace_is_spoken() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0barnsight-test-{os.getpid()}")
        ear.settimeout(5.0)
        Notifier.from_environment({"NOTIFY_SOCKET": f"@barnsight-test-{os.getpid()}"}).alive()
        assert heard(ear) == ["WATCHDOG=1"]


def test_without_a_service_manager_nothing_is_said_and_nothing_fails(tmp_path: Path) -> None:
    assert not Notifier.from_environment({}).connected
    Notifier.from_environment({"NOTIFY_SOCKET": ""}).ready("")
    Notifier(str(tmp_path / "nobody-listens")).alive()


def test_it_is_fed_only_while_every_source_advances(manager: socket.socket) -> None:
    now_ns = 100 * NS_PER_S
    last_ns = {"inference": now_ns, "writer": now_ns}
    sources = {
        "inference": Progress(lambda: last_ns["inference"], limit_s=10),
        "writer": Progress(lambda: last_ns["writer"], limit_s=30),
    }
    watchdog = Watchdog(Notifier(manager.getsockname()), sources, clock_ns=lambda: now_ns)

    assert watchdog.beat()
    assert heard(manager) == ["WATCHDOG=1"]

    now_ns += 11 * NS_PER_S  # the writer is slow by nature, inference is not
    assert not watchdog.beat()
    assert heard(manager) == ["STATUS=inference made no progress for 11 s (limit 10 s)"]
    assert watchdog.healthy() == (False, "inference made no progress for 11 s (limit 10 s)")
    assert not watchdog.beat()
    assert silent(manager)  # the status is said once

    last_ns["inference"] = now_ns
    manager.settimeout(5.0)
    assert watchdog.beat()
    assert heard(manager) == ["WATCHDOG=1"]
    assert heard(manager) == ["STATUS=running"]
    assert watchdog.healthy() == (True, "ok")


def test_its_thread_feeds_until_it_is_stopped(manager: socket.socket) -> None:
    watchdog = Watchdog(Notifier(manager.getsockname()), {}, interval_s=0.01)
    watchdog.start()
    assert heard(manager) == heard(manager) == ["WATCHDOG=1"]
    assert watchdog.stop(5.0)


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_it_keeps_to_half_of_what_systemd_asks(environ: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(environ) == interval_s
