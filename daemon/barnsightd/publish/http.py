"""The daemon's web server: metrics, health and status, read only, on loopback unless configured otherwise.

    /metrics               Prometheus exposition
    /healthz               200 while the daemon makes progress, else 503 with the reason
    /readyz                200 when the engines are loaded and the store is open, else 503
    /status                JSON for people and scripts
    /preview/<camera>.jpg  the newest frame of a camera with its tracks

It is bounded: few requests at a time, each with one deadline, GET and HEAD only, no request bodies. For access
from other machines put a reverse proxy with authentication in front.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from barnsightd.config.address import mask
from barnsightd.errors import PublishError

MAX_REQUESTS = 8
REQUEST_DEADLINE_S = 5.0
PATHS = ("/metrics", "/healthz", "/readyz", "/status", "/preview/<camera>.jpg")
TEXT = "text/plain; charset=utf-8"

log = structlog.get_logger(__name__)

Verdict = tuple[bool, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete response."""

    status: HTTPStatus
    content_type: str
    body: bytes


class HttpServer:
    """Serves the daemon's own pages from threads of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], Verdict],
        healthy: Callable[[], Verdict],
        preview: Callable[[str], bytes | None] | None = None,
    ) -> None:
        """Bind to `host`:`port`; port 0 takes a free one. Raises PublishError where the address cannot be had.

        `ready` and `healthy` give a verdict and its reason; `preview` gives a camera's newest picture as JPEG.
        """
        self._registry = registry
        self._status = status
        self._ready = ready
        self._healthy = healthy
        self._preview = preview
        try:
            self._server = _BoundedServer((host, port), self._answer)
        except OSError as error:
            raise PublishError(
                f"web: cannot listen on {host}:{port}: {error.strerror or error}; "
                "choose another web.host or web.port, or stop what listens there"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that the server listens on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def stop(self, deadline_s: float) -> bool:
        """Close the address; whether the server's thread ended within `deadline_s`."""
        if self._thread.is_alive():
            threading.Thread(target=self._server.shutdown, name="http-stop", daemon=True).start()
            self._thread.join(deadline_s)
        self._server.server_close()
        return not self._thread.is_alive()

    def _answer(self, target: str) -> Answer:
        path = urlsplit(target).path
        if path == "/metrics":
            return Answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry))
        if path == "/healthz":
            return _verdict(self._healthy())
        if path == "/readyz":
            return _verdict(self._ready())
        if path == "/status":
            body = mask(json.dumps(self._status(), ensure_ascii=False, indent=1, default=str))
            return Answer(HTTPStatus.OK, "application/json; charset=utf-8", f"{body}\n".encode())
        if path.startswith("/preview/") and path.endswith(".jpg") and self._preview:
            camera = unquote(path[len("/preview/") : -len(".jpg")])
            picture = self._preview(camera)
            if picture is None:
                return _text(HTTPStatus.NOT_FOUND, f"no picture of a camera {camera!r} yet")
            return Answer(HTTPStatus.OK, "image/jpeg", picture)
        return _text(HTTPStatus.NOT_FOUND, "not found; there is: " + " ".join(PATHS))


class _BoundedServer(ThreadingHTTPServer):
    """A threading server that turns requests away beyond a fixed number at a time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        self.answer = answer
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who this machine is: on a farm nobody may answer."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the request to a thread, or close it when all of them are busy."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own; a client that is too slow is cut off."""
        cutter = threading.Timer(REQUEST_DEADLINE_S, _cut, (request,))
        cutter.daemon = True
        cutter.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cutter.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's form
        """Note a client that went away in the middle; the service goes on."""
        log.debug("request broke off", client=str(client_address), exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Reads one GET or HEAD request and writes its answer."""

    server: _BoundedServer
    server_version = "barnsight"
    sys_version = ""
    timeout = REQUEST_DEADLINE_S

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self._send(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._send(self._answer(), with_body=False)

    def _answer(self) -> Answer:
        try:
            return self.server.answer(self.path)
        except Exception as error:  # a page that fails must not take the others with it
            log.error("page failed", path=self.path, error=str(error), exc_info=True)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; see the log")

    def _send(self, answer: Answer, *, with_body: bool) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the log unless it shows everything."""
        log.debug("request", line=format % args)


def _verdict(verdict: Verdict) -> Answer:
    good, reason = verdict
    return _text(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, reason)


def _text(status: HTTPStatus, line: str) -> Answer:
    return Answer(status, TEXT, f"{line}\n".encode())


def _cut(request: socket.socket) -> None:
    """Wake whoever reads from or writes to this connection."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already
