"""Tells systemd how the service does: ready, reloading, stopping, and alive while it makes progress.

The protocol is sd_notify(3): lines `KEY=value` in one datagram to the socket that `$NOTIFY_SOCKET` names. The
watchdog is fed by progress, not by life: `WATCHDOG=1` goes out at half of `$WATCHDOG_USEC`, and only while every
source of progress has advanced within its own limit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

NS_PER_US = 1000
NS_PER_S = 1_000_000_000
DEFAULT_INTERVAL_S = 5.0
SEND_DEADLINE_S = 1.0

log = structlog.get_logger(__name__)


class Notifier:
    """Sends states to the service manager; without one it does nothing."""

    def __init__(self, address: str | None) -> None:
        """`address` is a socket's path, or a name that begins with @ in the abstract namespace."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Take the socket that systemd named."""
        return cls(environ.get("NOTIFY_SOCKET") or None)

    @property
    def connected(self) -> bool:
        """Whether there is a service manager to talk to."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that start or reload is complete."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // NS_PER_US}")

    def stopping(self) -> None:
        """Say that the service shuts down."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """Feed the watchdog once."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(SEND_DEADLINE_S)
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("service manager not reached", state=lines[0], error=str(error))


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that has to advance: when it last did (monotonic), and how long it may take."""

    last_ns: Callable[[], int]
    limit_s: float


class Watchdog:
    """Feeds the service manager while every source of progress advances."""

    def __init__(
        self,
        notifier: Notifier,
        sources: Mapping[str, Progress],
        *,
        interval_s: float | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Watch `sources` by name every `interval_s`, by default half of what systemd asks for."""
        self._notifier = notifier
        self._sources = dict(sources)
        self._interval_s = interval_s or watchdog_interval_s() or DEFAULT_INTERVAL_S
        self._clock_ns = clock_ns
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._was_healthy = True

    def healthy(self) -> tuple[bool, str]:
        """Say whether everything advances, and what does not."""
        now_ns = self._clock_ns()
        ages_s = {name: (now_ns - source.last_ns()) / NS_PER_S for name, source in self._sources.items()}
        stuck = [
            f"{name} made no progress for {age_s:.0f} s (limit {self._sources[name].limit_s:g} s)"
            for name, age_s in ages_s.items()
            if age_s > self._sources[name].limit_s
        ]
        return not stuck, "; ".join(stuck) or "ok"

    def beat(self) -> bool:
        """Feed the service manager if everything advances; whether it does."""
        healthy, reason = self.healthy()
        if healthy:
            self._notifier.alive()
        if healthy != self._was_healthy:
            report = log.info if healthy else log.error
            report("progress resumed" if healthy else "no progress", reason=reason)
            self._notifier.status("running" if healthy else reason)
        self._was_healthy = healthy
        return healthy

    def start(self) -> None:
        """Begin to feed."""
        self._thread.start()

    def stop(self, deadline_s: float) -> bool:
        """Stop feeding; whether the thread ended within `deadline_s`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self.beat()
            if self._stopping.wait(self._interval_s):
                return


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Give half of the time that systemd waits for a sign of life, None where it does not watch this process."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 / 2


def _one_line(text: str) -> str:
    """Keep a status from being read as more than one state."""
    return " ".join(text.split())
