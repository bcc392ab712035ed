"""The web pages: what they say, what they refuse, and that nobody can hold them up."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from barnsightd.errors import PublishError
from barnsightd.publish import http as pages
from barnsightd.publish.http import HttpServer


class Daemon:
    """Stands for the daemon behind the pages."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        Counter("barnsight_things_total", "Things.", registry=self.registry)
        self.ready = (False, "engines are loading")
        self.healthy = (True, "ok")
        self.status: dict[str, Any] = {"version": "1", "cameras": {"pen-3": {"fps": 12.0}}}
        self.server = HttpServer(
            "127.0.0.1",
            0,
            self.registry,
            lambda: self.status,
            lambda: self.ready,
            lambda: self.healthy,
            {"pen-3": b"\xff\xd8jpeg"}.get,
        )

    def ask(self, path: str, method: str = "GET") -> tuple[int, str, bytes]:
        host, port = self.server.address
        connection = http.client.HTTPConnection(host, port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()
        finally:
            connection.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.server.start()
    yield daemon
    assert daemon.server.stop(5.0)


def test_metrics_are_in_prometheus_own_format(daemon: Daemon) -> None:
    status, kind, body = daemon.ask("/metrics?name=ignored")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "barnsight_things" in {family.name for family in text_string_to_metric_families(body.decode())}


def test_readiness_and_health_answer_with_the_reason(daemon: Daemon) -> None:
    assert daemon.ask("/readyz")[::2] == (503, b"engines are loading\n")
    daemon.ready = (True, "ready")
    assert daemon.ask("/readyz")[::2] == (200, b"ready\n")
    assert daemon.ask("/healthz")[0] == 200
    daemon.healthy = (False, "inference made no progress for 40 s")
    assert daemon.ask("/healthz")[::2] == (503, b"inference made no progress for 40 s\n")


def test_status_is_json_without_passwords(daemon: Daemon) -> None:
    daemon.status["cameras"]["pen-3"]["last_error"] = "rtsp://admin:hunter2@10.0.0.13/stream1 refused"
    status, kind, body = daemon.ask("/status")
    assert (status, kind) == (200, "application/json; charset=utf-8")
    assert json.loads(body)["cameras"]["pen-3"]["last_error"] == "rtsp://***@10.0.0.13/stream1 refused"
    assert b"hunter2" not in body


def test_a_camera_shows_its_newest_picture(daemon: Daemon) -> None:
    assert daemon.ask("/preview/pen-3.jpg") == (200, "image/jpeg", b"\xff\xd8jpeg")
    assert daemon.ask("/preview/pen-4.jpg")[0] == 404
    assert daemon.ask("/preview/../../etc/passwd")[0] == 404


def test_an_unknown_path_is_told_which_paths_there_are(daemon: Daemon) -> None:
    status, _, body = daemon.ask("/")
    assert status == 404
    assert b"/metrics /healthz /readyz /status" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed_through_the_web(daemon: Daemon, method: str) -> None:
    assert daemon.ask("/status", method)[0] == 501


def test_head_gives_the_headers_alone(daemon: Daemon) -> None:
    assert daemon.ask("/healthz", "HEAD") == (200, "text/plain; charset=utf-8", b"")


def test_a_page_that_fails_answers_500_and_leaves_the_others_alone(daemon: Daemon) -> None:
    daemon.status = {1: {}, "1": object(), (2,): 0}  # type: ignore[dict-item]
    assert daemon.ask("/status")[0] == 500
    assert daemon.ask("/healthz")[0] == 200


def test_idle_clients_can_neither_fill_the_server_nor_stay(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REQUEST_DEADLINE_S", 0.2)
    idle = [socket.create_connection(daemon.server.address, timeout=10) for _ in range(pages.MAX_REQUESTS + 1)]
    try:
        assert all(client.recv(1) == b"" for client in idle)  # each is hung up on, in the end
        assert daemon.ask("/healthz")[0] == 200
    finally:
        for client in idle:
            client.close()


def test_a_port_that_is_taken_is_named_with_the_way_out(daemon: Daemon) -> None:
    host, port = daemon.server.address
    with pytest.raises(PublishError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use; choose another"):
        HttpServer(host, port, CollectorRegistry(), dict, lambda: (True, ""), lambda: (True, ""))


def test_a_server_that_never_started_can_be_stopped() -> None:
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), dict, lambda: (True, ""), lambda: (True, ""))
    assert server.stop(1.0)
