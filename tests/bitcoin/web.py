"""A threaded HTTP/1.1 server on a loopback port that stays its own, with faults that can be switched on while it runs."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

DRIP_SECONDS = 0.5
PORTAL = b"<html><body><h1>Welcome to the hotel</h1><a href='/login'>Log in</a></body></html>"
TRANSPORT_FAULTS = ("hang", "drip", "redirect", "error", "portal", "reset")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Web(ABC):
    """A server; subclasses say what it answers. Faults concern the methods in `faulty`, by default all.

    `fault` is "" or one of TRANSPORT_FAULTS: hang (no answer), drip (one byte of a good answer every half second), redirect (to
    `elsewhere`), error (503), portal (HTML with 200), reset (connection closed). `down()` refuses connections on the same port.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.faulty = {"GET", "POST"}
        self.elsewhere = "http://127.0.0.1:9/"
        self.requests: list[Request] = []
        self._released = threading.Event()
        self._placeholder: socket.socket | None = None
        self._server: _Server | None = None
        self.port = 0
        self.up()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """Return the answer to a request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def up(self) -> None:
        """Listen, on the same port as before. The port is set when this returns."""
        if self._server:
            return
        if self._placeholder:
            self._placeholder.close()
            self._placeholder = None
        self._released.clear()
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        # Polls seldom, for `shutdown` alone: each poll would cost time on a small machine.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Refuse connections, and keep the port: a bound socket that does not listen refuses."""
        self._close()
        self._placeholder = socket.socket()
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind(("127.0.0.1", self.port))

    def stop(self) -> None:
        """Close everything and wait for every thread."""
        self._close()
        if self._placeholder:
            self._placeholder.close()
            self._placeholder = None

    def _close(self) -> None:
        if self._server:
            self._released.set()
            self._server.shutdown()
            self._server.close_connections()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _reply(self, handler: _Handler, request: Request) -> None:
        """Answer a request, or do what the fault says."""
        self.requests.append(request)
        match self.fault if request.method in self.faulty else "":
            case "hang":
                self._released.wait()
                handler.close_connection = True
            case "reset":
                handler.close_connection = True
            case "redirect":
                handler.send(Answer(302, b"", {"Location": self.elsewhere}))
            case "error":
                handler.send(Answer(503, b"upstream\r\nis away\x1b[31m", {"Content-Type": "text/plain"}))
            case "portal":
                handler.send(Answer(200, PORTAL, {"Content-Type": "text/html"}))
            case "drip":
                handler.send(self.answer(request), self._released)
            case _:
                handler.send(self.answer(request))


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: Web) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def _handle(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdigit() else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.owner._reply(self, Request(self.command, self.path, body, headers))

    do_GET = do_POST = _handle

    def send(self, answer: Answer, drip: threading.Event | None = None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        for byte in answer.body if drip else b"":
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if drip and drip.wait(DRIP_SECONDS):
                self.close_connection = True
                return
        if not drip:
            self.wfile.write(answer.body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
